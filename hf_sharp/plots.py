"""Every picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Told apart also by the colour-blind (Okabe and Ito), and by their markers.
_COLOURS = ("#999999", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_MARKERS = "os^Dv*"


def plot_recall_by_count(reports: Mapping[str, Mapping[str, Any]], file: str | Path, title: str = "") -> None:
    """Draw the recall of every class against its number of training examples, one line per run.

    Args:
        reports: run name to `long_tail_report`; all of the same classes.
        file: where the picture goes; its ending chooses the format.
        title: the picture's title.
    """
    from matplotlib.figure import Figure  # the object interface: no window, no global state

    first = next(iter(reports.values()))
    counts = np.asarray(first["class_counts"])
    rare, common = first["rare_threshold"], first["common_threshold"]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("symlog", linthresh=1) if counts.min() == 0 else axes.set_xscale("log")

    low, high = counts.min() / 1.25 if counts.min() else -0.2, counts.max() * 1.25
    for name, start, end, shade in (
        ("few", low, rare, "#f3e3d7"),
        ("medium", rare, common, "#f5f1e6"),
        ("many", common, high, "#e6eef5"),
    ):
        start, end = max(start, low), min(end, high)
        if start < end:
            axes.axvspan(start, end, color=shade, zorder=0, linewidth=0)
            axes.text(np.sqrt(max(start, 0.3) * end), 104, name, ha="center", va="bottom", fontsize=9, color="#666666")
    for i, (run, report) in enumerate(reports.items()):
        recall = np.array([np.nan if value is None else 100 * value for value in report["per_class_recall"]])
        order = np.argsort(counts, kind="stable")
        order = order[~np.isnan(recall[order])]
        style: dict[str, Any] = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        line = "-" if i < len(_COLOURS) else "--"
        label = f"{run} (mean {100 * report['balanced_accuracy']:.1f})"
        # Many classes make lines a thicket: their points stay, their line is a running mean.
        if len(order) > 25:
            window = max(len(order) // 10, 3)
            smooth = np.convolve(recall[order], np.ones(window) / window, mode="valid")
            middle = counts[order][window // 2 : window // 2 + len(smooth)]
            axes.plot(counts[order], recall[order], linestyle="", markersize=3, alpha=0.45, **style)
            axes.plot(middle, smooth, line, linewidth=2, color=style["color"], label=label)
        else:
            axes.plot(counts[order], recall[order], line, linewidth=1.5, markersize=5.5, label=label, **style)
    axes.set(xlim=(low, high), ylim=(-3, 103), xlabel="training examples of the class", ylabel="recall (%)")
    axes.set_title(title, fontsize=10, pad=20)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    _save(figure, file)


def plot_radius(histories: Mapping[str, Mapping[str, Sequence[float]]], file: str | Path, title: str = "") -> None:
    """Draw the radius ρ over the optimizer's steps, one line per run.

    Args:
        histories: run name to `{"step": [...], "rho": [...]}`.
        file: where the picture goes; its ending chooses the format.
        title: the picture's title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for i, (run, history) in enumerate(histories.items()):
        colour = _COLOURS[(i + 1) % len(_COLOURS)]
        axes.plot(history["step"], history["rho"], color=colour, linewidth=1.5, label=run)
        axes.annotate(
            f"{history['rho'][-1]:.3g}",
            (history["step"][-1], history["rho"][-1]),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    if high < 2 * low:  # a radius that hardly moves shall look like it
        axes.set_ylim(low / 2, high * 2)
    axes.set(xlabel="optimizer step", ylabel="radius ρ")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    _save(figure, file)


def _save(figure: Any, file: str | Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
