"""Losses with a margin for each class.

LDAM:  CE(s (z − m_y 1_y), y),    m_c = m · n_c^(−1/4) / max_k n_k^(−1/4)
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from hf_sharp.losses.base import ClassFrequencyLoss, at_least_one
from hf_sharp.losses.registry import LOSSES
from hf_sharp.registry import Citation
from hf_sharp.registry.limits import check_number


@LOSSES.add_builtin
class LDAMLoss(ClassFrequencyLoss):
    """Label-distribution-aware margin: a rare class has to win by more.

        ℓ_j = CE(s (z_j − m_y 1_y), y_j),    m_c = m · n_c^(−1/4) / max_k n_k^(−1/4)

    The logits must be cosines between features and class vectors; otherwise a margin has no meaning. The linear head of
    a Hugging Face model does not compute cosines, so `SharpTrainer` accepts this loss only with `cosine_head=True`, or
    with a model whose own logits are cosines.

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1.
        loss_margin: m >= 0, the margin of the rarest class; 0.5 in the paper.
        loss_scale: s > 0, the inverse temperature of the cosines; 30 in the paper.

    Raises:
        ValueError: loss_margin is negative, or loss_scale is not positive.

    Example:
        >>> import torch
        >>> loss = LDAMLoss([16, 1], loss_margin=0.5, loss_scale=2.0)  # margins ¼ and ½
        >>> loss(torch.tensor([[0.5, 0.0]]), torch.tensor([1]))  # CE of 2 · (0.5, −0.5)
        tensor([2.1269])

    Reference:
        Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", arXiv 1906.07413,
        equations 12 and 13.
    """

    name = "ldam"
    summary = "LDAM: a rare class has to win by a larger margin."
    formula = "CE(s (z − m_y 1_y), y), m ∝ n^(−1/4)"
    when = "with `cosine_head`, or a model whose own logits are cosines"
    citations = (
        Citation(
            "Kaidi Cao and Colin Wei and Adrien Gaidon and Nikos Arechiga and Tengyu Ma",
            "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss",
            2019,
            arxiv="1906.07413",
        ),
    )
    needs_cosine_logits = True
    margin: Tensor

    def __init__(self, class_counts: Any, loss_margin: float = 0.5, loss_scale: float = 30.0) -> None:
        super().__init__(class_counts, loss_margin=loss_margin, loss_scale=loss_scale)
        check_number("loss_margin", loss_margin, least=0)
        check_number("loss_scale", loss_scale, above=0)
        margin = at_least_one(self.class_counts) ** -0.25
        rarest = margin[self.class_counts > 0].max()
        self.register_buffer("margin", loss_margin * (margin / rarest).clamp(max=1), persistent=False)
        self.loss_scale = loss_scale

    def adjust(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Subtract the label's margin from its cosine, and multiply by the scale.

        Args:
            logits: (N, K) cosines, float32 or float64.
            labels: (N,) in [0, K).

        Returns:
            (N, K), of the same type.
        """
        margins = F.one_hot(labels, logits.shape[1]) * self.margin.to(logits.dtype)[labels, None]
        return self.loss_scale * (logits - margins)
