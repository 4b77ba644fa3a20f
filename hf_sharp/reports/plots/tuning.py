"""Plots of a search: accuracy against every option, and against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_sharp.reports.plots.labels import label_points
from hf_sharp.reports.plots.layout import legend_below, log_ticks
from hf_sharp.reports.plots.style import GROUP_COLOURS, PALETTE, picture, run_styles
from hf_sharp.reports.tuning import FINISHED, best_of, costs_of

_COLUMNS = 3
_LINE = "#aaaaaa"
_RING = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": "black"}


def plot_sensitivity(
    runs: Sequence[Mapping[str, Any]],
    file: str | Path,
    title: str = "",
    *,
    is_log: Callable[[str], bool] = lambda name: False,
    free: Mapping[str, Mapping[float, float]] | None = None,
) -> None:
    """Draw balanced and few-class accuracy of every finished run against every option that was searched.

    Options with a single value are left out.

    Args:
        runs: the runs, with `state`, `value`, `few` (or None) and `params`.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
        is_log: tells from an option's name whether its axis is logarithmic.
        free: option to a mapping from value to balanced accuracy, found without training; drawn as a line.
    """
    finished = [run for run in runs if run["state"] == FINISHED]
    best = best_of(runs)
    tried: dict[str, set] = {}
    for run in finished:
        for name, value in run["params"].items():
            tried.setdefault(name, set()).add(value)
    several = {name for name, values in tried.items() if len(values) > 1} or tried.keys()  # one run has one value
    names = sorted(several, key=lambda name: (name.startswith("rho"), name))
    columns = min(len(names), _COLUMNS) or 1
    rows = math.ceil(len(names) / columns) or 1
    with picture(file, (2.7 * columns + 0.8, 2.6 * rows + 0.8), title, names) as figure:
        panels = [*figure.subplots(rows, columns, sharey=True, squeeze=False).flat]
        for axes, name in zip(panels, names, strict=False):
            having = [run for run in finished if name in run["params"]]
            values = [run["params"][name] for run in having]
            if isinstance(values[0], str):
                ticks = sorted(set(values), key=values.index)
                x: list[Any] = [ticks.index(value) for value in values]
                axes.set_xticks(range(len(ticks)), [tick.replace(", ", ",\n") for tick in ticks])
                axes.set_xlim(-0.6, len(ticks) - 0.4)
            else:
                x = values
                if is_log(name):
                    axes.set_xscale("log")
                    low, high = min(x) / 1.25, max(x) * 1.25
                    axes.set_xlim(low, high)
                    log_ticks(axes.xaxis, low, high, inches=2.3)
            if line := (free or {}).get(name):
                scores = [100 * score for score in line.values()]
                axes.plot([*line], scores, "-", color=_LINE, linewidth=2, label="balanced, without training")
            axes.plot(x, [100 * run["value"] for run in having], "o", color=PALETTE[1], label="balanced accuracy")
            few = [(place, 100 * run["few"]) for place, run in zip(x, having, strict=True) if run["few"] is not None]
            if few:
                axes.plot(*zip(*few, strict=True), "^", color=GROUP_COLOURS["few"], label="few classes")
            if best in having:
                place = x[having.index(best)]
                axes.plot([place], [100 * best["value"]], "o", label="chosen", **_RING)
            axes.set_xlabel(name)
            axes.grid(axis="y")
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel("validation accuracy (%)")
        fullest = max(panels[: len(names)], key=lambda axes: len(axes.get_legend_handles_labels()[1]))
        legend_below(figure, fullest)


def plot_pareto(runs: Sequence[Mapping[str, Any]], file: str | Path, title: str = "") -> None:
    """Draw the balanced accuracy of every finished run against its cost, as `costs_of` computes it.

    The runs that no other beats at the same or a lower cost (the Pareto front) have rings, numbers and a joining line.

    Args:
        runs: the runs, with `state`, `number`, `value`, `passes`, `seconds` and `group` (the method).
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    finished = [run for run in runs if run["state"] == FINISHED]
    costs = costs_of(runs)
    points = {run["number"]: (costs.of[run["number"]], 100 * run["value"]) for run in finished}
    front = pareto_front(points)
    groups = sorted({run["group"] for run in finished}, key=[run["group"] for run in runs].index)
    with picture(file, (6.5, 4.2), title, groups) as figure:
        axes = figure.add_subplot()
        for group, style in zip(groups, run_styles(groups), strict=True):
            of_group = [points[run["number"]] for run in finished if run["group"] == group]
            axes.plot(*zip(*of_group, strict=True), linestyle="", label=group, **style)
        axes.set(xlabel=costs.what, ylabel="balanced accuracy on validation data (%)")
        line, ring = [points[number] for number in front], _RING | {"linewidth": 1.2, "drawstyle": "steps-post"}
        axes.plot(*zip(*line, strict=True), "-o", color=_LINE, zorder=1, label="best for its cost", **ring)
        axes.margins(0.12)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.8 * line[0][0]), max(high, 1.2 * line[0][0]))  # nearly equal costs should look equal
        axes.grid()
        legend_below(figure, axes)
        label_points(axes, line, [f"run {number}" for number in front])


def pareto_front(points: Mapping[int, tuple[float, float]]) -> list[int]:
    """List the points of the Pareto front: no other point has a higher accuracy at the same or a lower cost.

    Args:
        points: key to cost and accuracy.

    Returns:
        The keys of these points, in the order of cost.

    Example:
        >>> pareto_front({0: (1.0, 70.0), 1: (2.0, 75.0), 2: (2.5, 74.0)})
        [0, 1]
    """
    front: list[int] = []
    for key in sorted(points, key=lambda key: (points[key][0], -points[key][1])):
        if not front or points[key][1] > points[front[-1]][1]:
            front.append(key)
    return front
