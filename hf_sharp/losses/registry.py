"""Losses by name."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.losses.large_margin import LargeMarginLoss
from hf_sharp.losses.logit_adjustment import BalancedSoftmaxLoss, CDTLoss, LDTLoss, LogitAdjustedLoss, VSLoss
from hf_sharp.losses.margin import LDAMLoss
from hf_sharp.losses.reweighting import ClassBalancedLoss, FocalLoss, WeightedLoss

LOSSES: dict[str, type[ClassFrequencyLoss]] = {
    loss.name: loss
    for loss in (
        ClassFrequencyLoss,
        WeightedLoss,
        ClassBalancedLoss,
        FocalLoss,
        LDAMLoss,
        LogitAdjustedLoss,
        BalancedSoftmaxLoss,
        CDTLoss,
        LDTLoss,
        VSLoss,
        LargeMarginLoss,
    )
}
_NOT_OPTIONS = {"class_counts", "options", "num_classes", "feature_dim"}


def loss_options(name: str) -> set[str]:
    """Name the options that a loss takes beside the class counts."""
    return set(inspect.signature(LOSSES[name]).parameters) - _NOT_OPTIONS


def build_loss(
    name: str, class_counts: Any, *, class_importance: Any = None, feature_dim: int | None = None, **options: Any
) -> ClassFrequencyLoss:
    """Build a loss by its name.

    Args:
        name: one of `LOSSES`.
        class_counts: (K,) integers >= 0, the training examples of each class.
        class_importance: (K,) finite numbers > 0, what a mistake on each class costs: they multiply the losses of its
            examples. Or None.
        feature_dim: the size of the head's input, for a loss that needs features.
        **options: the loss's own, named as in `SharpTrainingArguments` (`loss_tau`, ...); None is the paper's value.

    Returns:
        A module: `loss(logits, labels)` is (N,).

    Raises:
        ValueError: an unknown name, an option that this loss does not take or that is out of range, counts that are not
            integers >= 0 of at least 2 classes, or importances that are not one positive number per class.

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
    counts = ClassFrequencies.from_counts(class_counts).counts
    given = {key: value for key, value in options.items() if value is not None}
    if LOSSES[name].needs_features and feature_dim is not None:
        given["feature_dim"] = feature_dim
    loss = LOSSES[name].from_counts(counts, **given)
    if class_importance is not None:
        importance = torch.as_tensor(class_importance, dtype=torch.float64)
        if importance.shape != (len(counts),) or not (importance.isfinite() & (importance > 0)).all():
            raise ValueError(
                f"class_importance must be {len(counts)} finite numbers > 0, one per class; got {class_importance}."
            )
        loss.class_importance = importance
    return loss
