"""The engine: what happens between a micro-batch and its gradient in `.grad`.

It divides micro-batches into passes, provides the radius, and runs the ascent that the options name. If one ε serves a
whole accumulation window, it keeps the micro-batches until the window is complete. It does not depend on Trainer: the
caller passes a `TrainingLoop`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hf_sharp.data.labels import HOST_LABELS
from hf_sharp.sharpness.ascent import (
    average_over_processes,
    check_first_moment,
    gradients_in,
    trainable_parameters,
    widest_dtype,
)
from hf_sharp.sharpness.ascents import ASCENTS, Ascent, ReusedAscent, StepInputs, Waiting
from hf_sharp.sharpness.coefficients import class_coefficients
from hf_sharp.sharpness.compiled import allow_two_backward_passes
from hf_sharp.sharpness.effect import AscentEffect
from hf_sharp.sharpness.methods import METHODS
from hf_sharp.sharpness.passes import PassPlanner
from hf_sharp.sharpness.radius import LearnedRadius, scheduled_rho
from hf_sharp.sharpness.replay import random_state_kept, running_statistics_kept
from hf_sharp.sharpness.reuse import ReusedSharpness

logger = logging.getLogger(__name__)


class TrainingLoop(Protocol):
    """The interface that the engine needs from the code that trains."""

    device: torch.device
    num_processes: int
    counted_processes: int  # whose examples a step's number of examples counts
    process_index: int
    is_sharded: bool  # by FSDP2, which averages every gradient over the processes

    @property
    def step(self) -> int:
        """The number of optimizer steps taken so far."""

    @property
    def progress(self) -> float:
        """The fraction of the training that is done, from 0 to 1."""

    @property
    def window_ends(self) -> bool:
        """Whether the current micro-batch is the last one of its accumulation window."""

    @property
    def optimizer(self) -> Any:
        """The optimizer."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimizer step."""

    @property
    def grad_scale(self) -> Tensor | float:
        """The factor by which float16 loss scaling scales gradients."""

    def plain_step(self, model: nn.Module, inputs: dict[str, Any], num_examples: Any) -> Tensor:
        """Add the plain gradient of a micro-batch to `.grad`, and return its loss."""

    def begin_step(self, model: nn.Module) -> None:
        """Prepare the passes of a step: set training mode, empty caches."""

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a micro-batch to the device."""

    def labels(self, inputs: Any) -> Tensor:
        """Return the labels of a micro-batch."""

    def losses(self, model: nn.Module, inputs: Any, frozen: Any = None) -> Tensor:
        """Run a forward pass, and return the loss of each example, computed by the current or by a frozen loss."""

    def frozen_loss(self) -> Any:
        """Return a copy of the loss whose state stays as it is now."""

    def reduce(self, losses: Tensor, num_examples: Any) -> Tensor:
        """Reduce losses to a scalar as plain training does."""

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Run a backward pass, with loss scaling."""

    def without_sync(self, model: nn.Module) -> AbstractContextManager:
        """Do not average the gradients of passes in the block over processes."""

    def over_processes(self, value: Tensor, how: str) -> Tensor:
        """Reduce a tensor over processes; `how` is "mean" or "sum"."""

    def validation_inputs(self, draws: int) -> dict[str, Any]:
        """Draw a micro-batch of the examples that a learned radius is validated on, and move it to the device."""


