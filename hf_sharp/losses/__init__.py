"""Class-frequency-aware losses: one value per example, buffers and no parameters."""

from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.losses.large_margin import LargeMarginLoss
from hf_sharp.losses.logit_adjustment import BalancedSoftmaxLoss, CDTLoss, LDTLoss, LogitAdjustedLoss, VSLoss
from hf_sharp.losses.margin import LDAMLoss
from hf_sharp.losses.registry import LOSSES, build_loss
from hf_sharp.losses.reweighting import ClassBalancedLoss, FocalLoss, WeightedLoss

__all__ = [
    "LOSSES",
    "BalancedSoftmaxLoss",
    "CDTLoss",
    "ClassBalancedLoss",
    "ClassFrequencyLoss",
    "FocalLoss",
    "LDAMLoss",
    "LDTLoss",
    "LargeMarginLoss",
    "LogitAdjustedLoss",
    "VSLoss",
    "WeightedLoss",
    "build_loss",
]
