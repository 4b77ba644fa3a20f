"""Losses by name."""

from __future__ import annotations

import inspect
from typing import Any

from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.losses.logit_adjustment import BalancedSoftmaxLoss, CDTLoss, LDTLoss, LogitAdjustedLoss, VSLoss
from hf_sharp.losses.reweighting import ClassBalancedLoss, FocalLoss, WeightedLoss

LOSSES: dict[str, type[ClassFrequencyLoss]] = {
    "cross_entropy": ClassFrequencyLoss,
    "weighted": WeightedLoss,
    "class_balanced": ClassBalancedLoss,
    "focal": FocalLoss,
    "logit_adjusted": LogitAdjustedLoss,
    "balanced_softmax": BalancedSoftmaxLoss,
    "cdt": CDTLoss,
    "ldt": LDTLoss,
    "vs": VSLoss,
}
_NOT_OPTIONS = {"class_counts", "options"}


def loss_options(name: str) -> set[str]:
    """Name the options that a loss takes beside the class counts."""
    return set(inspect.signature(LOSSES[name]).parameters) - _NOT_OPTIONS


def build_loss(name: str, class_counts: Any, **options: Any) -> ClassFrequencyLoss:
    """Build a loss by its name.

    Args:
        name: one of `LOSSES`.
        class_counts: (K,) integers >= 0, the training examples of each class.
        **options: the loss's own, named as in `SharpTrainingArguments` (`loss_tau`, ...); None is the paper's value.

    Returns:
        A module: `loss(logits, labels)` is (N,).

    Raises:
        ValueError: an unknown name, or an option that this loss does not take.

    Example:
        >>> build_loss("logit_adjusted", [30, 10, 1], loss_tau=1.5)
        LogitAdjustedLoss(num_classes=3, loss_tau=1.5)
    """
    if name not in LOSSES:
        raise ValueError(f"unknown loss {name!r}; the losses are {', '.join(LOSSES)}.")
    unknown = sorted(set(options) - loss_options(name))
    if unknown:
        takes = ", ".join(sorted(loss_options(name))) or "no options"
        raise ValueError(f"loss {name!r} does not take {', '.join(unknown)}; it takes {takes}.")
    return LOSSES[name](class_counts, **{key: value for key, value in options.items() if value is not None})
