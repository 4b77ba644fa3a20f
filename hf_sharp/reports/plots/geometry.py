"""Plots of the geometry of classifier and embeddings, measured and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_sharp.registry.arrays import as_array
from hf_sharp.reports.plots.fonts import class_labels
from hf_sharp.reports.plots.layout import count_ticks, legend_below, log_ticks
from hf_sharp.reports.plots.style import LIGHT, PALETTE, picture

_NAMED_CLASSES = 20


def plot_geometry(
    classifier: tuple[np.ndarray, np.ndarray], class_counts: Any, file: str | Path, names: Sequence[str] | None = None
) -> None:
    """Draw the cosines between the rows of a classifier, measured and predicted, and the angle to the nearest row.

    Args:
        classifier: W Wᵀ (K, K), measured and predicted.
        class_counts: (K,) training examples; the most frequent class is drawn first.
        file: the file to write; its suffix gives the format.
        names: (K,) class names, shown for up to 20 classes.
    """
    from hf_sharp.model.predicted_geometry import cosines  # imports torch, which plots of counts do not need

    counts = as_array(class_counts)
    order = np.argsort(-counts, kind="stable")
    names = [str(i) for i in range(len(counts))] if names is None else names
    labels = class_labels(names, longest=16)
    grams = {"measured": classifier[0], "predicted": classifier[1]}
    with picture(file, (13, 4.3), texts=names) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
        for axes, (kind, gram) in zip((left, middle), grams.items(), strict=True):
            image = axes.imshow(cosines(gram[np.ix_(order, order)]), cmap="RdBu_r", vmin=-1, vmax=1)
            axes.set(title=f"cosines between class vectors, {kind}", xlabel="classes, most frequent first")
            if len(order) <= _NAMED_CLASSES:
                axes.set_yticks(range(len(order)), [labels[i] for i in order], fontsize=8)
                axes.set_xticks([])
            else:
                count_ticks(axes.xaxis)
                count_ticks(axes.yaxis)
        figure.colorbar(image, ax=(left, middle), shrink=0.85)
        for (kind, gram), colour, marker in zip(grams.items(), PALETTE[1::2], "ox", strict=False):
            cosine = cosines(gram)
            np.fill_diagonal(cosine, -np.inf)
            right.plot(counts, np.degrees(np.arccos(cosine.max(1))), marker, color=colour, label=kind, alpha=0.8)
        low, high = max(counts.min(), 0.5) / 1.25, counts.max() * 1.25
        right.set(xscale="log", xlim=(low, high), ylim=(0, None))
        log_ticks(right.xaxis, low, high, inches=3.5)
        right.set(xlabel="training examples of the class", ylabel="angle to the nearest class vector (degrees)")
        right.legend()


def plot_step_geometry(curves: Mapping[str, Mapping[str, Any]], file: str | Path, title: str = "") -> None:
    """Draw norms and angles of classifier and embeddings against γ under step imbalance, predicted and measured.

    Args:
        curves: label to `{"gamma": [...], "values": (8, n), "line": bool, "color": str}`. The rows of `values` are, for
            the classifier and then for the embeddings: the squared norm of frequent over rare classes, and the cosines
            between frequent classes, between rare classes, and between the two.
        file: the file to write; its suffix gives the format.
        title: the title of the plot.
    """
    headings = (
        "squared norm, frequent / rare",
        "cosine, frequent to frequent",
        "cosine, rare to rare",
        "cosine, frequent to rare",
    )
    with picture(file, (14, 6.4), title) as figure:
        panels = figure.subplots(2, 4, sharex=True)
        for i, (label, curve) in enumerate(curves.items()):
            style: dict[str, Any] = {
                "color": curve["color"],
                "linestyle": "-" if curve["line"] else "",
                "zorder": 2 + i,
            }
            if not curve["line"] or len(curve["gamma"]) == 1:
                style |= {"marker": curve.get("marker", "o"), "fillstyle": "none"}
            for axes, values in zip(panels.flat, curve["values"], strict=True):
                axes.plot(curve["gamma"], values, label=label, **style)
        for axes, (row, column) in zip(panels.flat, np.ndindex(2, 4), strict=True):
            axes.set_title(f"{('classifier', 'embeddings')[row]}: {headings[column]}", fontsize=9)
            if column == 0:
                axes.set_yscale("log")
                low, high = axes.get_ylim()
                log_ticks(axes.yaxis, low, high, inches=2.2)
            if row == 1:
                axes.set_xlabel("γ")
            axes.axvline(0, color=LIGHT, linewidth=0.8, zorder=0)
        legend_below(figure, panels[0, 0])