class SharpnessEngine:
    """Adds sharpness-aware gradients to `.grad`, micro-batch by micro-batch.

    Args:
        options: an object with the fields of `SharpTrainingArguments` that concern sharpness.
        class_counts: (K,) the training examples of each class.
        model: the model; its parameters with `requires_grad` are perturbed.
        loop: the training loop that calls the engine.
        means: collects the figures to log.
        separable: whether an example's loss is independent of the other examples of its micro-batch.

    Raises:
        ValueError: an option of the method is out of range.
    """

    def __init__(
        self,
        options: Any,
        class_counts: Any,
        model: nn.Module,
        loop: TrainingLoop,
        means: StepMeans,
        separable: bool = True,
    ) -> None:
        self.options, self.loop, self.means = options, loop, means
        self.method = METHODS[options.sharpness]
        coefficients = class_coefficients(options.sharpness, class_counts, **options.method_arguments)
        if (coefficients > 1).any():
            logger.warning(
                "Coefficients reach %.3g. Above 1, the loss at the unperturbed weights gets a negative weight.",
                coefficients.max(),
            )
        several = loop.num_processes > 1
        # FSDP2 averages every gradient when it reduces it to shards, so that all processes must run the same passes.
        self.shares_epsilon = loop.is_sharded or (options.ascent_sync == "global" and several)
        self.average = average_over_processes if self.shares_epsilon and not loop.is_sharded else None
        self.planner = PassPlanner(
            coefficients,
            loop.device,
            torch.promote_types(widest_dtype(model), torch.float32),
            fraction=options.ascent_fraction,
            stochastic=options.focal_sampling == "stochastic",
            separable=separable,
            # A learned radius or a reused direction needs an ascent on every process, or on none.
            same_passes=self.shares_epsilon or (options.learns_rho and several) or options.sharpness_every > 1,
            seed=options.seed_of_data,
        )
        self.learned_radius = self._make_learned_radius() if options.learns_rho else None
        self.reused = None
        if options.sharpness_every > 1:
            average = average_over_processes if several else None
            self.reused = ReusedSharpness(options.looksam_alpha, loop.device, average)
        ascent = ASCENTS[options.ascent](self)
        self.ascent: Ascent = ascent if self.reused is None else ReusedAscent(ascent, self.reused)
        self.last_rho: Tensor | float = options.radius
        self.position = 0  # the index of the micro-batch in its window
        # The share of ε that low-precision weights lose to rounding: measured in the first step, reported in the log.
        self.measures_vanishing = any(p.dtype.itemsize < 4 for p in trainable_parameters(model))
        self._vanishing: Tensor | None = None
        self.effect = AscentEffect()
        # Processes may ascend in different steps; an extra pass in only one of them would break DDP's broadcast order.
        self.effect.measured = loop.num_processes > 1
        self.dtype_name = str(widest_dtype(model)).removeprefix("torch.")
        if options.learns_rho or not self.planner.uniform:
            allow_two_backward_passes()

    def _make_learned_radius(self) -> LearnedRadius:
        options = self.options
        return LearnedRadius(
            options.radius,
            options.rho_learning_rate,
            hessian=options.rho_hessian,
            objective=options.rho_objective,
            update=options.rho_update,
            **self.metric,
            device=self.loop.device,
            mean=lambda value: self.loop.over_processes(value, "mean"),
            average=self.average,
        )

    @property
    def metric(self) -> dict[str, Any]:
        """ASAM's metric, as `gradient_to_perturbation` takes it; empty for T = 1."""
        options = self.options
        adaptive = {"adaptive_eta": options.adaptive_eta, "adaptive_scope": options.adaptive_scope}
        return adaptive if options.adaptive else {}

    @property
    def rho(self) -> Tensor | float:
        """The radius of the current step; a learned radius is a tensor on the device."""
        if self.learned_radius is not None:
            return self.learned_radius.rho
        options = self.options
        steps = {float(start): radius for start, radius in (options.rho_steps or {}).items()}
        return scheduled_rho(options.radius, options.rho_schedule, self.loop.progress, options.rho_end, steps)

    @property
    def stateful(self) -> dict[str, Any]:
        """The parts whose state belongs in a checkpoint, by name; None for a part that is not in use."""
        return {"radius": self.learned_radius, "reused": self.reused}

    def begin_window(self) -> None:
        """Discard the state of an interrupted accumulation window, and check the optimizer's first moment."""
        if self.ascent.needs_first_moment:
            check_first_moment(self.loop.optimizer)
        self.position = 0
        self.ascent.restart()

    def step(self, model: nn.Module, inputs: dict[str, Any], num_examples: Any = None) -> Tensor:
        """Add the gradient of one micro-batch to `.grad`.

        Args:
            model: the model, as wrapped for training.
            inputs: the micro-batch, with `labels`.
            num_examples: the number of examples in the accumulation window, over all processes.

        Returns:
            The micro-batch's loss at the unperturbed weights, 0-dimensional; 0 if it has to wait for its window, whose
            last micro-batch returns the loss of all.
        """
        inputs = dict(inputs)
        host_labels = inputs.pop(HOST_LABELS, None)
        self.position += 1
        begun = self.loop.progress >= self.options.sharpness_after
        rho = self.last_rho = self.rho if begun else 0.0
        if not begun or not self.planner.perturbs or (self.learned_radius is None and rho == 0):
            return self.loop.plain_step(model, inputs, num_examples)
        return self.ascent.step(StepInputs(model, inputs, host_labels, rho, num_examples))

    def divide(self, inputs: dict[str, Any], host_labels: np.ndarray | None) -> Waiting:
        """Decide which examples of a micro-batch each pass takes.

        Args:
            inputs: the micro-batch.
            host_labels: (N,) its labels on the host, or None.

        Returns:
            The micro-batch with its division.
        """
        if host_labels is None and self.planner.stochastic:  # a stream's labels are only on the device
            host_labels = inputs["labels"].cpu().numpy()
        draw = (self.loop.step, self.position, self.loop.process_index)
        return Waiting(inputs, *self.planner.divide(host_labels, len(self.loop.labels(inputs)), draw))

    def sent(self, tensor: Tensor) -> Tensor:
        """Copy a host tensor to the device without waiting."""
        if self.loop.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.loop.device, non_blocking=True)

    def prepare_radius(self, model: nn.Module) -> None:
        """Give a learned radius its validation half; if an update is due, let it watch the next ascent."""
        radius, step = self.learned_radius, self.loop.step
        if radius is None:
            return
        if radius.direction is not None and radius.watched == step - 1:  # the weights after the watched ascent
            radius.validate(*self._validation_half(radius, model))
        if step % self.options.rho_update_every == 0 and self.loop.window_ends:
            radius.watch(step, self.loop.learning_rate)

    def _validation_half(self, radius: LearnedRadius, model: nn.Module) -> tuple[Tensor, list[Tensor]]:
        loop = self.loop
        inputs = loop.validation_inputs(radius.draws)
        parameters = trainable_parameters(model)
        gradients: list[Tensor | None] = [None] * len(parameters)
        devices = {parameter.device for parameter in model.parameters()}
        with random_state_kept(devices), running_statistics_kept(model.modules()), loop.without_sync(model):
            losses = loop.losses(model, inputs, loop.frozen_loss())
            loss = (self.planner.weights(loop.labels(inputs)) * losses).mean()
            with gradients_in(gradients, parameters):
                loop.backward(loss)
        scale = loop.grad_scale
        pairs = zip(gradients, parameters, strict=True)
        return loss.detach(), [torch.zeros_like(p) if g is None else g / scale for g, p in pairs]

    def report_vanishing(self, share: Tensor | None) -> None:
        """Keep the share of ε that was lost to rounding in the first step, for the first log."""
        if self.measures_vanishing:
            self._vanishing, self.measures_vanishing = share, False

    def pop_log(self) -> dict[str, float]:
        """Return the figures to log with the loss: the radius, and means over the steps since the last call."""
        if not (self.method.needs_radius or self.method.needs_features):
            return {}
        means = self.means.pop(lambda sums: self.loop.over_processes(sums, "sum"))
        if not self.method.needs_radius:
            return {"sharpness": means["sharpness"]} if means else {}
        self._warn_of_vanishing()
        if hint := self.effect.pop_hint(float(self.last_rho)):
            logger.warning(hint)
        derivative = {}
        if self.learned_radius is not None:
            derivative["rho_derivative"] = self.learned_radius.derivative.item()
        return {"rho": float(self.last_rho), **derivative, **means}

    def _warn_of_vanishing(self) -> None:
        vanishing, self._vanishing = self._vanishing, None
        if vanishing is not None and vanishing > 0.5:
            logger.warning(
                "In the first step, %.0f %% of the perturbation's entries were lost to rounding in %s weights. Load "
                "the model with dtype=torch.float32 and train with bf16=True, or choose a larger rho than %g.",
                100 * vanishing.item(),
                self.dtype_name,
                self.options.radius,
            )


