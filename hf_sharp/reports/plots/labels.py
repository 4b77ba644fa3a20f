"""Places labels of points where they can be read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

LEADER = "leader"  # the gid of the line from a label to its point


def label_points(axes: Any, points: Sequence[tuple[float, float]], labels: list[str]) -> None:
    """Label points so that no label covers another label, a line or a mark.

    A label for which there is no room is left out.

    Args:
        axes: the axes, on which everything else has been drawn.
        points: n points in data coordinates.
        labels: n names.
    """
    import textalloc
    from matplotlib.patheffects import withStroke

    if not len(points):
        return
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    marks = np.concatenate([line.get_xydata() for line in drawn])
    ways = [line for line in drawn if line.get_linestyle() != "None"]
    axes.autoscale(False)
    x, y = np.transpose(points)
    with redirect_stdout(StringIO()):  # the library prints a line if no label fits
        textalloc.allocate(
            axes,
            x,
            y,
            labels,
            x_scatter=marks[:, 0],
            y_scatter=marks[:, 1],
            x_lines=[line.get_xdata() for line in ways],
            y_lines=[line.get_ydata() for line in ways],
            textsize=8,
            va="bottom",
            max_distance=0.5,
            nbr_candidates=1000,
            draw_all=False,
            avoid_label_lines_overlap=True,
            avoid_crossing_label_lines=True,
            linecolor="#555555",
            linewidth=0.6,
            plot_kwargs={"gid": LEADER},
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
