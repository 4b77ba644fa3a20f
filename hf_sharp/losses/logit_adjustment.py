"""Losses that scale or shift the logits by class: the cross-entropy parameterizations.

logit-adjusted, balanced softmax:  CE(z + τ log π, y)
CDT:                               CE(z ⊙ Δ, y),              Δ_c = (n_c / n_max)^γ
LDT:                               CE(Δ_y z, y)
VS:                                CE(z ⊙ Δ + τ log π, y)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_sharp.losses.base import ClassFrequencyLoss, at_least_one, log_priors
from hf_sharp.losses.registry import LOSSES
from hf_sharp.registry import Citation


@LOSSES.add_builtin
class LogitAdjustedLoss(ClassFrequencyLoss):
    """Logit-adjusted softmax cross-entropy.

        ℓ_j = CE(z_j + τ log π, y_j),    π_c = n_c / Σn

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1.
        loss_tau: τ, finite; 0 gives cross-entropy, 1 (as in the paper) is Fisher-consistent for the balanced error.

    Example:
        >>> import torch
        >>> loss = LogitAdjustedLoss([3, 1])
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]))  # −log 3/4 and −log 1/4
        tensor([0.2877, 1.3863])

    Reference:
        Menon et al., "Long-tail learning via logit adjustment", arXiv 2007.07314, equation 10.
    """

    name = "logit_adjusted"
    summary = "Logit adjustment: the log priors are added to the logits while training."
    formula = "CE(z + τ log π, y)"
    when = "when every class counts alike; start with `loss_tau` 1"
    citations = (
        Citation(
            "Aditya Krishna Menon and Sadeep Jayasumana and Ankit Singh Rawat and Himanshu Jain and Andreas Veit and "
            "Sanjiv Kumar",
            "Long-tail learning via logit adjustment",
            2020,
            arxiv="2007.07314",
        ),
    )

    def __init__(self, class_counts: Any, loss_tau: float = 1.0) -> None:
        super().__init__(class_counts, loss_tau=loss_tau)
        self.offset = loss_tau * log_priors(self.class_counts)


@LOSSES.add_builtin
class BalancedSoftmaxLoss(ClassFrequencyLoss):
    """Balanced softmax: logit adjustment with τ = 1, as log n and log π differ by a constant.

        ℓ_j = CE(z_j + log n, y_j)

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1.

    Example:
        >>> import torch
        >>> BalancedSoftmaxLoss([3, 1])(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.2877])

    Reference:
        Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", arXiv 2007.10740, equation 3.
    """

    name = "balanced_softmax"
    summary = "Balanced softmax: logit adjustment with τ = 1."
    formula = "CE(z + log n, y)"
    when = "the same as `logit_adjusted` with τ = 1"
    citations = (
        Citation(
            "Jiawei Ren and Cunjun Yu and Shunan Sheng and Xiao Ma and Haiyu Zhao and Shuai Yi and Hongsheng Li",
            "Balanced Meta-Softmax for Long-Tailed Visual Recognition",
            2020,
            arxiv="2007.10740",
        ),
    )

    def __init__(self, class_counts: Any) -> None:
        super().__init__(class_counts)
        self.offset = at_least_one(self.class_counts).log()


@LOSSES.add_builtin
class CDTLoss(ClassFrequencyLoss):
    """Class-dependent temperatures: the logits of rare classes are scaled down while training.

        ℓ_j = CE(z_j ⊙ Δ, y_j),    Δ_c = (n_c / n_max)^γ

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1.
        loss_gamma: γ, finite; 0 is cross-entropy; 0.3.

    Example:
        >>> import torch
        >>> CDTLoss([16, 1], loss_gamma=0.5)(torch.tensor([[1.0, 4.0]]), torch.tensor([0]))  # Δ = 1, ¼
        tensor([0.6931])

    Reference:
        Ye et al., "Identifying and Compensating for Feature Deviation in Imbalanced Deep Learning", arXiv 2001.01385,
        equation 4.
    """

    name = "cdt"
    summary = "Class-dependent temperatures: the logits of rare classes are scaled down while training."
    formula = "CE(z ⊙ Δ, y), Δ = (n / n_max)^γ"
    when = "long training from scratch, where τ log π fades in theory"
    citations = (
        Citation(
            "Han-Jia Ye and Hong-You Chen and De-Chuan Zhan and Wei-Lun Chao",
            "Identifying and Compensating for Feature Deviation in Imbalanced Deep Learning",
            2020,
            arxiv="2001.01385",
        ),
    )

    def __init__(self, class_counts: Any, loss_gamma: float = 0.3) -> None:
        super().__init__(class_counts, loss_gamma=loss_gamma)
        self.class_scale = _temperatures(self.class_counts, loss_gamma)


@LOSSES.add_builtin
class LDTLoss(ClassFrequencyLoss):
    """Label-dependent temperatures: all logits of an example are scaled by its label's Δ.

        ℓ_j = CE(Δ_y z_j, y_j),    Δ_c = (n_c / n_max)^γ

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1.
        loss_gamma: γ, finite; 0 is cross-entropy; 0.3.

    Example:
        >>> import torch
        >>> loss = LDTLoss([16, 1], loss_gamma=0.5)
        >>> loss(torch.tensor([[0.0, 4.0]]), torch.tensor([1]))  # CE of (0, 1)
        tensor([0.3133])

    Reference:
        Behnia et al., "On the Implicit Geometry of Cross-Entropy Parameterizations for Label-Imbalanced Data", arXiv
        2303.07608, section 2.
    """

    name = "ldt"
    summary = "Label-dependent temperatures: all logits of an example are scaled by its label's Δ."
    formula = "CE(Δ_y z, y), Δ = (n / n_max)^γ"
    when = "as `cdt`; γ = ½ makes the classifier's geometry symmetric"
    citations = (
        Citation(
            "Tina Behnia and Ganesh Ramachandra Kini and Vala Vakilian and Christos Thrampoulidis",
            "On the Implicit Geometry of Cross-Entropy Parameterizations for Label-Imbalanced Data",
            2023,
            arxiv="2303.07608",
        ),
    )

    def __init__(self, class_counts: Any, loss_gamma: float = 0.3) -> None:
        super().__init__(class_counts, loss_gamma=loss_gamma)
        self.label_scale = _temperatures(self.class_counts, loss_gamma)


@LOSSES.add_builtin
class VSLoss(ClassFrequencyLoss):
    """Vector scaling: class-dependent temperatures and logit adjustment together.

        ℓ_j = CE(z_j ⊙ Δ + τ log π, y_j),    Δ_c = (n_c / n_max)^γ

    Args:
        class_counts: (K,) integers >= 0. A class without examples counts as one with 1.
        loss_gamma: γ, finite; 0 is logit adjustment; 0.3.
        loss_tau: τ, finite; 0 is CDT; 1.

    Example:
        >>> import torch
        >>> VSLoss([3, 1], loss_gamma=0.0)(torch.zeros(1, 2), torch.tensor([1]))  # −log 1/4
        tensor([1.3863])

    Reference:
        Kini et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization", arXiv 2103.01550,
        equation 2.
    """

    name = "vs"
    summary = "Vector scaling: class-dependent temperatures and logit adjustment together."
    formula = "CE(z ⊙ Δ + τ log π, y), Δ = (n / n_max)^γ"
    when = "long training; far behind in ten epochs here"
    citations = (
        Citation(
            "Ganesh Ramachandra Kini and Orestis Paraskevas and Samet Oymak and Christos Thrampoulidis",
            "Label-Imbalanced and Group-Sensitive Classification under Overparameterization",
            2021,
            arxiv="2103.01550",
        ),
    )

    def __init__(self, class_counts: Any, loss_gamma: float = 0.3, loss_tau: float = 1.0) -> None:
        super().__init__(class_counts, loss_gamma=loss_gamma, loss_tau=loss_tau)
        self.class_scale = _temperatures(self.class_counts, loss_gamma)
        self.offset = loss_tau * log_priors(self.class_counts)


def _temperatures(class_counts: Tensor, gamma: float) -> Tensor:
    counts = at_least_one(class_counts)
    return (counts / counts.max()) ** gamma
