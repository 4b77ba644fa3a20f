"""Plots of the confusions of a classifier, and of its calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.registry.arrays import as_array
from hf_sharp.reports.calibration import calibration_bins
from hf_sharp.reports.figures import group_limits, half_width
from hf_sharp.reports.long_tail_report import checked_predictions, frequencies_of
from hf_sharp.reports.plots.by_count import NAMED_CLASSES, percentages
from hf_sharp.reports.plots.fonts import class_labels
from hf_sharp.reports.plots.labels import label_points
from hf_sharp.reports.plots.layout import legend_below
from hf_sharp.reports.plots.style import GROUP_COLOURS, LIGHT, PALETTE, picture

_NUMBERED_CLASSES = 15  # the most classes for which the cells of a confusion matrix have room for numbers
_LETTERS_ABREAST = 36  # the room for the labels of columns
_DARK = 55  # percent; numbers in darker cells are white


def plot_confusion_matrix(
    predictions: Any, references: Any, frequencies: ClassFrequencies, file: str | Path, title: str = ""
) -> None:
    """Draw how often each class is predicted for examples of each class, in percent of the true class's examples.

    The most frequent class in training comes first. More than 30 classes are grouped into many, medium and few, with a
    separate column for correct predictions. A row without examples is hatched.

    Args:
        predictions: (N,) predicted class indices.
        references: (N,) true class indices.
        frequencies: the class frequencies of the training set.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    shares, rows, columns = confusion_shares(predictions, references, frequencies)
    side = 2.2 + 0.26 * len(rows)
    size = (side + 2.2, side + 0.8) if len(rows) > len(GROUP_COLOURS) else (6.5, 3.4)
    with picture(file, size, title, [*rows, *columns]) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        axes.set_yticks(range(len(rows)), rows)
        longest = max(map(len, columns))
        turned = columns is rows and longest > 3 and longest * len(columns) > _LETTERS_ABREAST
        axes.set_xticks(range(len(columns)), columns, rotation=90 if turned else 0)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.spines[:].set_visible(False)
        if len(rows) <= _NUMBERED_CLASSES:
            for (row, column), share in np.ndenumerate(shares):
                if share > 0:
                    colour = "white" if 100 * share > _DARK else "black"
                    axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
        for row in np.flatnonzero(np.isnan(shares).all(1)).tolist():
            _mark_empty(axes, row, shares.shape[1])
        figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.9)


def _mark_empty(axes: Any, row: int, columns: int) -> None:
    from matplotlib.patches import Rectangle

    hatched: dict[str, Any] = {"fill": False, "hatch": "////", "edgecolor": LIGHT, "linewidth": 0}
    axes.add_patch(Rectangle((-0.5, row - 0.5), columns, 1, **hatched))
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    middle = (columns - 1) / 2
    axes.text(middle, row, "no examples", ha="center", va="center", fontsize=8, color="#555555", bbox=behind)


def confusion_shares(
    predictions: Any, references: Any, frequencies: ClassFrequencies
) -> tuple[np.ndarray, list[str], list[str]]:
    """Compute the confusion matrix with rows divided by their sums.

    Args:
        predictions: (N,) predicted class indices.
        references: (N,) true class indices.
        frequencies: the class frequencies of the training set.

    Returns:
        (R, C) shares, NaN in a row without examples; the labels of the rows; and those of the columns. With up to 30
        classes, rows and columns are classes, the most frequent in training first. With more, the rows are groups, and
        the columns are "right" and the groups of wrong predictions.

    Raises:
        ValueError: as `long_tail_report` for the predictions.

    Example:
        >>> frequencies = ClassFrequencies.from_counts([5, 30], names=("cat", "dog"))
        >>> confusion_shares([1, 0, 1], [0, 0, 1], frequencies)
        (array([[1. , 0. ],
               [0.5, 0.5]]), ['dog', 'cat'], ['dog', 'cat'])
    """
    predictions, references = checked_predictions(predictions, references, num_classes := frequencies.num_classes)
    labels = class_labels(frequencies.labels)
    if num_classes <= NAMED_CLASSES:
        order = np.argsort(-frequencies.counts, kind="stable")
        place = np.argsort(order)
        rows = columns = [labels[i] for i in order]
        matrix = _count_pairs(place[references], place[predictions], (num_classes, num_classes))
    else:
        groups = [group for group, classes in frequencies.groups.items() if len(classes)]
        group_of = np.array([groups.index(group) for group in frequencies.group_of])
        limits = group_limits(frequencies.rare_threshold, frequencies.common_threshold)
        rows = [f"{group}\n({limits[group]})" for group in groups]
        columns = ["right", *(f"wrong,\n{group}" for group in groups)]
        column = np.where(predictions == references, 0, 1 + group_of[predictions])
        matrix = _count_pairs(group_of[references], column, (len(rows), len(columns)))
    with np.errstate(invalid="ignore"):
        return matrix / matrix.sum(1, keepdims=True), rows, columns


def _count_pairs(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)


