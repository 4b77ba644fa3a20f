"""Losses by name: register and build them."""

from __future__ import annotations

from typing import Any

import torch

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.registry import Registry, option_names
from hf_sharp.registry.arrays import holds_bool

LOSSES: Registry[type[ClassFrequencyLoss]] = Registry("loss", described=("summary", "formula", "when", "citations"))
LOSSES.add_builtin(ClassFrequencyLoss)


def register_loss(loss: type[ClassFrequencyLoss]) -> type[ClassFrequencyLoss]:
    """Register a loss, so that arguments and YAML files can select it as `loss="its name"`. Usable as a decorator.

    Args:
        loss: a subclass of `ClassFrequencyLoss` with its own `name`. The parameters of `__init__` after
            `class_counts` are its options; `SharpTrainingArguments(loss_options={...})` sets them.

    Returns:
        The class.

    Raises:
        ValueError: `loss` is not such a subclass, or its name is missing or taken.

    Example:
        >>> @register_loss
        ... class PolyLoss(ClassFrequencyLoss):
        ...     name = "poly_example"
        ...
        ...     def __init__(self, class_counts, epsilon=1.0):
        ...         super().__init__(class_counts, epsilon=epsilon)
        ...
        ...     def unweighted(self, logits, labels):
        ...         losses = super().unweighted(logits, labels)
        ...         return losses + self.options["epsilon"] * (1 - torch.exp(-losses))
        >>> build_loss("poly_example", [9, 1], epsilon=2.0)
        PolyLoss(num_classes=2, epsilon=2.0)
        >>> LOSSES.unregister("poly_example")
    """
    if not (isinstance(loss, type) and issubclass(loss, ClassFrequencyLoss)):
        raise ValueError(f"register_loss takes a subclass of hf_sharp.losses.ClassFrequencyLoss; got {loss!r}.")
    if "name" not in vars(loss):
        raise ValueError(f"{loss.__name__} needs a name of its own: add name = '...' to the class.")
    return LOSSES.register(loss)


def loss_options(name: str) -> set[str]:
    """List the options that a loss takes in addition to the class counts."""
    return set(option_names(LOSSES[name], without=("class_counts", "options", "num_classes", "feature_dim")))


def build_loss(
    name: str, class_counts: Any, *, class_importance: Any = None, feature_dim: int | None = None, **options: Any
) -> ClassFrequencyLoss:
    """Build a loss by its name.

    Args:
        name: one of `LOSSES`.
        class_counts: (K,) integers >= 0, the training examples of each class.
        class_importance: (K,) finite numbers > 0, the cost of a mistake on each class, or None for 1. The losses of a
            class's examples are multiplied by its number.
        feature_dim: the size of the head's input, for a loss that needs features.
        **options: options of the loss, named as in `SharpTrainingArguments` (`loss_tau`, ...); None for the default.

    Returns:
        The loss, a module: `loss(logits, labels)` has shape (N,).

    Raises:
        ValueError: the name is unknown, an option is out of range or not one of this loss, the counts are not integers
            >= 0 of at least 2 classes, or the importances are not one positive number per class.

    Example:
        >>> build_loss("logit_adjusted", [30, 10, 1], loss_tau=1.5)
        LogitAdjustedLoss(num_classes=3, loss_tau=1.5)
    """
    LOSSES.check(name)
    unknown = sorted(set(options) - loss_options(name))
    if unknown:
        takes = ", ".join(sorted(loss_options(name))) or "no options"
        raise ValueError(f"loss {name!r} does not take {', '.join(unknown)}; it takes {takes}.")
    counts = ClassFrequencies.from_counts(class_counts).counts
    arguments = {key: value for key, value in options.items() if value is not None}
    if LOSSES[name].needs_features and feature_dim is not None:
        arguments["feature_dim"] = feature_dim
    loss = LOSSES[name].from_counts(counts, **arguments)
    set_class_importance(loss, class_importance)
    return loss


def set_class_importance(loss: ClassFrequencyLoss, class_importance: Any) -> None:
    """Set the cost of a mistake on each class, by which a loss multiplies the losses of the class's examples.

    Args:
        loss: the loss.
        class_importance: (K,) finite numbers > 0, or None for 1.

    Raises:
        ValueError: the importances are not one positive number per class.
    """
    if class_importance is None:
        return
    try:
        importance = torch.as_tensor(class_importance, dtype=torch.float64)
    except (TypeError, ValueError):  # not numbers
        importance = torch.empty(0)
    if holds_bool(class_importance):
        importance = torch.empty(0)
    if importance.shape != loss.class_counts.shape or not (importance.isfinite() & (importance > 0)).all():
        raise ValueError(
            f"class_importance must be {len(loss.class_counts)} finite numbers > 0, one per class; got "
            f"{class_importance}."
        )
    loss.class_importance = importance
