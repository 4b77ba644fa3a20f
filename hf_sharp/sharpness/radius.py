"""The radius ρ of the ascent, over the course of training: constant, scheduled, or learned (LETS).

LETS chooses the ρ whose next weights θ'(ρ) = θ − η ∇L_train(θ + ρ ê) do best on validation data; ê is the unit ascent:

    alignment   U = −cos(∇L_val(θ'), g)             dU/dρ = −(v − (vᵀu) u)ᵀ H ê / ‖g‖,   v and u of ∇L_val and g, unit
    gap         U = ½ (L_val(θ') − L_train(θ'))²    dU/dρ = −η (L_val − L_train) (∇L_val − ∇L_train)ᵀ H ê
    validation  U = L_val(θ')                       dU/dρ = −η ∇L_valᵀ H ê
    g = ∇L_train(θ + ρ ê)     H = ∇²L_train(θ + ρ ê)     ρ = ρ_0 exp(s)

For the alignment, only g is differentiated: ∇L_val depends on ρ through θ', but that term is of order η and left out.

    adam  s ← s − Adam(ρ dU/dρ)          with the gap: the algorithm as published
    sign  s ← s − Adam(sign(dU/dρ))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_sharp.registry.nearest import check_name
from hf_sharp.sharpness.ascent import gradient_to_perturbation, inner_product

# The weight of rho, with rho_end having the rest, as a function of the fraction of training done.
RHO_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 1.0,
    "learned": lambda progress: 1.0,  # the value that LearnedRadius starts from
}
RHO_UPDATES = ("sign", "adam")
RHO_HESSIANS = ("exact", "secant", "fisher")
RHO_OBJECTIVES = ("alignment", "gap", "validation")
RHO_RANGE = (1e-4, 10.0)


def scheduled_rho(
    rho: float, schedule: str, progress: float, rho_end: float = 0.0, rho_steps: Mapping[float, float] | None = None
) -> float:
    """Compute the radius at a point of training.

        constant: ρ        linear: ρ + (ρ_end − ρ) t        cosine: ρ_end + (ρ − ρ_end) (1 + cos πt) / 2
        step: the value of the latest step that has begun; ρ before the first step

    Args:
        rho: ρ >= 0, the radius at the start, an L2 norm over all trainable parameters.
        schedule: one of `RHO_SCHEDULES`.
        progress: t, the fraction of training done; a value outside [0, 1] counts as the nearer end.
        rho_end: ρ_end >= 0, the radius at the end; it may be larger than ρ, as in Focal-SAM's experiments.
        rho_steps: fraction of training to radius, for the schedule `step`.

    Returns:
        The radius.

    Raises:
        ValueError: the schedule is unknown.

    Example:
        >>> scheduled_rho(0.1, "linear", 0.25), scheduled_rho(0.1, "linear", 0.5, rho_end=0.3)
        (0.07500000000000001, 0.2)
        >>> [scheduled_rho(0.05, "step", t, rho_steps={0.5: 0.1, 0.8: 0.5}) for t in (0.2, 0.5, 0.9)]
        [0.05, 0.1, 0.5]
    """
    check_name("rho_schedule", schedule, RHO_SCHEDULES)
    progress = min(max(progress, 0.0), 1.0)
    begun = [start for start in rho_steps or () if progress >= start]
    if begun and rho_steps:
        return rho_steps[max(begun)]
    weight = RHO_SCHEDULES[schedule](progress)
    return rho * weight + rho_end * (1.0 - weight)


def hessian_direction(
    kind: str,
    loss: Tensor,
    parameters: Sequence[Tensor],
    *,
    rho: Tensor,
    gradients: Sequence[Tensor] = (),
    unit: Sequence[Tensor] = (),
    grad_scale: Tensor | float = 1.0,
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute H ê, the derivative with respect to ρ of the gradient at θ + ρ ê, and that gradient.

        exact: ∇(∇L · ê)        secant: (∇L(θ + ρ ê) − ∇L(θ)) / ρ        fisher: ∇L ⊙ ∇L ⊙ ê

    Args:
        kind: one of `RHO_HESSIANS`.
        loss: L at θ + ρ ê, a scalar; its graph is kept.
        parameters: θ + ρ ê.
        rho: ρ > 0, 0-dimensional; used by the secant.
        gradients: ∇L(θ), one tensor per parameter; used by the secant.
        unit: ê = T² g / ‖T g‖, one tensor per parameter; used by `exact` and `fisher`.
        grad_scale: the factor of float16 loss scaling in the backward pass; the results do not contain it.

    Returns:
        H ê and ∇L(θ + ρ ê), each with one tensor per parameter; zeros for a parameter that the loss does not depend on.

    Example:
        >>> w = torch.tensor([3.0], requires_grad=True)  # L = w³, H = 6 w, at w = 3
        >>> hessian_direction("exact", (w**3).sum(), [w], rho=torch.tensor(1.0), unit=[torch.ones(1)])
        ([tensor([18.])], [tensor([27.])])

    Reference:
        LETS arXiv 2408.08222; `fisher` is its diagonal approximation.
    """
    inputs, exact = list(parameters), kind == "exact"

    def unscaled(found: Sequence[Tensor | None]) -> list[Tensor]:
        pairs = zip(found, inputs, strict=True)
        return [torch.zeros_like(w) if g is None else g.detach() / grad_scale for g, w in pairs]

    found = torch.autograd.grad(loss * grad_scale, inputs, retain_graph=True, create_graph=exact, allow_unused=True)
    here = unscaled(found)
    if exact:
        product = torch.stack([(g * e).sum() for g, e in zip(found, unit, strict=True) if g is not None]).sum()
        return unscaled(torch.autograd.grad(product, inputs, retain_graph=True, allow_unused=True)), here
    if kind == "secant":
        return [(g - old) / rho.to(g) for g, old in zip(here, gradients, strict=True)], here
    return [g * g * e for g, e in zip(here, unit, strict=True)], here


