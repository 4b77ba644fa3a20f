"""Comparison of two methods over the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TypedDict

from scipy.stats import t as student


class Paired(TypedDict):
    """A comparison of paired values; `deviation` and `interval` are None if there is only one seed.

    Args:
        first: the mean of the first method.
        second: the mean of the second method.
        difference: the mean of second − first.
        deviation: the standard deviation of the differences.
        interval: half the width of the 95 % interval of `difference`.
    """

    first: float
    second: float
    difference: float
    deviation: float | None
    interval: float | None


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare paired values: the mean of second − first, and its 95 % interval by Student's t.

    Args:
        first: one value per seed.
        second: one value per seed, in the same order.

    Returns:
        The comparison.

    Example:
        >>> compared = paired([0.5, 0.6, 0.7], [0.6, 0.6, 0.9])
        >>> round(compared["difference"], 3), round(compared["interval"], 3)
        (0.1, 0.248)
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    interval = deviation = None
    if (n := len(differences)) > 1:
        deviation = statistics.stdev(differences)
        interval = float(student.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    return {
        "first": statistics.fmean(first),
        "second": statistics.fmean(second),
        "difference": statistics.fmean(differences),
        "deviation": deviation,
        "interval": interval,
    }
