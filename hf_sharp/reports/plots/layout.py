"""Ticks, legends and labels that fit: plain numbers, no overlaps, nothing cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_TICK_STEPS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,))
_INCHES_PER_DIGIT = 0.075
_GAP = 0.12  # inches between two labels
_LONGEST_LABEL = 60


def log_ticks(axis: Any, low: float, high: float, inches: float) -> None:
    """Label a logarithmic axis with plain numbers, such as 5, 10, 20, 50: as many as fit.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        low: its lower limit; 0 or less where the axis is linear below 1, as symlog.
        high: its upper limit.
        inches: its length.
    """
    ticks = plain_ticks(low, high, inches, along_text=axis.axis_name == "x")
    axis.set_ticks(ticks, [_plain(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def plain_ticks(low: float, high: float, inches: float, along_text: bool = True) -> list[float]:
    """Choose round numbers between two limits that fit a logarithmic axis.

    Args:
        low: the lower limit; 0 or less where the axis is linear below 1.
        high: the upper limit.
        inches: the axis' length.
        along_text: whether the labels stand side by side, as on an x axis.

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
    zero = [0] if low <= 0 else []
    start = 1.0 if low <= 0 else low
    inches_per_decade = inches / max(math.log10(high / start) + len(zero), 1e-9)
    decades = range(math.floor(math.log10(start)), math.ceil(math.log10(high)) + 1)
    choices = [[float(f"{step}e{decade}") for decade in decades for step in steps] for steps in _TICK_STEPS]
    choices += [[10.0**decade for decade in decades if decade % every == 0] for every in (2, 3, 5)]
    for choice in choices:
        ticks = [int(tick) if tick >= 1 else tick for tick in choice if start <= tick <= high]
        if len(ticks) > 1 and _fit(ticks, inches_per_decade, along_text):
            break
    linear = _linear_ticks(start, high, inches)
    narrow = high < 5 * start and len(linear) > len(ticks)  # too few round numbers within the limits
    return zero + (linear if narrow or len(ticks) < 2 else ticks)


def _fit(ticks: Sequence[float], inches_per_decade: float, along_text: bool) -> bool:
    sizes = [_INCHES_PER_DIGIT * len(_plain(tick)) if along_text else _GAP for tick in ticks]
    gaps = inches_per_decade * np.diff(np.log10(ticks)) - (np.array(sizes[1:]) + sizes[:-1]) / 2
    return bool((gaps >= _GAP / (1 if along_text else 4)).all())


def _linear_ticks(low: float, high: float, inches: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=max(int(inches / 0.8), 2), steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(f"{tick:.6g}") for tick in ticks if low <= tick <= high]


def _plain(tick: float) -> str:
    return f"{tick:,.0f}" if tick >= 1 and tick == int(tick) else f"{tick:.10f}".rstrip("0").rstrip(".") or "0"


def shortened(label: str) -> str:
    """Cut the middle out of a long label."""
    half = _LONGEST_LABEL // 2
    return label if len(label) <= _LONGEST_LABEL else f"{label[: half - 1]}…{label[-half:]}"


def legend_below(figure: Any, axes: Any) -> None:
    """Put the legend below the figure, in as many columns as its width holds; the figure grows with the rows.

    Args:
        figure: the figure.
        axes: whose lines the legend names.
    """
    handles, labels = axes.get_legend_handles_labels()
    labels = [shortened(label) for label in labels]
    renderer = figure.canvas.get_renderer()
    for columns in range(min(len(labels), 4), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if legend.get_window_extent(renderer).width < 0.98 * figure.bbox.width or columns == 1:
            break
        legend.remove()
    rows = math.ceil(len(labels) / columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(rows - 1, 0))


def label_points(
    figure: Any, axes: Any, points: Sequence[tuple[float, float]], labels: Sequence[str], marks: Any = ()
) -> None:
    """Name some points, each label where it covers neither another label nor a mark.

    Args:
        figure: the figure; everything else is drawn already.
        axes: the axes.
        points: (n,) in the data's coordinates.
        labels: (n,) their names.
        marks: (m, 2), all points that are drawn.
    """
    from matplotlib.patheffects import withStroke

    if not len(points):
        return
    figure.draw_without_rendering()  # settles the place of the axes
    renderer = figure.canvas.get_renderer()
    pixels = axes.transData.transform(points)
    obstacles = [(x - 4, y - 4, x + 4, y + 4) for x, y in axes.transData.transform([*marks, *points])]
    halo = [withStroke(linewidth=2.5, foreground="white")]
    taken: list[tuple[float, ...]] = []
    for i in np.argsort([y for _, y in pixels], kind="stable"):
        measured = axes.text(0, 0, labels[i], fontsize=8)
        box = measured.get_window_extent(renderer)
        measured.remove()
        place = _free_place(pixels[i], (box.width, box.height), axes.bbox, taken, obstacles)
        taken.append(_box(place, box.width, box.height))
        axes.annotate(
            labels[i],
            points[i],
            xytext=(place - pixels[i]) * 72 / figure.dpi,
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
            path_effects=halo,
            arrowprops={"arrowstyle": "-", "color": "#555555", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        ).set_in_layout(False)


def _free_place(
    point: np.ndarray, size: tuple[float, float], bounds: Any, labels: Sequence[tuple], marks: Sequence[tuple]
) -> np.ndarray:
    places = [np.array(place) for place in _places(point, size)]
    inside = [place for place in places if _inside(_box(place, *size), bounds)]
    apart = [place for place in inside if not any(_overlap(_box(place, *size), other) for other in labels)]
    free = [place for place in apart if not any(_overlap(_box(place, *size), other) for other in marks)]
    return (free or apart or inside or places)[0]  # where it is crowded, rather over a mark than over a label


def _places(point: np.ndarray, size: tuple[float, float]) -> list[tuple[float, float]]:
    (x, y), (width, height) = point, size
    # Above the point, below it and beside it, in growing distance: lines run from side to side.
    beside = width / 2 + 8
    places = []
    for distance in range(13):
        rise = (distance + 1) * 0.75 * height + 4
        places += [(x + shift * beside, y + rise) for shift in (0, 0.7, -0.7, 1.4, -1.4)]
        places += [(x + shift * beside, y - rise) for shift in (0, 0.7, -0.7, 1.4, -1.4)]
        places += [(x + beside, y), (x - beside, y)] if distance == 0 else []
    return places


def _box(place: np.ndarray, width: float, height: float) -> tuple[float, float, float, float]:
    x, y = place
    return x - width / 2 - 1, y - height / 2 - 1, x + width / 2 + 1, y + height / 2 + 1


def _inside(box: tuple[float, ...], bounds: Any) -> bool:
    return box[0] >= bounds.x0 and box[1] >= bounds.y0 and box[2] <= bounds.x1 and box[3] <= bounds.y1


def _overlap(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
