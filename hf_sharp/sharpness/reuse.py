"""LookSAM: sharpness is computed every k-th step, and reused in the steps in between.

    every k-th step:        v = g_s − (⟨g, g_s⟩ / ‖g‖²) g
    the steps in between:   gradient = g + α ‖g‖ v / ‖v‖

Here g is the gradient at w, and g_s the sharpness-aware gradient of the same examples.

The part of g_s along g is already in g. The part orthogonal to g changes slowly; it is kept as a unit vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from hf_sharp.sharpness.ascent import global_norm, inner_product


class ReusedSharpness:
    """The direction that LookSAM keeps from one sharpness-aware step for the next steps; it observes the ascents.

    Args:
        alpha: α >= 0, the weight of the reused direction; 0.7 in the paper.
        device: the device of the parameters.
        average: averages gradients over processes, in place, so that v is the same on all of them.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> reused = ReusedSharpness(alpha=0.5)
        >>> reused.begin([w])
        >>> reused.at_w([w], [torch.tensor([2.0, 0.0])], torch.tensor(1.0), 1.0)  # g
        >>> w.grad = torch.tensor([3.0, 4.0])  # g_s; [0, 4] of it is orthogonal to g
        >>> reused.keep([w])
        >>> w.grad = torch.tensor([0.0, 10.0])  # the next step's g
        >>> reused.add([w]), w.grad
        (None, tensor([ 0., 15.]))

    Reference:
        Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization", arXiv 2203.02714, algorithm 1. Norms
        are over all parameters together.
    """

    def __init__(
        self,
        alpha: float,
        device: torch.device | str = "cpu",
        average: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        self.alpha, self.device, self.average = alpha, device, average
        self.direction: list[Tensor] | None = None  # v / ‖v‖
        self._plain: list[Tensor] | None = None  # g of the current step
        self._scale: Tensor | float = 1.0

    @torch.no_grad()
    def begin(self, parameters: Sequence[Tensor], scale: Tensor | float = 1.0) -> None:
        """Prepare for an ascent.

        Args:
            parameters: the trainable parameters; `.grad` holds the gradients of earlier micro-batches of the window.
            scale: the factor that turns the ascent's gradient, a mean, into a term of the window's gradient, a sum.
        """
        if self._plain is None:
            self._plain = [torch.zeros_like(parameter) for parameter in parameters]
        self._scale = scale
        self._add_gradients(parameters, -1.0)

    @torch.no_grad()
    def at_w(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float
    ) -> None:
        """Receive the ascent's gradient; the plain gradient g is this plus the clean pass's gradient in `.grad`."""
        self._add_gradients(parameters, 1.0)
        for total, gradient in zip(cast(list[Tensor], self._plain), gradients, strict=True):
            total.add_(gradient * self._scale)

    def at_epsilon(self, parameters: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float) -> None:
        """Do nothing: `.grad` will hold the gradient at w + ε."""

    @torch.no_grad()
    def keep(self, parameters: Sequence[Tensor]) -> None:
        """Keep v of the finished step, whose gradient is in `.grad`, unless that gradient overflowed."""
        plain, self._plain = cast(list[Tensor], self._plain), None
        if self.average is not None:
            self.average(plain)
        sharp = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        along = inner_product(plain, sharp) / inner_product(plain, plain)
        across = [s - along.to(g) * g for g, s in zip(plain, sharp, strict=True)]
        norm = global_norm(across)
        kept = self._direction_of(parameters) or [torch.zeros_like(p) for p in parameters]
        usable = norm.isfinite() & (norm > 0)
        self.direction = [torch.where(usable, v / norm.to(v), old) for v, old in zip(across, kept, strict=True)]

    @torch.no_grad()
    def add(self, parameters: Sequence[Tensor]) -> None:
        """Add α ‖g‖ v / ‖v‖ to the plain gradient g in `.grad`."""
        direction = self._direction_of(parameters)
        if direction is None:
            return
        pairs = [(p.grad, v) for p, v in zip(parameters, direction, strict=True) if p.grad is not None]
        gradients = [gradient for gradient, _ in pairs]
        length = self.alpha * global_norm(gradients)
        torch._foreach_add_(gradients, [length.to(v) * v for _, v in pairs])

    def _direction_of(self, parameters: Sequence[Tensor]) -> list[Tensor] | None:
        # If a callback has unfrozen layers, the list of parameters differs and v no longer fits.
        shapes = [parameter.shape for parameter in parameters]
        return self.direction if self.direction and [v.shape for v in self.direction] == shapes else None

    def restart(self) -> None:
        """Discard the gradients of a step that an error interrupted."""
        self._plain = None

    def _add_gradients(self, parameters: Sequence[Tensor], sign: float) -> None:
        for total, parameter in zip(cast(list[Tensor], self._plain), parameters, strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad, alpha=sign)

    def state_dict(self) -> dict[str, Any]:
        """Return v, for a checkpoint."""
        return {"direction": self.direction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: the state of a run with the same model.
        """
        direction = state["direction"]
        self.direction = None if direction is None else [v.to(self.device) for v in direction]
