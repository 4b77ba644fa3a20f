"""Class-aware momentum: Focal-SAM's and ImbSAM's objectives for one pass over every example.

Each example goes into the perturbed group with probability c_y, else into the clean group. ε follows a running mean of
the perturbed group's own gradients, which the step computes anyway:

    ε   = −ρ T² m / ‖T m‖
    g_c = ∇ Σ over the perturbed group (w + ε)          grad = g_c + ∇ Σ over the clean group (w)
    m   ← β m + (1 − β) g_c                             once per optimizer step

Given ε, the expected gradient over the draws is that of the objective. The sign is Momentum-SAM's: the weights move
ahead, in the direction in which training goes; with the opposite sign training collapses.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.sharpness.ascent import (
    global_norm,
    gradient_to_perturbation,
    gradients_in,
    perturbed,
    shards_only,
    trainable_parameters,
)
from hf_sharp.sharpness.passes import rows_of
from hf_sharp.sharpness.step import StepInputs


class ClassMomentum:
    """The running mean m of the perturbed group's gradients.

    Args:
        beta: β in [0, 1).
        device: where the parameters are.

    Example:
        >>> w, momentum = [torch.zeros(2)], ClassMomentum(beta=0.5)
        >>> momentum.add(w, [torch.tensor([2.0, 0.0])]), momentum.update()
        (None, None)
        >>> momentum.mean
        [tensor([1., 0.])]
    """

    def __init__(self, beta: float, device: torch.device | str = "cpu") -> None:
        self.beta, self.device = beta, device
        self.mean: list[Tensor] | None = None
        self._window: list[Tensor] | None = None  # the gradient of the accumulation window so far

    def restart(self) -> None:
        """Forget the gradient left over from a window that an error cut short."""
        self._window = None

    @torch.no_grad()
    def add(self, parameters: list[Tensor], gradients: list[Tensor | None], scale: Tensor | float = 1.0) -> None:
        """Add a micro-batch's gradient, times `scale`, to that of the window."""
        if self._window is None:
            self._window = [torch.zeros_like(parameter) for parameter in parameters]
        for total, gradient in zip(self._window, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient / scale)

    @torch.no_grad()
    def update(self, average: Any = None) -> None:
        """Move m by the window's gradient. A gradient that overflowed leaves m unchanged.

        Args:
            average: averages gradients over processes, in place, so that m is the same on all of them; or None.
        """
        window, self._window = self._window, None
        if window is None:
            return
        if average is not None:
            average(window)
        mean = self.of(window) or [torch.zeros_like(gradient) for gradient in window]
        finite = global_norm(window).isfinite()
        moved = torch._foreach_mul(mean, self.beta)  # FSDP2 of torch 2.11 does not know _foreach_lerp
        torch._foreach_add_(moved, window, alpha=1.0 - self.beta)
        self.mean = [torch.where(finite.to(old.device), new, old) for new, old in zip(moved, mean, strict=True)]

    def of(self, parameters: list[Tensor]) -> list[Tensor] | None:
        """Return m, if it belongs to these parameters: layers that a callback unfreezes make another list."""
        shapes = [parameter.shape for parameter in parameters]
        return self.mean if self.mean is not None and [m.shape for m in self.mean] == shapes else None

    def state_dict(self) -> dict[str, Any]:
        """Return m, for a checkpoint."""
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: from a run with the same model.
        """
        mean = state["mean"]
        self.mean = None if mean is None else [m.to(self.device) for m in mean]


class ClassMomentumAscent:
    """ε follows the running mean of the perturbed group's gradients. One pass over every example.

    On several processes, m is each process's own, as SAM's local ε is, and gradients are averaged once per step, as in
    plain training. `ascent_sync="global"` averages m too, for one more all-reduce per step.

    Args:
        engine: the `SharpnessEngine`: it divides micro-batches, and provides the loop.
    """

    needs_first_moment = False
    needs_same_passes = True  # exactly one backward pass of every process averages the gradients: the clean one

    def __init__(self, engine: Any) -> None:
        self.engine, self.loop = engine, engine.loop
        if (engine.planner.host_coefficients > 1).any():
            raise ValueError(
                "ascent='class_momentum' uses the coefficients as probabilities, but the largest is "
                f"{engine.planner.host_coefficients.max():.3g}. Lower focal_lambda to 1 or less."
            )
        if engine.planner.uniform:  # then no clean pass would average the gradients over processes
            raise ValueError(
                "ascent='class_momentum' needs coefficients below 1, but here every class has 1. Choose "
                "ascent='momentum'."
            )
        self.momentum = ClassMomentum(engine.options.ascent_momentum, engine.loop.device)
        self.state = self.momentum

    def restart(self) -> None:
        """Forget what is left over from a window that an error cut short."""
        self.momentum.restart()

    def step(self, given: StepInputs) -> Tensor:
        """Run the perturbed group's pass at w + ε, then the clean group's at w."""
        engine, loop = self.engine, self.loop
        model, inputs, host_labels, rho, num_examples = given
        waiting = engine.divide(inputs, host_labels)
        loop.begin_step(model)
        inputs = loop.prepare(inputs)
        labels = loop.labels(inputs)
        if num_examples is None:
            num_examples = (labels != IGNORED_LABEL).sum() * loop.num_processes
        weights = engine.planner.weights(labels) if waiting.drawn is None else engine.sent(waiting.drawn)
        modules, parameters = list(model.modules()), cast(list[Tensor], trainable_parameters(model))
        perturbed_rows, clean_rows, _ = waiting.division

        def run(rows: np.ndarray | None, weights: Tensor) -> Tensor:
            on_device = None if rows is None else engine.sent(torch.from_numpy(rows))
            losses = loop.losses(model, rows_of(inputs, on_device, len(labels)))
            loss = loop.reduce(losses * (weights if on_device is None else weights[on_device]), num_examples)
            loop.backward(loss)
            return loss.detach()

        loss = torch.zeros((), device=loop.device)
        with shards_only(modules):
            if waiting.division.is_perturbed:
                needs_clean_pass = clean_rows is None or len(clean_rows) > 0
                synchronized = nullcontext() if not needs_clean_pass else loop.without_sync(model)
                gradients: list[Tensor | None] = [None] * len(parameters)
                with self._moved(parameters, rho), synchronized, gradients_in(gradients, parameters):
                    loss = loss + run(perturbed_rows, weights)
                self._keep(parameters, gradients)
            if clean_rows is None or len(clean_rows):
                loss = loss + run(clean_rows, 1 - weights)
        if self.momentum.of(parameters) and engine.effect.is_due(loop.step):
            frozen = loop.frozen_loss()
            engine.effect.measure(
                model, lambda: loop.losses(model, inputs, frozen), moved=lambda: self._moved(parameters, rho)
            )
        if loop.window_ends:
            self.momentum.update(engine.average)
        return loss

    def _moved(self, parameters: list[Tensor], rho: Tensor | float) -> Any:
        mean = self.momentum.of(parameters)
        if mean is None:  # before the first update
            return nullcontext()
        epsilon = [m.clone() for m in mean]
        gradient_to_perturbation(parameters, epsilon, -rho, **self.engine.metric)
        return perturbed(parameters, epsilon)

    def _keep(self, parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
        self.momentum.add(parameters, gradients, self.loop.grad_scale)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
