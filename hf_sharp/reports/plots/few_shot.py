"""The plot of a few-shot evaluation."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_sharp.reports.plots.fonts import drawable
from hf_sharp.reports.plots.layout import legend_below
from hf_sharp.reports.plots.style import picture, run_styles


def plot_few_shot(rows: Mapping[str, Mapping[str, Any]], file: str | Path, title: str = "") -> None:
    """Draw the accuracies of several backbones on several domains, with their intervals.

    Args:
        rows: backbone to domain to `FewShotResult`.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    domains = list(dict.fromkeys(domain for row in rows.values() for domain in row))
    with picture(file, (2.2 + 1.6 * len(domains), 4.4), title, [*rows, *domains]) as figure:
        axes = figure.add_subplot()
        for i, ((name, row), style) in enumerate(zip(rows.items(), run_styles([*rows]), strict=True)):
            offset = (i - (len(rows) - 1) / 2) * 0.7 / len(rows)
            places = [domains.index(domain) + offset for domain in row]
            accuracies, intervals = (
                [100 * getattr(result, figure_of) for result in row.values()] for figure_of in ("accuracy", "interval")
            )
            axes.errorbar(places, accuracies, intervals, linestyle="", capsize=3, label=drawable(name), **style)
        axes.set_xticks(range(len(domains)), [textwrap.fill(drawable(domain), 16) for domain in domains])
        axes.set(xlim=(-0.5, len(domains) - 0.5), ylabel="accuracy (%), 95 % interval")
        axes.grid(axis="y")
        legend_below(figure, axes)