def plot_precision_recall(report: Mapping[str, Any], file: str | Path, title: str = "") -> None:
    """Draw precision and recall of every class: a row per class, or a scatter plot if there are more than 30 classes.

    The rows begin with the most frequent class in training. In the scatter plot, the classes with the five lowest
    recalls are named if there is room.

    Args:
        report: the result of `long_tail_report`.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    frequencies = frequencies_of(report)
    names = frequencies.labels
    recall, precision = (percentages(report[f"per_class_{figure}"]) for figure in ("recall", "precision"))
    few_classes = len(names) <= NAMED_CLASSES
    with picture(file, (7, 1.6 + 0.24 * len(names)) if few_classes else (6.5, 5), title, names) as figure:
        axes = figure.add_subplot()
        labels = class_labels(names)
        if few_classes:
            _draw_rows(axes, recall, precision, np.argsort(-frequencies.counts, kind="stable"), labels, frequencies)
        else:
            _draw_scatter(axes, recall, precision, frequencies)
        legend_below(figure, axes)
        if not few_classes:
            at: dict[tuple[float, float], list[str]] = {}
            for c in np.argsort(recall, kind="stable").tolist():
                if not np.isnan(recall[c] + precision[c]):
                    at.setdefault((recall[c], precision[c]), []).append(labels[c])
            label_points(axes, [*at][:5], [shared_label(named) for named in at.values()][:5])


def shared_label(names: Sequence[str]) -> str:
    """Make the label of a mark that stands for one or more classes at the same position.

    Example:
        >>> shared_label(["owl"]), shared_label(["owl", "elk", "emu"])
        ('owl', 'owl and 2 more')
    """
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def _draw_rows(
    axes: Any,
    recall: np.ndarray,
    precision: np.ndarray,
    order: np.ndarray,
    labels: list[str],
    frequencies: ClassFrequencies,
) -> None:
    places = np.arange(len(order))
    axes.hlines(places, recall[order], precision[order], color=LIGHT, linewidth=2, zorder=1)
    axes.plot(recall[order], places, "o", color=PALETTE[1], label="recall")
    axes.plot(precision[order], places, "D", color=PALETTE[3], fillstyle="none", label="precision")
    axes.set_yticks(places, [f"{labels[c]} ({frequencies.counts[c]:,})" for c in order])
    axes.set(xlim=(-3, 103), xlabel="%", ylabel="class (training examples)")
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.grid(axis="x")


def _draw_scatter(axes: Any, recall: np.ndarray, precision: np.ndarray, frequencies: ClassFrequencies) -> None:
    limits = group_limits(frequencies.rare_threshold, frequencies.common_threshold)
    for (group, classes), marker in zip(frequencies.groups.items(), "osD", strict=True):
        if len(classes):
            style = {"color": GROUP_COLOURS[group], "marker": marker, "linestyle": "", "alpha": 0.75, "clip_on": False}
            axes.plot(recall[classes], precision[classes], label=f"{group} ({limits[group]})", **style)
    axes.set(xlim=(-3, 103), ylim=(-3, 103), xlabel="recall (%)", ylabel="precision (%)")
    axes.grid()


def plot_reliability(
    probabilities: Any, references: Any, file: str | Path, title: str = "", *, predictions: Any = None
) -> None:
    """Draw the reliability diagram: accuracy against confidence in 15 bins, and the share of predictions per bin.

    Args:
        probabilities: (N, K), rows that sum to 1; or (N,), those of `predictions`.
        references: (N,) true class indices.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
        predictions: (N,) predicted class indices. Default: the most likely classes.
    """
    probabilities = as_array(probabilities)
    predictions = probabilities.argmax(1) if predictions is None else as_array(predictions)
    bins = calibration_bins(predictions, as_array(references), probabilities)
    occupied = bins.counts > 0
    confidence, accuracy, count = (values[occupied] for values in (bins.confidence, bins.accuracy, bins.counts))
    width = np.array([half_width([value], [number]) for value, number in zip(accuracy, count, strict=True)])
    spread = 100 * np.stack([np.minimum(width, accuracy), np.minimum(width, 1 - accuracy)])
    with picture(file, (5.5, 5.5), title) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 100], [0, 100], color=PALETTE[0], linestyle="--", label="perfect calibration")
        style = {"color": PALETTE[1], "marker": "o", "capsize": 2, "linewidth": 1.2}
        upper.errorbar(100 * confidence, 100 * accuracy, spread, label="this model, 95 % interval", **style)
        upper.set(ylabel="accuracy (%)", xlim=(0, 100), ylim=(-3, 103))
        upper.set_title(f"expected calibration error {100 * bins.error:.1f} %")
        edges = np.linspace(0, 100, len(bins.counts) + 1)
        lower.bar(edges[:-1], 100 * bins.counts / bins.counts.sum(), np.diff(edges), align="edge", color=PALETTE[1])
        lower.set(xlabel="confidence (%)", ylabel="predictions (%)")
        for axes in (upper, lower):
            axes.grid()
        legend_below(figure, upper)
