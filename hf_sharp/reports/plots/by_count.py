"""Plots of class counts, and of recall against class count."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_sharp.registry.words import quantity
from hf_sharp.reports.figures import group_limits, half_width, percent
from hf_sharp.reports.long_tail_report import frequencies_of
from hf_sharp.reports.plots.fonts import class_labels, drawable
from hf_sharp.reports.plots.labels import label_points
from hf_sharp.reports.plots.layout import count_ticks, legend_below, log_ticks
from hf_sharp.reports.plots.style import GROUP_COLOURS, picture, run_styles

NAMED_CLASSES = 30  # the most classes that a plot has room to name
_SMOOTHED_ABOVE = 25  # with more classes, the line is a running mean
_WORST = 5


def plot_recall_by_count(
    reports: Mapping[str, Mapping[str, Any]],
    file: str | Path,
    title: str = "",
    *,
    methods: Mapping[str, str] | None = None,
    names: Any = None,
) -> None:
    """Draw the recall of every class against its number of training examples, one line per run.

    The five classes with the lowest recalls in the last run are named, if they are below its mean and there is room. If
    there are many classes, the line is a running mean.

    Args:
        reports: run name to `long_tail_report`, all on the same classes.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
        methods: run name to sharpness method, which decides the colour, for runs whose names do not contain it.
        names: (K,) class names. Default: those of the reports.
    """
    first = next(iter(reports.values()), {})
    frequencies = frequencies_of(first)
    counts, names = frequencies.counts, frequencies.labels if names is None else names
    with picture(file, (7, 4.4), title, [*names, *reports]) as figure:
        axes = figure.add_subplot()
        low, high = _count_axis(axes, counts)
        for (run, report), style in zip(reports.items(), run_styles([*reports], methods), strict=True):
            _recall_line(axes, counts, report, drawable(run), style)
        _shade_groups(axes, first, low, high)
        axes.set(ylim=(-3, 103), xlabel=f"training examples of the class{_left_out(reports)}", ylabel="recall (%)")
        legend_below(figure, axes)
        recall = percentages([*reports.values()][-1]["per_class_recall"])
        worst = [c for c in np.argsort(recall, kind="stable")[:_WORST] if recall[c] < np.nanmean(recall)]
        labels = class_labels(names)
        label_points(axes, [(counts[c], recall[c]) for c in worst], [labels[c] for c in worst])


def _left_out(reports: Mapping[str, Mapping[str, Any]]) -> str:
    # The axis includes the counts of classes without a mark.
    absent = sum(
        all(recall is None for recall in of_class)
        for of_class in zip(*(report["per_class_recall"] for report in reports.values()), strict=True)
    )
    if not absent:
        return ""
    return f"\n{quantity(absent, 'class', 'classes')} without evaluated examples: not shown"


def _count_axis(axes: Any, counts: np.ndarray) -> tuple[float, float]:
    low, high = counts.min() / 1.25 if counts.min() else -0.3, counts.max() * 1.25
    axes.set_xscale("symlog", linthresh=1) if counts.min() == 0 else axes.set_xscale("log")
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high, inches=6)
    return low, high


def _shade_groups(axes: Any, report: Mapping[str, Any], low: float, high: float) -> None:
    limits = group_limits(report["rare_threshold"], report["common_threshold"])
    edges = (low, report["rare_threshold"], report["common_threshold"], high)
    for group, start, end in zip(("few", "medium", "many"), edges, edges[1:], strict=False):
        if max(start, low) < min(end, high):
            label = f"{group} ({limits[group]})"
            span = (max(start, low), min(end, high))
            axes.axvspan(*span, color=GROUP_COLOURS[group], alpha=0.13, zorder=0, linewidth=0, label=label)


def _recall_line(axes: Any, counts: np.ndarray, report: Mapping[str, Any], run: str, style: dict[str, Any]) -> None:
    recall = percentages(report["per_class_recall"])
    order = np.argsort(counts, kind="stable")
    order = order[~np.isnan(recall[order])]
    width = half_width(report["per_class_recall"], report["per_class_support"])
    label = f"{run} (mean {percent(report['balanced_accuracy'], width)} %)"
    if len(order) <= _SMOOTHED_ABOVE:
        axes.plot(counts[order], recall[order], label=label, **style)
        return
    window = len(order) // 6
    smooth = np.convolve(recall[order], np.ones(window) / window, mode="valid")
    middle = counts[order][window // 2 : window // 2 + len(smooth)]
    axes.plot(counts[order], recall[order], linestyle="", markersize=3, alpha=0.45, **style)
    axes.plot(middle, smooth, linewidth=2, color=style["color"], label=label)


def percentages(shares: Any) -> np.ndarray:
    """Convert shares to percentages, and None to NaN."""
    return np.array([np.nan if share is None else 100 * share for share in shares])


def plot_counts(frequencies: Any, file: str | Path, title: str = "") -> None:
    """Draw how many training examples every class has, the most frequent first.

    Args:
        frequencies: `ClassFrequencies`.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    counts = frequencies.counts
    names = frequencies.labels
    title = ", ".join(filter(None, (title, f"imbalance factor {frequencies.imbalance_factor:,.0f}")))
    named = len(counts) <= NAMED_CLASSES
    with picture(file, (7, 1.6 + 0.2 * len(counts)) if named else (7, 4.2), title, names) as figure:
        axes = figure.add_subplot()
        order = np.argsort(-counts, kind="stable")
        limits = group_limits(frequencies.rare_threshold, frequencies.common_threshold)
        low, high = 0.7, 1.6 * counts.max()
        for group, classes in frequencies.groups.items():
            places = np.flatnonzero(np.isin(order, classes))  # consecutive, because classes are sorted by count
            if len(places):
                style = {"color": GROUP_COLOURS[group], "label": f"{group} ({limits[group]}): {len(places):,}"}
                bars = counts[order[places]]
                if named:
                    axes.barh(places, bars, **style)
                else:  # draw thousands of bars as one outline
                    edges = np.append(places, places[-1] + 1) + 0.5
                    axes.stairs(np.maximum(bars, low), edges, baseline=low, fill=True, **style)
        if named:
            axes.set(xscale="log", xlim=(low, high), xlabel="training examples")
            log_ticks(axes.xaxis, low, high, inches=5)
            labels = class_labels(names)
            axes.set_yticks(range(len(order)), [labels[c] for c in order])
            axes.set_ylim(len(order) - 0.4, -0.6)
            for i, c in enumerate(order):
                axes.text(max(counts[c], low) * 1.06, i, f"{counts[c]:,}", va="center", fontsize=8)
        else:
            axes.set(yscale="log", ylim=(low, high), xlabel="classes, most frequent first", ylabel="training examples")
            axes.set_xlim(0.5, len(order) + 0.5)
            count_ticks(axes.xaxis)
            log_ticks(axes.yaxis, low, high, inches=3)
        legend_below(figure, axes)
