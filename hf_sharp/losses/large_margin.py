"""The large-margin discriminative loss: cross-entropy, plus terms for compact classes far from their boundaries.

    f_i        the features of example i, the head's input; W (K, d) and b (K,) the head
    m̂_c        the mean of f_i over the batch's examples of class c;   C_b the batch's classes
    m_c        (1 − μ) m̂_c + μ · the running centroid;   m̂_c when class c is seen for the first time
    d_ck       ((w_c − w_k)ᵀ m̂_c + b_c − b_k) / ‖w_c − w_k‖                  how far m̂_c is on c's side of the boundary
    compact_i  max(0, ‖f_i − m_c‖ − δ_v)²
    margin_c   max_{k ≠ c} max(0, δ_d,c − d_ck),  or the mean over k
    ℓ_i        CE_i + λ N / (|C_b| |c_i|) (α compact_i + β margin_c + γ ‖m_c‖)      |c_i|: examples of i's class

The factor N / (|C_b| |c_i|) turns the batch mean of the added terms into a mean over its classes. Only compactness and
the norm use the running centroid; in the margin it would scale the gradient down by 1 − μ (the paper's *partial
momentum*).
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.losses.base import ClassFrequencyLoss, at_least_one
from hf_sharp.losses.registry import LOSSES
from hf_sharp.registry import Citation
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.nearest import check_name

AGGREGATIONS = ("max", "mean")


@LOSSES.add_builtin
class LargeMarginLoss(ClassFrequencyLoss):
    """Cross-entropy plus terms for the compactness, the margin and the norm of each class's features.

        ℓ_i = CE_i + λ N / (|C_b| |c_i|) (α compact_i + β margin_c + γ ‖m_c‖)

    In training mode, every call without `centroids` updates the running centroids, which processes share; the other
    terms are computed from the batch of one process. In evaluation mode, nothing is updated, and without features the
    loss is cross-entropy.

    Args:
        num_classes: K.
        feature_dim: d.
        class_counts: (K,) integers >= 0, the training examples of each class; `lm_frequency_margins` needs them.
        lm_weight: λ >= 0.
        lm_alpha: α >= 0, the weight of the compactness term.
        lm_beta: β >= 0, the weight of the margin term.
        lm_gamma: γ >= 0, the weight of the centroid norms; 0.001 in the paper.
        lm_delta_v: δ_v >= 0, the distance from the centroid up to which compactness is 0; 0.5 in the paper.
        lm_delta_d: δ_d >= 0, the distance to the boundary beyond which the margin term is 0; 6 in the paper. With
            δ_d > 2 δ_v, classes whose compactness and margin terms are 0 are further apart than they are wide.
        lm_momentum: μ in [0, 1), the momentum of the running centroids; 0.99 in the paper.
        lm_aggregation: how to combine the other classes: "max", as in the paper; or "mean".
        lm_frequency_margins: use δ_d,c ∝ n_c^(−1/4) with mean δ_d, so that rare classes get larger margins. Not from
            the paper; off by default.

    Attributes:
        centroids: (K, d), the running centroids; NaN for a class that has not been seen.

    Raises:
        ValueError: a number is out of range, or `lm_frequency_margins` lacks `class_counts`.

    Example:
        >>> loss = LargeMarginLoss(num_classes=2, feature_dim=2, lm_delta_d=1.0)
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 2.0]])  # on their centroids, √2 from the boundary
        >>> losses = loss(features, torch.tensor([0, 1]), features=features, weight=torch.eye(2))
        >>> losses - torch.nn.functional.cross_entropy(features, torch.tensor([0, 1]))  # γ ‖m_c‖ is left
        tensor([0.0020, 0.0020])

    Reference:
        "Large Margin Discriminative Loss for Classification", arXiv 2405.18499, equations 5 to 9.
    """

    name = "large_margin"
    summary = "Large margin: cross-entropy, plus compact classes that lie far from their decision boundaries."
    formula = "CE + λ (α compactness + β margin + γ ‖centroid‖)"
    when = "to shape the features too, with a small `lm_weight`"
    citations = (
        Citation(
            "Hai-Vy Nguyen and Fabrice Gamboa and Sixin Zhang and Reda Chhaibi and Serge Gratton and Thierry Giaccone",
            "Large Margin Discriminative Loss for Classification",
            2024,
            arxiv="2405.18499",
        ),
    )
    needs_features: ClassVar[bool] = True

    centroids: Tensor
    margin: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        *,
        class_counts: Any = None,
        lm_weight: float = 1.0,
        lm_alpha: float = 1.0,
        lm_beta: float = 1.0,
        lm_gamma: float = 0.001,
        lm_delta_v: float = 0.5,
        lm_delta_d: float = 6.0,
        lm_momentum: float = 0.99,
        lm_aggregation: str = "max",
        lm_frequency_margins: bool = False,
    ) -> None:
        numbers = {
            "lm_weight": lm_weight,
            "lm_alpha": lm_alpha,
            "lm_beta": lm_beta,
            "lm_gamma": lm_gamma,
            "lm_delta_v": lm_delta_v,
            "lm_delta_d": lm_delta_d,
            "lm_momentum": lm_momentum,
        }
        super().__init__(torch.ones(num_classes) if class_counts is None else class_counts, **numbers)
        for name, value in numbers.items():
            check_number(name, value, least=0)
        check_number("lm_momentum", lm_momentum, least=0, below=1)  # at 1, centroids would never move
        check_name("lm_aggregation", lm_aggregation, AGGREGATIONS)
        if lm_frequency_margins and class_counts is None:
            raise ValueError("lm_frequency_margins needs class_counts.")
        self.options |= {"lm_aggregation": lm_aggregation, "lm_frequency_margins": lm_frequency_margins}
        margin = torch.ones(num_classes, dtype=torch.float64)
        if lm_frequency_margins:
            margin = at_least_one(self.class_counts) ** -0.25
        mean = margin[self.class_counts > 0].mean()
        self.register_buffer("margin", lm_delta_d * margin / mean, persistent=False)
        self.register_buffer("centroids", torch.full((num_classes, feature_dim), math.nan))
        self.moves = True

    @classmethod
    def from_counts(cls, class_counts: Any, **options: Any) -> LargeMarginLoss:
        """Build the loss as `build_loss` does: K follows from the counts, and `feature_dim` is among the options."""
        if "feature_dim" not in options:
            raise ValueError("loss 'large_margin' needs feature_dim, the size of the head's input.")
        return cls(len(class_counts), class_counts=class_counts, **options)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments from which `build_loss(class_counts=..., **config)` rebuilds this loss, in JSON types."""
        return super().config | {"feature_dim": self.centroids.shape[1]}

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        features: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        centroids: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss of each example.

        Args:
            logits: (N, K), any floating type.
            labels: (N,) int64 in [0, K); examples labelled -100 get exactly 0, and do not count in any centroid.
            features: (N, d), the head's input that gave the logits, with their graph.
            weight: W (K, d) of the head.
            bias: b (K,), or None for 0.
            centroids: (K, d), to use instead of the running centroids, which then are not updated; NaN for classes not
                seen. For a second pass over a batch, pass the centroids that the first pass used.

        Returns:
            (N,): float64 for float64 logits, else float32.

        Raises:
            ValueError: as for `ClassFrequencyLoss`; or features or weight are missing, or have the wrong shape.
        """
        losses = super().forward(logits, labels)
        if features is None and not self.training:
            return losses
        if centroids is None and not self.training:
            centroids = self.centroids
        return losses + self.discriminative(labels, features, weight, bias, centroids).to(losses.dtype)

    def discriminative(
        self,
        labels: Tensor,
        features: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None = None,
        centroids: Tensor | None = None,
    ) -> Tensor:
        """Compute the terms that are added to the cross-entropy of each example.

        Updates the running centroids, unless `centroids` are passed. Arguments and errors are those of `forward`.

        Returns:
            (N,): float64 for float64 features, else float32.
        """
        expected = ((len(labels), self.centroids.shape[1]), tuple(self.centroids.shape))
        shapes = tuple(None if given is None else tuple(given.shape) for given in (features, weight))
        if features is None or weight is None or shapes != expected:
            raise ValueError(
                f"expected features= of shape {expected[0]}, the head's input, and weight= of shape {expected[1]}, the "
                f"head's; got {shapes[0]} and {shapes[1]}."
            )
        dtype = torch.promote_types(features.dtype, torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            head_bias = None if bias is None else bias.to(dtype)
            terms = self._terms(features.to(dtype), labels, weight.to(dtype), head_bias, centroids)
        return self.weigh(terms, labels)

    def frozen(self) -> LargeMarginLoss:
        """Return this loss with its current centroids fixed, for a second pass over the same batch."""
        still = copy.copy(self)
        still._buffers = dict(self._buffers)
        still.moves = False
        return still

    def _terms(
        self, features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, centroids: Tensor | None
    ) -> Tensor:
        options, counted, classes = self.options, labels != IGNORED_LABEL, labels.clamp(min=0)
        same = ((classes[:, None] == classes) & counted & counted[:, None]).to(features.dtype)
        share = counted.to(same) / same.sum(1).clamp(min=1)  # 1 / |c_i|
        means = (same * share[:, None]) @ features  # m̂_c of every example's class

        running = (self.centroids if centroids is None else centroids).to(features.dtype)[classes]
        mixed = torch.lerp(means, running.nan_to_num(), options["lm_momentum"])
        centre = torch.where(running.isnan(), means, mixed)
        distance = torch.linalg.vector_norm(features - centre, dim=1)
        compact = (distance - options["lm_delta_v"]).clamp(min=0) ** 2

        scores = torch.nn.functional.linear(means, weight, bias)
        ahead = scores.gather(1, classes[:, None]) - scores
        apart = torch.cdist(weight[classes], weight, compute_mode="donot_use_mm_for_euclid_dist")
        to_boundary = ahead / torch.where(apart > 0, apart, 1)  # equal class vectors have no boundary
        short = (self.margin.to(features.dtype)[classes, None] - to_boundary).clamp(min=0)
        others = torch.arange(len(weight), device=labels.device) != classes[:, None]
        if options["lm_aggregation"] == "max":
            margin = (short * others).amax(1)
        else:
            margin = (short * others).sum(1) / max(len(weight) - 1, 1)

        size = torch.linalg.vector_norm(centre, dim=1)
        sizes = options["lm_alpha"] * compact + options["lm_beta"] * margin + options["lm_gamma"] * size
        if centroids is None and self.moves:
            self._move(features.detach(), classes, counted)
        return options["lm_weight"] * counted.sum().to(sizes) / share.sum().clamp(min=1) * share * sizes

    @torch.no_grad()
    def _move(self, features: Tensor, classes: Tensor, counted: Tensor) -> None:
        rows = torch.cat([features, torch.ones_like(features[:, :1])], dim=1) * counted[:, None]
        sums = torch.zeros(len(self.centroids), rows.shape[1], dtype=rows.dtype, device=rows.device)
        sums.index_add_(0, classes, rows)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        seen = sums[:, -1:]
        means = (sums[:, :-1] / seen.clamp(min=1)).to(self.centroids)
        moved = torch.lerp(means, self.centroids, self.options["lm_momentum"])
        moved = torch.where(self.centroids.isnan(), means, moved)
        # Assign a new tensor, so that a frozen loss keeps the old one.
        self.centroids = torch.where(seen > 0, moved, self.centroids)
