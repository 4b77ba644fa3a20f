"""The plot of class shares in training and in new data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_sharp.reports.plots.by_count import NAMED_CLASSES
from hf_sharp.reports.plots.fonts import class_labels
from hf_sharp.reports.plots.layout import legend_below, log_ticks
from hf_sharp.reports.plots.style import LIGHT, PALETTE, picture

_MARKS: dict[str | None, tuple[dict[str, str], str]] = {  # change of a class to style and legend
    "grew": ({"color": PALETTE[3], "fmt": ">"}, "new data: grew"),
    "shrank": ({"color": PALETTE[1], "fmt": "<"}, "new data: shrank"),
    None: ({"color": PALETTE[0], "fmt": "o"}, "new data: no clear change"),
    "kept": ({"color": PALETTE[4], "fmt": "x"}, "kept: no labelled example to estimate it"),
}


def plot_shares(
    training: np.ndarray,
    shares: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    changes: Sequence[str | None],
    examples: int,
    names: Sequence[str],
    file: str | Path,
    title: str = "",
) -> None:
    """Draw the share of every class in new data, with its interval, beside its share in training, on a log axis.

    If there are more than 30 classes, only those with the largest relative changes are drawn, clear changes first. The
    axis is linear below the share of half an example of the new data, which is practically 0.

    Args:
        training: (K,) shares of the training set.
        shares: (K,) estimated shares of the new data.
        low: (K,) lower ends of the intervals.
        high: (K,) upper ends of the intervals.
        changes: K values "grew", "shrank", "kept" or None, as `ShiftEstimate.changes` returns them.
        examples: the number of new examples.
        names: (K,) class names.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    seen = 0.5 / examples
    change = np.abs(np.log(np.maximum(shares, seen) / np.maximum(training, seen)))
    clear = np.isin(list(map(str, changes)), ["grew", "shrank"])
    shown = np.lexsort((-change, ~clear))[:NAMED_CLASSES]
    shown = shown[np.argsort(training[shown], kind="stable")]  # the most frequent class at the top
    linear = 100 * min(seen, training.max())
    places = np.arange(len(shown))
    labels = class_labels(names)
    with picture(file, (7, 1.6 + 0.24 * len(shown)), title, names) as figure:
        axes = figure.add_subplot()
        axes.plot(
            100 * training[shown], places, "|", color="black", markersize=11, markeredgewidth=1.6, label="training"
        )
        for word, (style, label) in _MARKS.items():
            which = np.array([changes[c] == word for c in shown])
            if which.any():
                x = 100 * shares[shown][which]
                ends = None if word == "kept" else [x - 100 * low[shown][which], 100 * high[shown][which] - x]
                axes.errorbar(x, places[which], xerr=ends, elinewidth=1.2, label=label, **style)
        limits = -0.3 * linear, min(100 * max(training[shown].max(), high[shown].max()) * 1.3, 130)
        axes.set_xscale("symlog", linthresh=linear)
        axes.set_xlim(*limits)
        log_ticks(axes.xaxis, *limits, inches=5.5, linear_below=linear)
        axes.set_yticks(places, [labels[c] for c in shown])
        axes.hlines(places, *limits, color=LIGHT, linewidth=0.6, zorder=0)
        axes.set(xlabel="share of the examples (%), with 95 % intervals", ylim=(-0.7, len(shown) - 0.3))
        legend_below(figure, axes)
