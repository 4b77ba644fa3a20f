"""What every loss shares: the data types, the buffers, ignored labels and the check of what comes in.

    ℓ_j = CE(adjust(z_j), y_j)

A loss is the map `adjust` of the logits. It returns one value per example; who trains owns the reduction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

from hf_sharp.labels import IGNORED_LABEL


class ClassFrequencyLoss(nn.Module):
    """Cross-entropy of adjusted logits, one value per example. As it is, it is plain cross-entropy.

        ℓ_j = −log softmax(z_j)[y_j]

    Args:
        class_counts: (K,) integers >= 0, the training examples of each class.

    Example:
        >>> loss = ClassFrequencyLoss([2, 1])
        >>> loss(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, -100]))
        tensor([0.6931, 0.0000])
    """

    class_counts: Tensor

    def __init__(self, class_counts: Any) -> None:
        super().__init__()
        counts = torch.tensor(np.asarray(class_counts), dtype=torch.int64)
        self.register_buffer("class_counts", counts, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each example.

        Args:
            logits: (N, K), any floating type.
            labels: (N,) int64 in [0, K); examples labelled -100 get exactly 0.

        Returns:
            (N,): float64 for float64 logits, else float32.

        Raises:
            ValueError: the shapes do not fit each other or the class counts, or a label is outside [0, K).
        """
        num_classes = len(self.class_counts)
        if logits.ndim != 2 or logits.shape[1] != num_classes or labels.shape != logits.shape[:1]:
            raise ValueError(
                f"expected logits of shape (N, {num_classes}) and labels of shape (N,), one class per example; got "
                f"{tuple(logits.shape)} and {tuple(labels.shape)}."
            )
        if labels.device.type == "cpu":  # on an accelerator, looking would wait for the device
            outside = (labels != IGNORED_LABEL) & ((labels < 0) | (labels >= num_classes))
            if outside.any():
                raise ValueError(f"label {labels[outside][0].item()} is outside the classes 0 to {num_classes - 1}.")
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(self.adjust(logits), labels, reduction="none", ignore_index=IGNORED_LABEL)

    def adjust(self, logits: Tensor) -> Tensor:
        """Map the logits to those whose cross-entropy is the loss: (N, K) to (N, K)."""
        return logits

    def extra_repr(self) -> str:
        """Show K in the module's repr."""
        return f"num_classes={len(self.class_counts)}"


def log_priors(class_counts: Tensor) -> Tensor:
    """Take log π_c in float64, with max(n_c, 1) so that a class without examples stays finite: (K,) to (K,)."""
    return (class_counts.clamp(min=1).double() / class_counts.sum()).log()
