"""Plots of a training run: its radius, and the loss around the final weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_sharp.reports.plots.fonts import drawable
from hf_sharp.reports.plots.layout import count_ticks, legend_below, log_ticks
from hf_sharp.reports.plots.style import LIGHT, PALETTE, picture, run_styles


def plot_radius(histories: Mapping[str, Mapping[str, Sequence[float]]], file: str | Path, title: str = "") -> None:
    """Draw the radius ρ over the optimizer's steps, one line per run.

    Args:
        histories: run to `{"step": [...], "rho": [...]}`.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    with picture(file, (7, 4.2), title, histories) as figure:
        axes = figure.add_subplot()
        axes.set_yscale("log")
        for run, history, colour in zip(histories, histories.values(), PALETTE[1:] * len(histories), strict=False):
            label = f"{drawable(run)}: ends at {history['rho'][-1]:.3g}"
            axes.plot(history["step"], history["rho"], _marker(history["step"]), color=colour, label=label)
        low, high = axes.get_ylim()
        if high < 2 * low:  # a radius that hardly changes should look nearly constant
            low, high = low / 2, high * 2
        axes.set_ylim(low, high)
        log_ticks(axes.yaxis, low, high, inches=3.2)
        count_ticks(axes.xaxis)
        axes.set(xlabel="optimizer step", ylabel="radius ρ")
        axes.grid(axis="y")
        legend_below(figure, axes)


def plot_loss_along(reports: Mapping[str, Mapping[str, Any]], file: str | Path, title: str = "") -> None:
    """Draw the rise of the loss along the gradient and along a random direction, for one or more models.

    Args:
        reports: model name to the result of `measure_curvature`.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    kinds = (("ascent", "along the gradient"), ("random", "along a random direction"))
    with picture(file, (10, 4.4), title, reports) as figure:
        panels = figure.subplots(1, 2)
        for axes, (kind, heading) in zip(panels, kinds, strict=True):
            for (model, report), style in zip(reports.items(), run_styles([*reports]), strict=True):
                radii = np.asarray(report["along"]["radii"])
                for group, line in (("all", "-"), ("few", "--")):
                    values = report["along"][kind][group]
                    if values is not None and report[group] is not None:
                        label = f"{drawable(model)}, {'all classes' if group == 'all' else 'few'}"
                        axes.plot(radii, np.asarray(values) - report[group]["loss"], line, label=label, **style)
            axes.axvline(0, color=LIGHT, linewidth=0.8, zorder=0)
            axes.axhline(0, color=LIGHT, linewidth=0.8, zorder=0)
            axes.set_xticks(radii[::2])
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set(xlabel="distance from the weights", title=heading)
        panels[0].set_ylabel("loss − loss at the weights")
        legend_below(figure, panels[0])


def _marker(values: Sequence[float]) -> str:
    return "-o" if len(values) == 1 else "-"  # a line through one point is invisible
