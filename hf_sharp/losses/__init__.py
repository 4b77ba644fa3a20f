"""Class-frequency-aware losses: one value per example, buffers and no parameters."""

from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.losses.logit_adjustment import LogitAdjustedLoss
from hf_sharp.losses.registry import LOSSES, build_loss

__all__ = ["LOSSES", "ClassFrequencyLoss", "LogitAdjustedLoss", "build_loss"]
