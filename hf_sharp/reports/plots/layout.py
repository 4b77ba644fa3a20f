"""Ticks and legends that fit, with plain numbers and without overlaps or clipping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_TICK_STEPS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,))
_INCHES_PER_DIGIT = 0.075
_GAP = 0.12  # inches between two labels
_LONGEST_LABEL = 60


def log_ticks(axis: Any, low: float, high: float, inches: float, linear_below: float = 1.0) -> None:
    """Label a logarithmic axis with plain numbers, such as 5, 10, 20, 50: as many as fit.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        low: the lower limit; 0 or less if the axis is linear at its lower end, as with symlog.
        high: the upper limit.
        inches: the length of the axis.
        linear_below: the value below which the axis is linear.
    """
    ticks = plain_ticks(low, high, inches, axis.axis_name == "x", linear_below)
    axis.set_ticks(ticks, [_plain(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def count_ticks(axis: Any) -> None:
    """Label a linear axis with whole numbers, such as 2,000."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axis.set_major_formatter("{x:,.0f}")


def plain_ticks(
    low: float, high: float, inches: float, along_text: bool = True, linear_below: float = 1.0
) -> list[float]:
    """Choose round numbers between two limits that fit a logarithmic axis.

    Args:
        low: the lower limit; 0 or less if the axis is linear at its lower end.
        high: the upper limit.
        inches: the length of the axis.
        along_text: whether the labels are side by side, as on an x axis.
        linear_below: the value below which the axis is linear; that part is as long as a decade.

    Returns:
        The ticks, in order.

    Example:
        >>> plain_ticks(2, 124, inches=6)
        [2, 5, 10, 20, 50, 100]
        >>> plain_ticks(2, 124, inches=1.5)
        [3, 10, 30, 100]
        >>> plain_ticks(0, 6000, inches=5)
        [0, 1, 3, 10, 30, 100, 300, 1000, 3000]
    """
    start, zero = (low, []) if low > 0 else (linear_below, [0.0])
    inches_per_decade = inches / max(math.log10(high / start) + len(zero), 1e-9)

    def fit(ticks: Sequence[float]) -> bool:
        sizes = [_INCHES_PER_DIGIT * len(_plain(tick)) if along_text else _GAP for tick in ticks]
        places = inches_per_decade * np.log10(np.maximum(ticks, start / 10))
        gaps = np.diff(places) - (np.array(sizes[1:]) + sizes[:-1]) / 2
        return bool((gaps >= _GAP / (1 if along_text else 4)).all())

    decades = range(math.floor(math.log10(start)), math.ceil(math.log10(high)) + 1)
    choices = [[float(f"{step}e{decade}") for decade in decades for step in steps] for steps in _TICK_STEPS]
    choices += [[10.0**decade for decade in decades if decade % every == 0] for every in (1, 2, 3, 5)]
    logarithmic = [zero + [tick for tick in choice if start <= tick <= high] for choice in choices]
    linear = [zero + _linear_ticks(start, high, bins) for bins in range(max(int(inches / 0.8), 2), 0, -1)]
    found, other = (
        next((ticks for ticks in kind if len(ticks) > 1 + len(zero) and fit(ticks)), [])
        for kind in (logarithmic, linear)
    )
    if not found or (high < 5 * start and len(other) > len(found)):  # too few round numbers within the limits
        found = other
    if not found:  # the numbers are long: take each one that fits beside the previous one
        for tick in logarithmic[len(_TICK_STEPS)] or linear[-1]:
            found += [tick] if not found or fit([found[-1], tick]) else []
    return [int(tick) if tick == int(tick) else tick for tick in found]


def _linear_ticks(low: float, high: float, bins: int) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=bins, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(f"{tick:.6g}") for tick in ticks if low <= tick <= high]


def _plain(tick: float) -> str:
    return f"{tick:,.0f}" if tick >= 1 and tick == int(tick) else f"{tick:.10f}".rstrip("0").rstrip(".") or "0"


def shortened(label: str) -> str:
    """Cut the middle out of a long label."""
    half = _LONGEST_LABEL // 2
    return label if len(label) <= _LONGEST_LABEL else f"{label[: half - 1]}…{label[-half:]}"


def legend_below(figure: Any, axes: Any) -> None:
    """Put the legend below the figure, in as many columns as fit its width; the figure grows with the rows.

    Args:
        figure: the figure.
        axes: the axes whose lines the legend names.
    """
    handles, labels = axes.get_legend_handles_labels()
    labels = [shortened(label) for label in labels]
    renderer, number = figure.canvas.get_renderer(), len(labels)
    for rows in range(math.ceil(number / 4), number + 1):
        columns = math.ceil(number / rows)  # columns of nearly equal length
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if legend.get_window_extent(renderer).width < 0.98 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(number / columns) - 1))
