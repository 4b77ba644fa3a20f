"""The radius ρ of the ascent, over the course of training: constant, scheduled, or learned (LETS).

LETS chooses the ρ whose next weights θ'(ρ) = θ − η ∇L_train(θ + ρ ê) do best on validation data, ê the unit ascent:

    gap         U = ½ (L_val(θ') − L_train(θ'))²    dU/dρ = −η (L_val − L_train) (∇L_val − ∇L_train)ᵀ H ê
    validation  U = L_val(θ')                       dU/dρ = −η ∇L_valᵀ H ê           H = ∇²L_train(θ + ρ ê)
    ρ = ρ_0 exp(s),   s ← s − Adam(ρ · dU/dρ)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sharp.sharpness.ascent import gradient_to_perturbation

RHO_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
    "learned": lambda progress: 1.0,  # where LearnedRadius begins
}
RHO_HESSIANS = ("exact", "secant", "fisher")
RHO_OBJECTIVES = ("gap", "validation")
RHO_RANGE = (1e-4, 10.0)


def scheduled_rho(rho: float, schedule: str, progress: float) -> float:
    """Give the radius at a point of training.

        constant: ρ        linear: ρ (1 − t)        cosine: ρ (1 + cos πt) / 2

    Args:
        rho: ρ >= 0, the radius at the start, an L2 norm over all trainable parameters.
        schedule: one of `RHO_SCHEDULES`.
        progress: t, the fraction of training done; beyond [0, 1] it counts as the nearer end.

    Returns:
        The radius, a number on the host.

    Raises:
        ValueError: an unknown schedule.

    Example:
        >>> scheduled_rho(0.1, "linear", 0.25), scheduled_rho(0.1, "cosine", 0.5)
        (0.07500000000000001, 0.05)
    """
    if schedule not in RHO_SCHEDULES:
        raise ValueError(f"unknown rho_schedule {schedule!r}; the schedules are {', '.join(RHO_SCHEDULES)}.")
    return rho * RHO_SCHEDULES[schedule](min(max(progress, 0.0), 1.0))


def hessian_direction(
    kind: str,
    loss: Tensor,
    parameters: Sequence[Tensor],
    *,
    rho: Tensor,
    gradients: Sequence[Tensor] = (),
    unit: Sequence[Tensor] = (),
    grad_scale: Tensor | float = 1.0,
) -> list[Tensor]:
    """Compute H ê: how the gradient at θ + ρ ê changes with ρ.

        exact: ∇(∇L · ê)        secant: (∇L(θ + ρ ê) − ∇L(θ)) / ρ        fisher: ∇L ⊙ ∇L ⊙ ê

    Args:
        kind: one of `RHO_HESSIANS`.
        loss: L at θ + ρ ê, a scalar with its graph, which is kept.
        parameters: θ + ρ ê.
        rho: ρ > 0, 0-dimensional; the secant reads it.
        gradients: ∇L(θ), of the parameters' shapes; the secant reads them.
        unit: ê = T² g / ‖T g‖, of the parameters' shapes; the other two read it.
        grad_scale: what the loss is multiplied by on its way back (float16 loss scaling); it cancels.

    Returns:
        One tensor per parameter; zeros for one that the loss does not reach.

    Example:
        >>> w = torch.tensor([3.0], requires_grad=True)  # L = w³, H = 6 w, at w = 3
        >>> hessian_direction("exact", (w**3).sum(), [w], rho=torch.tensor(1.0), unit=[torch.ones(1)])
        [tensor([18.])]

    Reference:
        LETS arXiv 2408.08222; `fisher` is the diagonal approximation that it uses.
    """
    inputs, exact = list(parameters), kind == "exact"
    found = torch.autograd.grad(loss * grad_scale, inputs, retain_graph=True, create_graph=exact, allow_unused=True)
    if exact:
        product = torch.stack([(g * e).sum() for g, e in zip(found, unit, strict=True) if g is not None]).sum()
        found = torch.autograd.grad(product, inputs, retain_graph=True, allow_unused=True)
    here = [
        torch.zeros_like(parameter) if g is None else g.detach() / grad_scale
        for g, parameter in zip(found, inputs, strict=True)
    ]
    if kind == "secant":
        return [(g - old) / rho.to(g) for g, old in zip(here, gradients, strict=True)]
    return here if exact else [g * g * e for g, e in zip(here, unit, strict=True)]


def radius_derivative(
    objective: str,
    learning_rate: float,
    losses: tuple[Tensor, Tensor],
    gradients: tuple[Sequence[Tensor], Sequence[Tensor]],
    direction: Sequence[Tensor],
) -> Tensor:
    """Compute dU/dρ after a step of size η along −∇L_train(θ + ρ ê).

    Args:
        objective: one of `RHO_OBJECTIVES`.
        learning_rate: η of that step.
        losses: L_val(θ') and L_train(θ'), scalars.
        gradients: of both at θ', one tensor per parameter each.
        direction: H ê of that step, as `hessian_direction` gives it.

    Returns:
        A 0-dimensional tensor.

    Reference:
        LETS arXiv 2408.08222, equations 6 to 8; `validation` is ours: a gap can also be closed by underfitting both
        sides.
    """
    validation, training = (
        torch.stack([(g * d).sum() for g, d in zip(side, direction, strict=True)]).sum() for side in gradients
    )
    if objective == "validation":
        return -learning_rate * validation
    return -learning_rate * (losses[0] - losses[1]) * (validation - training)


def drawn_rows(number: int, batch_size: int, examples: int, seed: int) -> np.ndarray:
    """Give the rows of the n-th batch of an endless draw without replacement: a new order whenever all have been drawn.

    Args:
        number: n >= 0.
        batch_size: rows in a batch.
        examples: how many there are to draw from.
        seed: of the orders.

    Returns:
        (batch_size,) int64.

    Example:
        >>> first, second = drawn_rows(0, 3, 6, seed=0), drawn_rows(1, 3, 6, seed=0)
        >>> sorted([*first.tolist(), *second.tolist()])
        [0, 1, 2, 3, 4, 5]
    """
    rounds, rows = np.divmod(np.arange(number * batch_size, (number + 1) * batch_size), examples)
    orders = {r: np.random.default_rng((seed, r)).permutation(examples) for r in np.unique(rounds).tolist()}
    return np.array([orders[r][row] for r, row in zip(rounds.tolist(), rows.tolist(), strict=True)])


class LearnedRadius:
    """A radius that learns itself: watches the ascents of a training, and updates ρ from some of them.

    An update takes two steps. In the first, `watch` makes it keep H ê of the ascent that follows. Before the ascent of
    the second, at θ', `validate` gives it the validation half; that ascent's own gradient is the training half. Losses
    and gradients are those of the examples' losses times their coefficients, as the ascent sees them.

    Args:
        rho: ρ_0 > 0, the radius to begin with.
        learning_rate: Adam's, on log ρ; 0 leaves ρ as it is, to the last bit.
        hessian: one of `RHO_HESSIANS`.
        objective: one of `RHO_OBJECTIVES`.
        adaptive_eta: as the ascent has it.
        device: where the parameters are.
        mean: averages a 0-dimensional tensor over processes, so that ρ is one number.

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
        objective: str = "gap",
        adaptive_eta: float | None = None,
        device: torch.device | str = "cpu",
        mean: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        self.initial, self.hessian, self.objective, self.adaptive_eta = rho, hessian, objective, adaptive_eta
        self.mean = mean
        precise = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.log_scale = torch.zeros((), dtype=precise, device=device)
        self.adam = torch.optim.Adam([self.log_scale], lr=learning_rate)
        self.derivative = torch.zeros_like(self.log_scale)
        self.draws = 0
        self.direction: list[Tensor] | None = None
        self._learning_rate = 0.0
        self._watch: float | None = None
        self._kept: list[Tensor] = []
        self._validation: tuple[Tensor, list[Tensor]] | None = None

    @property
    def rho(self) -> Tensor:
        """ρ, 0-dimensional, on the device."""
        return self.initial * self.log_scale.exp()

    def watch(self, learning_rate: float) -> None:
        """Prepare an update from the ascent that follows, whose step the optimizer takes with this learning rate."""
        self._watch = learning_rate

    def validate(self, loss: Tensor, gradients: list[Tensor]) -> None:
        """Take the validation half at θ': L_val, and its gradient, one tensor per parameter of the ascent."""
        self._validation = loss, gradients
        self.draws += 1

    def at_w(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float
    ) -> None:
        """See the gradient, times `grad_scale`, and the loss of an ascent, before the one becomes ε."""
        if self.direction is not None and self._validation is not None:
            validation, of_validation = self._validation
            training = [gradient / grad_scale for gradient in gradients]
            losses, halves = (validation, loss), (of_validation, training)
            self.update(radius_derivative(self.objective, self._learning_rate, losses, halves, self.direction))
        self.direction = self._validation = None
        self._kept = []
        if self._watch is not None:
            self._learning_rate, self._watch = self._watch, None
            self._kept = [gradient / grad_scale for gradient in gradients]
            if self.hessian != "secant":
                gradient_to_perturbation(parameters, self._kept, 1.0, self.adaptive_eta)

    def at_epsilon(self, parameters: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float) -> None:
        """See the loss of a micro-batch at w + ε, with its graph, which is kept."""
        if not self._kept:
            return
        more = hessian_direction(
            self.hessian,
            loss,
            parameters,
            rho=self.rho,
            gradients=self._kept,
            unit=self._kept,
            grad_scale=grad_scale,
        )
        if self.direction is None:
            self.direction = more
        else:
            torch._foreach_add_(self.direction, more)
        if self.hessian == "secant":  # the gradients at w of all micro-batches are in the first one's difference
            torch._foreach_zero_(self._kept)

    def update(self, derivative: Tensor) -> None:
        """Take a step of Adam on log ρ.

        Args:
            derivative: dU/dρ; one that is not finite, after an overflow, counts as 0.
        """
        derivative = self.mean(derivative.to(self.log_scale))
        self.derivative = torch.where(derivative.isfinite(), derivative, 0)
        self.log_scale.grad = self.rho * self.derivative
        self.adam.step()
        low, high = (math.log(bound / self.initial) for bound in RHO_RANGE)
        self.log_scale.clamp_(min(low, 0.0), max(high, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: ρ, Adam's moments, the place in the validation order, and an update half done."""
        return {
            "log_scale": self.log_scale,
            "adam": self.adam.state_dict(),
            "draws": self.draws,
            "direction": self.direction,
            "learning_rate": self._learning_rate,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Args:
            state: of a radius with the same options.
        """
        self.log_scale.copy_(state["log_scale"])
        self.adam.load_state_dict(state["adam"])
        self.draws, self._learning_rate = state["draws"], state["learning_rate"]
        device = self.log_scale.device
        self.direction = None if state["direction"] is None else [d.to(device) for d in state["direction"]]
