"""The kinds of ascent: each turns one micro-batch into a gradient in `.grad`.

gradient   ε follows the gradient of the perturbed examples (SAM and its variants)
momentum   ε follows the optimizer's first moment, which needs no extra pass (Momentum-SAM)
reused     every k-th step is sharpness-aware; the steps in between reuse what it added (LookSAM)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.sharpness.ascent import (
    first_moments,
    gradient_to_perturbation,
    perturbed,
    shards_only,
    trainable_parameters,
    with_gradients,
)
from hf_sharp.sharpness.passes import Division, rows_of
from hf_sharp.sharpness.reuse import ReusedSharpness
from hf_sharp.sharpness.step import AscentObserver, Examples, MicroBatch, sharpness_aware_backward


class StepInputs(NamedTuple):
    """The inputs of one micro-batch's step.

    Attributes:
        model: the model, as wrapped for training.
        inputs: the micro-batch, with `labels`.
        host_labels: (N,) its labels on the host, or None.
        rho: ρ > 0, the radius; a learned radius is a tensor on the device.
        num_examples: the number of examples in the accumulation window, over all processes, or None.
    """

    model: nn.Module
    inputs: dict[str, Any]
    host_labels: np.ndarray | None
    rho: Tensor | float
    num_examples: Any


class Waiting(NamedTuple):
    """A micro-batch that waits for its passes, with its division and the coefficients drawn for its examples."""

    inputs: dict[str, Any]
    division: Division
    drawn: Tensor | None


class Ascent(Protocol):
    """The interface of a kind of ascent."""

    needs_first_moment: bool

    def restart(self) -> None:
        """Discard the state of an accumulation window that an error interrupted."""

    def step(self, given: StepInputs) -> Tensor:
        """Add the gradient of one micro-batch to `.grad`, as `SharpnessEngine.step` describes."""


class GradientAscent:
    """ε follows the gradient of the perturbed examples of a micro-batch, or of a whole accumulation window.

    Args:
        engine: the `SharpnessEngine`, which divides micro-batches and provides the radius and the training loop.
    """

    needs_first_moment = False

    def __init__(self, engine: Any) -> None:
        self.engine, self.loop = engine, engine.loop
        self.one_window = engine.options.ascent_scope == "window"
        self.observer: AscentObserver | None = engine.reused or engine.learned_radius
        self.window: list[Waiting] = []  # micro-batches that wait for the rest of their accumulation window

    def restart(self) -> None:
        """Discard the waiting micro-batches of an accumulation window that an error interrupted."""
        self.window = []

    def step(self, given: StepInputs) -> Tensor:
        """Run the passes of a micro-batch, or put it aside until its window is complete."""
        loop = self.loop
        model, inputs, host_labels, rho, num_examples = given
        waiting = self.engine.divide(inputs, host_labels)
        if not (self.one_window or waiting.division.is_perturbed):
            return loop.plain_step(model, inputs, num_examples)
        window = [*self.window, waiting]
        if self.one_window and not loop.window_ends:
            self.window = window
            return torch.zeros((), device=loop.device)  # the window's last micro-batch returns the loss of all
        self.window = []
        if not any(waiting.division.is_perturbed for waiting in window):
            return self._plain_steps(model, [waiting.inputs for waiting in window], num_examples)
        return self._sharp_step(model, window, rho, num_examples)

    def _plain_steps(self, model: nn.Module, window: list[dict[str, Any]], num_examples: Any) -> Tensor:
        losses = []
        for inputs in window:
            with nullcontext() if inputs is window[-1] else self.loop.without_sync(model):
                losses.append(self.loop.plain_step(model, inputs, num_examples))
        return torch.stack(losses).sum()

    def _sharp_step(self, model: nn.Module, window: list[Waiting], rho: Tensor | float, num_examples: Any) -> Tensor:
        engine, loop = self.engine, self.loop
        loop.begin_step(model)
        engine.prepare_radius(model)
        micro_batches, counted = [], torch.zeros((), dtype=torch.long, device=loop.device)
        for waiting in window:
            inputs = loop.prepare(waiting.inputs)
            counted += (loop.labels(inputs) != IGNORED_LABEL).sum()
            micro_batches.append(self._micro_batch(model, inputs, waiting))
        if engine.shares_epsilon:
            counted = loop.over_processes(counted.float(), "mean")
        if num_examples is None:
            num_examples = counted * loop.counted_processes
        counted = counted.clamp(min=1)
        if engine.reused is not None:
            engine.reused.begin(trainable_parameters(model), loop.reduce(counted, num_examples))
        step = sharpness_aware_backward(
            model,
            micro_batches,
            rho,
            reduce=lambda losses: loop.reduce(losses, num_examples),
            mean=lambda losses: losses.sum() / counted.to(losses.dtype),
            backward=loop.backward,
            grad_scale=loop.grad_scale,
            **engine.metric,
            without_sync=lambda: loop.without_sync(model),
            average=engine.average,
            measure_vanishing=engine.measures_vanishing,
            observer=self.observer,
        )
        self.engine.means.add(step.ascent_grad_norm, step.sharpness)
        self.engine.report_vanishing(step.vanishing)
        if engine.effect.is_due(loop.step):
            self._measure_effect(model, micro_batches, step.sharpness * counted)
        return step.loss

    def _measure_effect(self, model: nn.Module, micro_batches: list[MicroBatch], change: Tensor) -> None:
        """Measure the effect of ε; `change` is the sum of c_y (ℓ(w + ε) − ℓ(w)) over the ascent's examples."""
        parts = [(batch.losses, *batch.ascent) for batch in micro_batches if batch.perturbed is not None]
        examples = sum(len(weights) for _, _, weights in parts)
        if examples < 2:  # the noise between examples is unknown; the next step may have more examples
            return
        self.engine.effect.measure(
            model, lambda: torch.cat([weights * losses(rows) for losses, rows, weights in parts]), change / examples
        )

    def _micro_batch(self, model: nn.Module, inputs: Mapping[str, Any], waiting: Waiting) -> MicroBatch:
        engine, loop = self.engine, self.loop
        labels = loop.labels(inputs)
        coefficients = engine.planner.weights(labels) if waiting.drawn is None else engine.sent(waiting.drawn)
        perturbed_rows, clean_rows, ascent_size = waiting.division

        def examples(rows: np.ndarray | None, weights: Tensor) -> Examples | None:
            if rows is None:
                return Examples(None, weights)
            on_device = engine.sent(torch.from_numpy(rows))
            return Examples(on_device, weights[on_device]) if len(rows) else None

        frozen: list[Any] = []  # the loss in its state at the first pass, for the later passes

        def losses(rows: Tensor | None) -> Tensor:
            chosen = rows_of(inputs, rows, len(labels))
            if frozen:
                return loop.losses(model, chosen, frozen[0])
            frozen.append(loop.frozen_loss())
            return loop.losses(model, chosen)  # updates the state of the loss, if it has one

        perturbed_examples = examples(perturbed_rows, coefficients)
        return MicroBatch(losses, perturbed_examples, examples(clean_rows, 1 - coefficients), ascent_size)