def radius_derivative(
    objective: str,
    learning_rate: float,
    losses: tuple[Tensor, Tensor],
    gradients: tuple[Sequence[Tensor], Sequence[Tensor]],
    direction: Sequence[Tensor],
    step: Sequence[Tensor] = (),
) -> Tensor:
    """Compute dU/dρ after a step of size η along −∇L_train(θ + ρ ê).

    `validation` rewards a longer step: a larger ρ makes the gradient longer, although Adam ignores its length. `gap` is
    a product of two noisy differences. `alignment` depends only on how well the direction of the step agrees with the
    validation gradient after the step, which is held fixed.

    Args:
        objective: one of `RHO_OBJECTIVES`.
        learning_rate: η of that step.
        losses: L_val(θ') and L_train(θ'), scalars.
        gradients: the gradients of both losses at θ', each with one tensor per parameter.
        direction: H ê of that step, as `hessian_direction` returns it.
        step: g = ∇L_train(θ + ρ ê), one tensor per parameter; only used by `alignment`.

    Returns:
        dU/dρ, a 0-dimensional tensor.

    Reference:
        LETS arXiv 2408.08222, equations 6 to 8; `validation` and `alignment` are our own, because underfitting both
        sets also closes the gap.
    """
    validation, training = (inner_product(side, direction) for side in gradients)
    if objective == "alignment":
        square, length = inner_product(step, step), inner_product(gradients[0], gradients[0]).sqrt()
        across = validation - inner_product(gradients[0], step) * inner_product(step, direction) / square
        return -across / (length * square.sqrt())
    if objective == "validation":
        return -learning_rate * validation
    return -learning_rate * (losses[0] - losses[1]) * (validation - training)


