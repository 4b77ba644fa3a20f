"""The style sheet of all pictures: colours, markers, fonts and titles."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_sharp.data.local_paths import without_paths
from hf_sharp.reports.plots.fonts import MAIN_FONT, drawable, fallback_fonts, import_matplotlib

# Okabe and Ito's colours, which the colour-blind can tell apart; a method's is that of its place in METHODS.
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
    "grid.color": LIGHT,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "text.parse_math": False,  # a $ in a name is a $
    "savefig.dpi": 150,
}
_INCHES_PER_CHARACTER = 0.09  # of a title


@contextmanager
def picture(file: str | Path, size: tuple[float, float], title: str = "", texts: Iterable[str] = ()) -> Iterator[Any]:
    """Make a figure in this style, and save it at the end of the block.

    Args:
        file: where the picture goes; the suffix chooses the format.
        size: width and height in inches.
        title: the title. Paths in it are shortened.
        texts: names that the picture will show, for which fonts are looked up.

    Yields:
        A `matplotlib.figure.Figure`; it belongs to no window and no global state.
    """
    matplotlib = import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    title = shown_title(title)
    fonts = fallback_fonts([title, *texts])
    with matplotlib.rc_context(STYLE | {"font.family": [MAIN_FONT, *fonts]}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)  # its renderer measures texts
        if title:
            figure.suptitle(textwrap.fill(title, int(size[0] / _INCHES_PER_CHARACTER)))
        yield figure
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)


def shown_title(title: str) -> str:
    """Shorten the paths in a title to their last parts.

    Args:
        title: text that may begin with the path of a dataset, up to a comma.

    Returns:
        One line.

    Example:
        >>> shown_title("/srv/ann/photos, split test: 540 examples")
        'photos, split test: 540 examples'
    """
    subject, comma, rest = title.partition(",")
    if subject and os.path.exists(subject):
        subject = Path(subject).resolve().name
    return drawable(without_paths(subject + comma + rest))


def run_styles(runs: Sequence[str], methods: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Choose colour and marker of every run: those of its sharpness method, unless another run has them already.

    Args:
        runs: their names, such as "baseline" or "sam+logit_adjusted".
        methods: run to sharpness method, for names that do not contain it.

    Returns:
        `color` and `marker` per run; of more runs than colours, some have the same.

    Example:
        >>> [style["color"] for style in run_styles(["baseline", "sam+vs", "sam+ldam"])]
        ['#666666', '#0072B2', '#009E73']
    """
    methods = methods or {}
    wanted = [_place(methods.get(run, run)) for run in runs]
    taken: set[int] = set()
    places: list[int] = []
    for place in wanted:
        if place is None or place in taken:
            free = sorted({*range(len(PALETTE))} - taken, key=lambda i: (i in wanted, i))
            place = free[0] if free else len(places) % len(PALETTE)
        taken.add(place)
        places.append(place)
    return [{"color": PALETTE[place], "marker": MARKERS[place]} for place in places]


def _place(run: str) -> int | None:
    from hf_sharp.losses import LOSSES  # torch, which a picture of counts does without
    from hf_sharp.sharpness.methods import METHODS

    method = run.split("+")[0]
    if method in ("baseline", "plain training") or method in LOSSES:
        method = "none"
    return list(METHODS).index(method) % len(PALETTE) if method in METHODS else None
