"""Reweighting losses: examples of rare classes, or hard examples, get larger weights.

weighted:        ℓ_j = w_y CE(z_j, y_j),    w_c ∝ 1 / n_c
class-balanced:  ℓ_j = w_y CE(z_j, y_j),    w_c ∝ (1 − β) / (1 − β^n_c)
focal:           ℓ_j = (1 − p_j)^γ CE(z_j, y_j),    p_j = exp(−CE(z_j, y_j))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_sharp.losses.base import ClassFrequencyLoss, at_least_one
from hf_sharp.losses.registry import LOSSES
from hf_sharp.registry import Citation
from hf_sharp.registry.limits import check_number


@LOSSES.add_builtin
class WeightedLoss(ClassFrequencyLoss):
    """Cross-entropy weighted by the inverse class frequency.

        ℓ_j = w_y CE(z_j, y_j),    w_c ∝ 1 / n_c,    mean(w) = 1

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1, but not in the mean.

    Example:
        >>> WeightedLoss([3, 1]).weight
        tensor([0.5000, 1.5000], dtype=torch.float64)

    Reference:
        King and Zeng, "Logistic Regression in Rare Events Data", Political Analysis 2001.
    """

    name = "weighted"
    summary = "Cross-entropy weighted by the inverse class frequency."
    formula = "w_y CE(z, y), w ∝ 1 / n"
    when = "a few classes and moderate imbalance; large weights make training unsteady"
    citations = ()

    def __init__(self, class_counts: Any) -> None:
        super().__init__(class_counts)
        self.weight = _mean_one(1 / at_least_one(self.class_counts), self.class_counts)


@LOSSES.add_builtin
class ClassBalancedLoss(ClassFrequencyLoss):
    """Cross-entropy weighted by the inverse effective number of examples.

        ℓ_j = w_y CE(z_j, y_j),    w_c ∝ (1 − β) / (1 − β^n_c),    mean(w) = 1

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1, but not in the mean.
        loss_beta: β in [0, 1); 0 gives cross-entropy, and β → 1 gives `weighted`; up to 0.9999 in the paper.

    Raises:
        ValueError: loss_beta is outside [0, 1).

    Example:
        >>> ClassBalancedLoss([2, 1], loss_beta=0.5).weight  # effective numbers 3/2 and 1
        tensor([0.8000, 1.2000], dtype=torch.float64)

    Reference:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", arXiv 1901.05555, equation 4.
    """

    name = "class_balanced"
    summary = "Cross-entropy weighted by the inverse effective number of examples."
    formula = "w_y CE(z, y), w ∝ (1 − β) / (1 − β^n)"
    when = "as `weighted`, but gentler where even rare classes have many examples"
    citations = (
        Citation(
            "Yin Cui and Menglin Jia and Tsung-Yi Lin and Yang Song and Serge Belongie",
            "Class-Balanced Loss Based on Effective Number of Samples",
            2019,
            arxiv="1901.05555",
        ),
    )

    def __init__(self, class_counts: Any, loss_beta: float = 0.9999) -> None:
        super().__init__(class_counts, loss_beta=loss_beta)
        check_number("loss_beta", loss_beta, least=0, below=1)
        effective_number = (1 - loss_beta ** at_least_one(self.class_counts)) / (1 - loss_beta)
        self.weight = _mean_one(1 / effective_number, self.class_counts)


@LOSSES.add_builtin
class FocalLoss(ClassFrequencyLoss):
    """Focal loss: examples that the model already classifies confidently count less, whatever their class.

        ℓ_j = (1 − p_j)^γ CE(z_j, y_j),    p_j = exp(−CE(z_j, y_j))

    Args:
        class_counts: (K,) integers >= 0; the formula does not use them.
        loss_gamma: γ >= 0; 0 gives cross-entropy; 2 in the paper.

    Raises:
        ValueError: loss_gamma is negative.

    Example:
        >>> FocalLoss([1, 1])(torch.zeros(1, 2), torch.tensor([0]))  # (1 − ½)² log 2
        tensor([0.1733])

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, equation 4.
    """

    name = "focal"
    summary = "Focal loss: examples that the model already gets right count less, whatever their class."
    formula = "(1 − p_y)^γ CE(z, y)"
    when = "hard examples in every class; it does not use the counts"
    citations = (
        Citation(
            "Tsung-Yi Lin and Priya Goyal and Ross Girshick and Kaiming He and Piotr Dollár",
            "Focal Loss for Dense Object Detection",
            2017,
            arxiv="1708.02002",
        ),
    )

    def __init__(self, class_counts: Any, loss_gamma: float = 2.0) -> None:
        super().__init__(class_counts, loss_gamma=loss_gamma)
        check_number("the focal loss's loss_gamma", loss_gamma, least=0)
        self.loss_gamma = loss_gamma

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the focal loss of each example, without its class weight.

        Args:
            logits: (N, K) float32 or float64.
            labels: (N,) in [0, K), or -100.

        Returns:
            (N,), of the same type.
        """
        losses = super().unweighted(logits, labels)
        # 1 − exp(−CE), kept above 0, because for γ < 1 the power has an infinite derivative at 0.
        unsure = -torch.expm1(-losses)
        return unsure.clamp(min=torch.finfo(losses.dtype).tiny) ** self.loss_gamma * losses


def _mean_one(weight: Tensor, class_counts: Tensor) -> Tensor:
    # If a large label set has many absent classes, including them in the mean would leave the others almost no weight.
    return weight / weight[class_counts > 0].mean()
