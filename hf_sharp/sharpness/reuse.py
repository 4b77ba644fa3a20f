"""LookSAM: sharpness computed every k-th step, and what it added reused in the steps between.

    v = g_s − (⟨g, g_s⟩ / ‖g‖²) g        g at w, g_s the sharpness-aware gradient, of the same examples; every k-th step
    gradient = g + α ‖g‖ v / ‖v‖         the steps between

What sharpness adds along g is in g already; what it adds across it changes slowly, and is kept as a unit vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from hf_sharp.sharpness.ascent import global_norm, inner_product


class ReusedSharpness:
    """What LookSAM keeps from one sharpness-aware step for the steps that follow. An observer of the ascents.

    Args:
        alpha: α >= 0, how strongly it is reused; 0.7 is the paper's.
        device: where the parameters are.
        average: averages gradients over processes, in place, so that v is the same on all of them.

    Example:
        >>> w = torch.zeros(2, requires_grad=True)
        >>> reused = ReusedSharpness(alpha=0.5)
        >>> reused.begin([w])
        >>> reused.at_w([w], [torch.tensor([2.0, 0.0])], torch.tensor(1.0), 1.0)  # g
        >>> w.grad = torch.tensor([3.0, 4.0])  # g_s: [0, 4] of it are across g
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
        self._plain: list[Tensor] | None = None  # g of the step under way
        self._scale: Tensor | float = 1.0

    @torch.no_grad()
    def begin(self, parameters: Sequence[Tensor], scale: Tensor | float = 1.0) -> None:
        """Prepare for an ascent.

        Args:
            parameters: the trainable ones; `.grad` holds what earlier micro-batches of the window added.
            scale: what the ascent's gradient is multiplied by in the step's, a mean in a sum over the window.
        """
        if self._plain is None:
            self._plain = [torch.zeros_like(parameter) for parameter in parameters]
        self._scale = scale
        self._add_gradients(parameters, -1.0)

    @torch.no_grad()
    def at_w(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float
    ) -> None:
        """See the ascent's gradient; with what the clean pass left in `.grad`, it is the plain gradient."""
        self._add_gradients(parameters, 1.0)
        for total, gradient in zip(cast(list[Tensor], self._plain), gradients, strict=True):
            total.add_(gradient * self._scale)

    def at_epsilon(self, parameters: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float) -> None:
        """See nothing: the gradient at w + ε is in `.grad` in the end."""

    @torch.no_grad()
    def keep(self, parameters: Sequence[Tensor]) -> None:
        """Keep v of the step that ends, whose sharpness-aware gradient is in `.grad`; not of one that overflowed."""
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
        # Layers that a callback unfreezes make another list of parameters: none of it is of theirs.
        shapes = [parameter.shape for parameter in parameters]
        return self.direction if self.direction and [v.shape for v in self.direction] == shapes else None

    def restart(self) -> None:
        """Forget what an error left of a step that did not end."""
        self._plain = None

    def _add_gradients(self, parameters: Sequence[Tensor], sign: float) -> None:
        for total, parameter in zip(cast(list[Tensor], self._plain), parameters, strict=True):
            if parameter.grad is not None:
                total.add_(parameter.grad, alpha=sign)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds: v."""
        return {"direction": self.direction}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Args:
            state: of a run with the same model.
        """
        direction = state["direction"]
        self.direction = None if direction is None else [v.to(self.device) for v in direction]