class StepMeans:
    """Means of `ascent_grad_norm` and `sharpness` over the steps since the last log, kept on the device.

    Args:
        device: the device of the figures.

    Example:
        >>> means = StepMeans("cpu")
        >>> means.add(torch.tensor(1.0), torch.tensor(2.0)), means.add(torch.tensor(3.0), torch.tensor(4.0))
        (None, None)
        >>> means.pop(lambda sums: sums)
        {'ascent_grad_norm': 2.0, 'sharpness': 3.0}
        >>> means.pop(lambda sums: sums)
        {}
    """

    def __init__(self, device: torch.device | str) -> None:
        self._sums = torch.zeros(3, device=device)

    def add(self, ascent_grad_norm: Tensor, sharpness: Tensor) -> None:
        """Add the figures of a step; like the optimizer, it skips a step that overflowed in float16."""
        sums = torch.stack([ascent_grad_norm, sharpness, torch.ones_like(sharpness)])
        self._sums += torch.where(sums.isfinite().all(), sums, 0).to(self._sums)

    def add_sharpness(self, sharpness: Tensor) -> None:
        """Add the sharpness of a step whose ascent does not perturb all weights."""
        self.add(torch.zeros_like(sharpness), sharpness)

    def pop(self, over_processes: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the means and start over; synchronizes with the device.

        Args:
            over_processes: sums a tensor over the processes.
        """
        norm, sharpness, steps = over_processes(self._sums).tolist()
        self._sums.zero_()
        return {"ascent_grad_norm": norm / steps, "sharpness": sharpness / steps} if steps else {}