class LearnedRadius:
    """A learned radius: observes the ascents of a training, and updates ρ from some of them.

    An update takes two optimizer steps. In the first step, `watch` makes it keep H ê of the next ascent. Before the
    ascent of the second step, at θ', `validate` provides the validation half; that ascent's gradient is the training
    half. As in the ascent, all losses and gradients are weighted by the examples' coefficients.

    Args:
        rho: ρ_0 > 0, the radius at the start.
        learning_rate: the learning rate of Adam on log ρ; 0 keeps ρ exactly constant.
        hessian: one of `RHO_HESSIANS`.
        objective: one of `RHO_OBJECTIVES`.
        update: one of `RHO_UPDATES`: Adam sees the derivative, or its sign.
        adaptive_eta: as in the ascent.
        adaptive_scope: as in the ascent.
        device: the device of the parameters.
        mean: averages a 0-dimensional tensor over processes, so that all processes have the same ρ.
        average: averages gradients over processes, in place; None if the ascent's gradients are not averaged.

    Example:
        >>> radius = LearnedRadius(0.05, learning_rate=0.1)
        >>> radius.update(torch.tensor(2.0))  # U grows with ρ, so that ρ shrinks: Adam's first step is its rate
        >>> round(radius.rho.item(), 4) == round(0.05 * math.exp(-0.1), 4)
        True
    """

    def __init__(
        self,
        rho: float,
        learning_rate: float,
        *,
        hessian: str = "secant",
        objective: str = "alignment",
        update: str = "sign",
        adaptive_eta: float | None = None,
        adaptive_scope: str = "matrices",
        device: torch.device | str = "cpu",
        mean: Callable[[Tensor], Tensor] = lambda value: value,
        average: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        self.initial, self.hessian, self.objective, self.rule = rho, hessian, objective, update
        self.metric: dict[str, Any] = {"adaptive_eta": adaptive_eta, "adaptive_scope": adaptive_scope}
        self.mean, self.average = mean, average
        precise = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.log_scale = torch.zeros((), dtype=precise, device=device)
        self.adam = torch.optim.Adam([self.log_scale], lr=learning_rate)
        self.derivative = torch.zeros_like(self.log_scale)
        self.draws = 0
        self.direction: list[Tensor] | None = None  # H ê
        self.step: list[Tensor] = []  # ∇L_train(θ + ρ ê), if the objective uses it
        self.watched = -1
        self._learning_rate = 0.0
        self._watch: float | None = None
        self._rho_now = self.rho  # the radius of the current ascent
        self._kept: list[Tensor] = []
        self._validation: tuple[Tensor, list[Tensor]] | None = None

    @property
    def rho(self) -> Tensor:
        """The radius ρ, a 0-dimensional tensor on the device."""
        return self.initial * self.log_scale.exp()

    def watch(self, step: int, learning_rate: float) -> None:
        """Prepare an update from the next ascent, given the current step and the optimizer's learning rate in it."""
        self.watched, self._watch = step, learning_rate

    def validate(self, loss: Tensor, gradients: list[Tensor]) -> None:
        """Receive the validation half at θ': L_val and its gradient, one tensor per parameter of the ascent."""
        self._validation = loss, gradients
        self.draws += 1

    def at_w(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float
    ) -> None:
        """Receive an ascent's loss, and its gradient times `grad_scale` before the gradient is turned into ε."""
        self._rho_now = self.rho
        if [half.shape for half in self.direction or ()] != [gradient.shape for gradient in gradients]:
            self.drop_half()  # the parameters changed: a callback has unfrozen layers
        if self.direction is not None and self._validation is not None:
            if self.average is not None:
                self.average([*self.direction, *self.step])
            validation, of_validation = self._validation
            training = [gradient / grad_scale for gradient in gradients]
            losses, halves = (validation, loss), (of_validation, training)
            self.update(
                radius_derivative(self.objective, self._learning_rate, losses, halves, self.direction, self.step)
            )
        self.drop_half()
        self._kept = []
        if self._watch is not None:
            self._learning_rate, self._watch = self._watch, None
            self._kept = [gradient / grad_scale for gradient in gradients]
            if self.hessian != "secant":
                gradient_to_perturbation(parameters, self._kept, 1.0, **self.metric)

    def at_epsilon(self, parameters: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float) -> None:
        """Receive the loss of a micro-batch at w + ε, whose graph must be kept."""
        if not self._kept:
            return
        more, here = hessian_direction(
            self.hessian,
            loss,
            parameters,
            rho=self._rho_now,
            gradients=self._kept,
            unit=self._kept,
            grad_scale=grad_scale,
        )
        here = here if self.objective == "alignment" else []
        if self.direction is None:
            self.direction, self.step = more, here
        else:
            torch._foreach_add_([*self.direction, *self.step], [*more, *here])
        if self.hessian == "secant":  # the first difference contains the gradients at w of all micro-batches
            torch._foreach_zero_(self._kept)

    def drop_half(self) -> None:
        """Drop the first half of an update that cannot be completed."""
        self.direction, self.step, self._validation = None, [], None

    def update(self, derivative: Tensor) -> None:
        """Take a step of Adam on s = log ρ, down dU/ds = ρ dU/dρ or its sign.

        Args:
            derivative: dU/dρ, 0-dimensional; 0 is used if it is not finite (overflow, no examples in the ascent).
        """
        derivative = derivative.to(self.log_scale)
        self.derivative = self.mean(torch.where(derivative.isfinite(), derivative, 0))
        # On our tasks the derivative's magnitude is noise: a few batches in a hundred dominate it. Hence "sign".
        self.log_scale.grad = self.derivative.sign() if self.rule == "sign" else self.rho * self.derivative
        self.adam.step()
        low, high = (math.log(bound / self.initial) for bound in RHO_RANGE)
        self.log_scale.clamp_(min(low, 0.0), max(high, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: ρ, Adam's moments, the validation draws, and a half-finished update."""
        return {
            "log_scale": self.log_scale,
            "adam": self.adam.state_dict(),
            "draws": self.draws,
            "direction": self.direction,
            "step": self.step,
            "watched": self.watched,
            "learning_rate": self._learning_rate,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the state of a `LearnedRadius` with the same options.
        """
        self.log_scale.copy_(state["log_scale"])
        self.adam.load_state_dict(state["adam"])
        self.draws, self.watched, self._learning_rate = state["draws"], state["watched"], state["learning_rate"]
        device = self.log_scale.device
        self.direction = None if state["direction"] is None else [d.to(device) for d in state["direction"]]
        self.step = [g.to(device) for g in state["step"]]
