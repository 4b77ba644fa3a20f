"""Formats figures, rounded to the precision that the number of test examples supports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.registry.words import quantity

Z_95 = 1.96


def is_finite_number(value: Any) -> bool:
    """Tell whether a value is a finite number, not None, NaN or infinity."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def half_width(recall: Iterable[float | None], support: Iterable[int]) -> float | None:
    """Compute half the width of the 95 % confidence interval of a mean of recalls.

        h = 1.96 √(Σ_c p_c (1 − p_c) / (n_c + 4)) / C        p_c = (correct_c + 2) / (n_c + 4)

    Two successes and two failures are added to every class, so that a recall of 0 or 1 has an interval, too.

    Args:
        recall: (C,) recalls in [0, 1]; None for a class without test examples, which is skipped.
        support: (C,) the test examples of each class.

    Returns:
        h, or None if no class has test examples.

    Example:
        >>> round(half_width([0.5], [96]), 3)
        0.098

    Reference:
        Agresti and Coull, Approximate Is Better than "Exact" for Interval Estimation of Binomial Proportions, 1998.
    """
    pairs = [(value, number) for value, number in zip(recall, support, strict=True) if value is not None and number > 0]
    if not pairs:
        return None
    recalls, numbers = np.array(pairs, dtype=float).T
    shrunk = (recalls * numbers + 2) / (numbers + 4)
    return float(Z_95 * np.sqrt((shrunk * (1 - shrunk) / (numbers + 4)).sum()) / len(pairs))


def half_widths(report: Mapping[str, Any], frequencies: ClassFrequencies) -> dict[str, float]:
    """Compute the half widths of a report's accuracies, by metric; empty if the report has no figures per class."""
    if "per_class_recall" not in report:
        return {}
    recall, support = report["per_class_recall"], report["per_class_support"]
    widths = {
        "accuracy": half_width([report["accuracy"]], [sum(support)]),
        "balanced_accuracy": half_width(recall, support),
    }
    for group, classes in frequencies.groups.items():
        widths[f"{group}_accuracy"] = half_width([recall[c] for c in classes], [support[c] for c in classes])
    return {metric: width for metric, width in widths.items() if width is not None}


def cost_half_width(costs: np.ndarray, cost_matrix: np.ndarray) -> float:
    """Compute half the width of the 95 % confidence interval of a mean cost per example.

        h = 1.96 s / √(N + 4)        s: standard deviation of the N costs and four more: twice the lowest and twice the
                                        highest cost in the matrix

    The four added values keep the interval from vanishing if no costly mistake was observed. For costs of 0 and 1, the
    result is that of `half_width`.

    Args:
        costs: (N,) the cost of each example's prediction.
        cost_matrix: (K, K) the costs of all predictions.

    Returns:
        h, in the unit of the costs.

    Example:
        >>> round(cost_half_width(np.array([0.0] * 48 + [1.0] * 48), 1 - np.eye(2)), 3)
        0.098
    """
    added = np.concatenate([costs, [cost_matrix.min(), cost_matrix.max()] * 2])
    return float(Z_95 * added.std() / np.sqrt(len(added)))


def cost_per_example(report: Mapping[str, Any]) -> str | None:
    """Format a report's expected cost with its 95 % interval; None if it has no expected cost.

    Example:
        >>> cost_per_example({"expected_cost": 0.31234, "expected_cost_interval": 0.0456})
        '0.312 ± 0.046'
    """
    cost, width = report.get("expected_cost"), report.get("expected_cost_interval")
    if not is_finite_number(cost) or not is_finite_number(width):
        return None
    decimals = max(0, 1 - math.floor(math.log10(width)))  # type: ignore[arg-type]
    return f"{cost:,.{decimals}f} ± {width:,.{decimals}f}"


def percent(value: Any, width: float | None = None, *, interval: bool = False) -> str | None:
    """Format a share in percent, with one decimal, or without decimals if the interval is wider than ±1 %.

    Args:
        value: a share in [0, 1]. Anything but a finite number gives None.
        width: half the width of its 95 % interval, also a share; None if unknown.
        interval: whether to append the interval.

    Returns:
        The formatted share, or None.

    Example:
        >>> percent(0.7518), percent(0.7518, 0.036), percent(0.7518, 0.036, interval=True)
        ('75.2', '75', '75 ± 4')
    """
    if not is_finite_number(value):
        return None
    decimals = 0 if width is not None and width >= 0.01 else 1
    text = f"{100 * value:.{decimals}f}"
    return f"{text} ± {100 * width:.{decimals}f}" if interval and width is not None else text


def duration(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    Example:
        >>> duration(88.5), duration(1287.4), duration(9000)
        ('88 s', '21 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def group_limits(rare: int, common: int) -> dict[str, str]:
    """Describe the groups of classes by their numbers n of training examples.

    Args:
        rare: the `rare_threshold`.
        common: the `common_threshold`.

    Returns:
        Group (many, medium, few) to its limits.

    Example:
        >>> group_limits(20, 100)
        {'many': 'n > 100', 'medium': '20 ≤ n ≤ 100', 'few': 'n < 20'}
    """
    return {"many": f"n > {common}", "medium": f"{rare} ≤ n ≤ {common}", "few": f"n < {rare}"}


def group_labels(frequencies: ClassFrequencies, report: Mapping[str, Any]) -> dict[str, str]:
    """Describe the groups of classes by their limits, and by how many of their classes the mean recall includes.

    Args:
        frequencies: the class frequencies of the training set.
        report: a long-tail report. Without figures per class, it is assumed to include every class.

    Returns:
        Group to label.

    Example:
        >>> frequencies = ClassFrequencies.from_counts([200, 5, 9])
        >>> labels = group_labels(frequencies, {"per_class_support": [10, 0, 3]})
        >>> labels["many"], labels["few"]
        ('many (n > 100, 1 class)', 'few (n < 20, 1 of 2 classes)')
    """
    limits = group_limits(frequencies.rare_threshold, frequencies.common_threshold)
    absent = {*without_examples(report)}
    labels = {}
    for group, classes in frequencies.groups.items():
        included = len({*classes.tolist()} - absent)
        of = "" if included == len(classes) else f"{included:,} of "
        labels[group] = f"{group} ({limits[group]}, {of}{quantity(len(classes), 'class', 'classes')})"
    return labels


def without_examples(report: Mapping[str, Any]) -> list[int]:
    """List the classes without evaluated examples, which the mean recalls of a report do not include.

    Example:
        >>> without_examples({"per_class_support": [10, 0, 3]})
        [1]
    """
    return [c for c, number in enumerate(report.get("per_class_support", ())) if number == 0]