class MomentumAscent:
    """ε follows the optimizer's first moment m: ε = −ρ m / ‖m‖, the direction in which training moves. One pass.

    Args:
        engine: the `SharpnessEngine`, which provides the training loop.

    Reference:
        Momentum-SAM arXiv 2401.12033, algorithm 1.
    """

    needs_first_moment = True

    def __init__(self, engine: Any) -> None:
        self.engine, self.loop = engine, engine.loop

    def restart(self) -> None:
        """Do nothing: this ascent has no state that lasts over micro-batches."""

    def step(self, given: StepInputs) -> Tensor:
        """Run one plain step at the moved weights."""
        model, inputs, _, rho, num_examples = given
        with shards_only(model.modules()):
            parameters = trainable_parameters(model)
            moved, momentum = with_gradients(parameters, first_moments(self.loop.optimizer, parameters))
            if momentum:  # empty before the first optimizer step
                gradient_to_perturbation(moved, momentum, -rho, **self.engine.metric)
            if momentum and self.engine.effect.is_due(self.loop.step):
                prepared, frozen = self.loop.prepare(inputs), self.loop.frozen_loss()
                self.engine.effect.measure(
                    model,
                    lambda: self.loop.losses(model, prepared, frozen),
                    moved=lambda: perturbed(moved, [change.clone() for change in momentum]),
                )
            with perturbed(moved, momentum) if momentum else nullcontext():
                return self.loop.plain_step(model, inputs, num_examples)


class ReusedAscent:
    """Every k-th step ascends; the steps in between add the direction that it kept to the plain gradient (LookSAM).

    Args:
        ascent: the ascent of every k-th step.
        reused: the direction that is kept for the steps in between.
    """

    needs_first_moment = False

    def __init__(self, ascent: Any, reused: ReusedSharpness) -> None:
        self.ascent, self.reused, self.every = ascent, reused, ascent.engine.options.sharpness_every

    def restart(self) -> None:
        """Discard the state of an accumulation window that an error interrupted."""
        self.ascent.restart()
        self.reused.restart()

    def step(self, given: StepInputs) -> Tensor:
        """Ascend, or reuse the kept direction."""
        loop = self.ascent.loop
        ascends = loop.step % self.every == 0
        loss = self.ascent.step(given) if ascends else loop.plain_step(given.model, given.inputs, given.num_examples)
        if loop.window_ends:
            parameters = trainable_parameters(given.model)
            self.reused.keep(parameters) if ascends else self.reused.add(parameters)
        return loss


#: The kinds of ascent that `SharpTrainingArguments(ascent=...)` names.
ASCENTS: dict[str, Any] = {"gradient": GradientAscent, "momentum": MomentumAscent}
