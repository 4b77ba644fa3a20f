"""Measures once per training whether the ascent has an effect, and reports if it has none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from hf_sharp.sharpness.replay import random_state_kept, running_statistics_kept

_STEP = 10  # the step to measure in; by then the momentum has a stable direction
# Both losses come from the same examples, so that even a change well below the noise between batches is an effect.
_NOTHING = 0.1


class AscentEffect:
    """Compares how much ε changes the loss with how much the loss varies between batches.

        effect = |mean ℓ(w + ε) − mean ℓ(w)| / (std ℓ(w) / √N)

    Example:
        >>> effect = AscentEffect()
        >>> effect.is_due(3), effect.is_due(10)
        (False, True)
    """

    def __init__(self) -> None:
        self.measured = False
        self._value: Tensor | None = None

    def is_due(self, step: int) -> bool:
        """Tell whether to measure in this optimizer step."""
        return not self.measured and step >= _STEP

    def measure(
        self,
        model: nn.Module,
        losses: Callable[[], Tensor],
        change: Tensor | None = None,
        moved: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """Measure the effect without gradients, and without changing random state or running statistics.

        Args:
            model: the model, at w.
            losses: runs a forward pass and returns the losses of its examples, (N,). With N = 1, nothing is measured.
            change: mean ℓ(w + ε) − mean ℓ(w) over these examples, 0-dimensional, if it is known; else None.
            moved: if `change` is None, a context in which the weights are w + ε.
        """
        self.measured = True
        devices = {parameter.device for parameter in model.parameters()}
        with torch.no_grad(), running_statistics_kept(model.modules()):
            with random_state_kept(devices):
                at_w = losses()
            if change is None:
                with random_state_kept(devices), moved():
                    change = losses().mean() - at_w.mean()
        if len(at_w) > 1:
            self._value = change.abs() / (at_w.std() / len(at_w) ** 0.5)

    def pop_hint(self, rho: float) -> str | None:
        """Return a hint, once, if ε changes the loss by less than a tenth of the noise; synchronizes with the device.

        Args:
            rho: the radius, for the hint.
        """
        value, self._value = self._value, None
        if value is None or not value.item() < _NOTHING:
            return None
        return (
            f"With rho={rho:g} the ascent has no measurable effect: it changes the loss of a batch by only "
            f"{value.item():.2g} times the noise between batches. Try a larger rho."
        )
