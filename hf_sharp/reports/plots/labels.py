"""Labels of points, placed where they can be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

_STRIDE = 5  # pixels between the points that stand for a line
_MARK = 6  # pixels around the middle of a mark
_AIR = 3  # pixels around a label
_SHIFTS = (0, 0.7, -0.7, 1, -1, 1.4, -1.4, 2.1, -2.1)  # of a label to the side, in halves of its width


class _Placed(NamedTuple):
    # A label: its middle, the box of its words, and its leader, the line from the middle to the point.
    place: np.ndarray
    box: Any
    leader: Any


def label_points(figure: Any, axes: Any, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Name some points, each label where it covers neither another label nor a line or a mark.

    A label that would cover another one, or whose leader would run through it, is left out.

    Args:
        figure: the figure; everything else is drawn already.
        axes: the axes.
        points: (n,) in the data's coordinates.
        labels: (n,) their names.
    """
    from matplotlib.patheffects import withStroke

    if not len(points):
        return
    figure.draw_without_rendering()  # settles the place of the axes
    pixels = axes.transData.transform(points)
    marks = np.concatenate([pixels, *(_samples(line) for line in axes.lines)])
    sizes = [_size(figure, axes, label) for label in labels]
    halo = [withStroke(linewidth=2.5, foreground="white")]
    found: dict[int, _Placed] = {}
    for by in (pixels[:, 1], -pixels[:, 1], pixels[:, 0], -pixels[:, 0]):
        order = np.argsort(by, kind="stable").tolist()
        found = max(found, _arrange(order, pixels, sizes, axes.bbox, marks), key=len)
        if len(found) == len(labels):
            break
    for i, placed in found.items():
        axes.annotate(
            labels[i],
            points[i],
            xytext=(placed.place - pixels[i]) * 72 / figure.dpi,
            textcoords="offset points",
            fontsize=8,
            ha="center",
            va="center",
            path_effects=halo,
            arrowprops={"arrowstyle": "-", "color": "#555555", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        ).set_in_layout(False)


def _size(figure: Any, axes: Any, label: str) -> np.ndarray:
    text = axes.text(0, 0, label, fontsize=8)
    size = text.get_window_extent(figure.canvas.get_renderer()).size
    text.remove()
    return size


def _samples(line: Any) -> np.ndarray:
    # (m, 2) pixels: the marks of a line, and points every few pixels along it if it is drawn.
    pixels = line.get_transform().transform(line.get_path().vertices)
    pixels = pixels[np.isfinite(pixels).all(1)]
    if line.get_linestyle() == "None" or len(pixels) < 2:
        return pixels
    way = np.concatenate([[0.0], np.hypot(*np.diff(pixels, axis=0).T).cumsum()])
    at = np.arange(0, way[-1] + _STRIDE, _STRIDE)
    return np.stack([np.interp(at, way, coordinate) for coordinate in pixels.T], axis=1)


def _arrange(
    order: Sequence[int], pixels: np.ndarray, sizes: Sequence[np.ndarray], bounds: Any, marks: np.ndarray
) -> dict[int, _Placed]:
    placed: dict[int, _Placed] = {}
    for i in order:
        least: tuple[bool, ...] = (True,)
        others = [*placed.values()]
        for candidate in _candidates(pixels[i], sizes[i], bounds):
            faults = _faults(candidate, others, marks)
            if faults < least:
                least, placed[i] = faults, candidate
            if not any(faults):
                break
    return placed


def _candidates(point: np.ndarray, size: np.ndarray, bounds: Any) -> Iterable[_Placed]:
    # Above the point, below it and beside it, in growing distance: lines run from side to side.
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

    beside = size[0] / 2 + _MARK + 4
    for distance in range(13):
        rise = (distance + 1) * 0.75 * size[1] + _MARK
        for height in (rise, -rise, *([0] if distance == 0 else [])):
            for shift in _SHIFTS if height else _SHIFTS[3:]:
                place = point + np.array([shift * beside, height])
                box = Bbox.from_bounds(*(place - size / 2 - _AIR), *(size + 2 * _AIR))
                if bounds.contains(*box.min) and bounds.contains(*box.max):
                    yield _Placed(place, box, Path([place, point]))


def _faults(label: _Placed, others: Sequence[_Placed], marks: np.ndarray) -> tuple[bool, ...]:
    # What is wrong with a place, the worst first: where it is crowded, rather over a mark than across a line.
    _, box, leader = label
    return (
        box.count_overlaps([other.box for other in others]) > 0
        or any(leader.intersects_bbox(other.box, filled=False) for other in others)
        or any(other.leader.intersects_bbox(box, filled=False) for other in others),
        any(leader.intersects_path(other.leader, filled=False) for other in others),
        bool(box.padded(_MARK).count_contains(marks)),
    )
