"""Logit adjustment: the prior is added to the logits while training, so the model does not have to learn it.

ℓ_j = CE(z_j + τ log π, y_j)
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from hf_sharp.losses.base import ClassFrequencyLoss, log_priors


class LogitAdjustedLoss(ClassFrequencyLoss):
    """Logit-adjusted softmax cross-entropy.

        ℓ_j = CE(z_j + τ log π, y_j),    π_c = n_c / Σn

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1.
        loss_tau: τ, finite; 0 is cross-entropy, 1 (the paper's) is Fisher-consistent for balanced error.

    Raises:
        ValueError: loss_tau is not finite.

    Example:
        >>> import torch
        >>> loss = LogitAdjustedLoss([3, 1])
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]))  # −log 3/4 and −log 1/4
        tensor([0.2877, 1.3863])

    Reference:
        Menon et al., "Long-tail learning via logit adjustment", arXiv 2007.07314, equation 10.
    """

    offset: Tensor

    def __init__(self, class_counts: Any, loss_tau: float = 1.0) -> None:
        super().__init__(class_counts)
        if not math.isfinite(loss_tau):
            raise ValueError(f"loss_tau must be a finite number, got {loss_tau}.")
        self.loss_tau = loss_tau
        self.register_buffer("offset", loss_tau * log_priors(self.class_counts), persistent=False)

    def adjust(self, logits: Tensor) -> Tensor:
        """Add τ log π to every row."""
        return logits + self.offset.to(logits.dtype)

    def extra_repr(self) -> str:
        """Show K and τ in the module's repr."""
        return f"{super().extra_repr()}, loss_tau={self.loss_tau}"
