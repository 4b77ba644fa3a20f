"""The style of all plots: colours, markers, fonts and titles."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_sharp.data.local_paths import without_paths
from hf_sharp.reports.plots.fonts import MAIN_FONT, drawable, fallback_fonts, import_matplotlib

# Okabe and Ito's colours, which colour-blind people can distinguish; a method's position in METHODS decides its colour.
PALETTE = ("#666666", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
# Tol's muted colours.
GROUP_COLOURS = {"many": "#332288", "medium": "#44AA99", "few": "#CC6677"}
LIGHT = "#dddddd"  # grid and reference lines

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,  # plain numbers, not 0.1 with +5e1 beside the axis
    "axes.formatter.limits": (-6, 9),
    "figure.constrained_layout.wspace": 0.06,  # keeps the last number of one axis apart from the first of the next
    "grid.color": LIGHT,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.parse_math": False,  # show a $ in a name as it is
    "savefig.dpi": 150,
}
_INCHES_PER_CHARACTER = 0.09  # the width of a title's characters
_PLAIN = ("baseline", "plain training")  # names of runs of plain training


@contextmanager
def picture(file: str | Path, size: tuple[float, float], title: str = "", texts: Iterable[str] = ()) -> Iterator[Any]:
    """Make a figure in this style, and save it at the end of the block.

    Args:
        file: the file to write; its suffix gives the format.
        size: width and height in inches.
        title: the title; paths in it are shortened.
        texts: texts that the figure will show, for which fonts are looked up.

    Yields:
        A `matplotlib.figure.Figure` without a window and outside pyplot's global state.
    """
    matplotlib = import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = shown_title(title)
    fonts = fallback_fonts([title, *texts])
    with matplotlib.rc_context(STYLE | {"font.family": [MAIN_FONT, *fonts]}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)  # provides the renderer that measures texts
        if title:
            figure.suptitle(textwrap.fill(title, int(size[0] / _INCHES_PER_CHARACTER)))
        yield figure
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)


def shown_title(title: str) -> str:
    """Shorten the paths in a title to their last components.

    Args:
        title: text that may begin with the path of a dataset, up to a comma or a colon.

    Returns:
        The title, on one line.

    Example:
        >>> shown_title("/srv/ann/photos/, split test: 540 examples"), shown_title("/srv/ann/photos/: 540 images")
        ('photos, split test: 540 examples', 'photos: 540 images')
    """
    subject, *rest = re.split(r"(?=[,:] )", title, maxsplit=1)
    if subject and os.path.exists(subject):
        subject = Path(subject).resolve().name
    return drawable(without_paths(subject) + without_paths("".join(rest)))


def run_styles(runs: Sequence[str], methods: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Choose colour and marker of every run: those of its sharpness method, unless an earlier run has them.

    Plain training is assigned first, so that it is always grey.

    Args:
        runs: the names of the runs, such as "baseline" or "sam+logit_adjusted".
        methods: run name to sharpness method, for names that do not contain it.

    Returns:
        `color` and `marker` per run; with more runs than colours, some are repeated.

    Example:
        >>> [style["color"] for style in run_styles(["logit_adjusted", "sam+vs", "sam+ldam", "baseline"])]
        ['#009E73', '#0072B2', '#D55E00', '#666666']
    """
    methods = methods or {}
    wanted = [_place(methods.get(run, run)) for run in runs]
    taken: dict[int, int] = {}  # run to position in the palette
    for i in sorted(range(len(runs)), key=lambda i: runs[i] not in _PLAIN):
        place = wanted[i]
        if place is None or place in taken.values():
            free = sorted({*range(len(PALETTE))} - {*taken.values()}, key=lambda i: (i in wanted, i))
            place = free[0] if free else i % len(PALETTE)
        taken[i] = place
    return [{"color": PALETTE[taken[i]], "marker": MARKERS[taken[i]]} for i in range(len(runs))]


def _place(run: str) -> int | None:
    from hf_sharp.losses import LOSSES  # imports torch, which plots of counts do not need
    from hf_sharp.sharpness.methods import METHODS

    method = run.split("+")[0]
    if method in _PLAIN or method in LOSSES:
        method = "none"
    return list(METHODS).index(method) % len(PALETTE) if method in METHODS else None
