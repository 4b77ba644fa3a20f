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
    axes.set_title(title, fontsize=10, pad=20, parse_math=False)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    _save(figure, file)


def plot_counts(frequencies: Any, file: str | Path, title: str = "") -> None:
    """Draw how many training examples every class has, the most frequent first.

    Args:
        frequencies: `ClassFrequencies`.
        file: where the picture goes; its ending chooses the format.
        title: the picture's title.
    """
    from matplotlib.figure import Figure

    counts = frequencies.counts
    order = np.argsort(-counts, kind="stable")
    group = {int(c): name for name, indices in frequencies.groups.items() for c in indices}
    colours = dict(zip(("many", "medium", "few"), _COLOURS[1:4], strict=True))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, colour in colours.items():
        places = [place for place, c in enumerate(order) if group[int(c)] == name]
        if places:
            axes.bar(places, counts[order][places], color=colour, label=f"{name} ({len(places)})", width=0.9)
    axes.set_yscale("log")
    axes.set_ylim(0.7, None)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    if len(order) <= 30:
        names = [frequencies.name(int(c)) for c in order]
        turned: dict[str, Any] = {"rotation": 60, "ha": "right"} if max(map(len, names)) > 3 else {}
        axes.set_xticks(range(len(order)), names, fontsize=8, parse_math=False, **turned)
    else:
        axes.set_xlabel("classes, most frequent first")
    axes.set_ylabel("training examples")
    axes.set_title(f"{title}: imbalance factor {frequencies.imbalance_factor:.0f}", fontsize=10, parse_math=False)
    axes.legend(frameon=False, fontsize=9)
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
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    _save(figure, file)


def plot_geometry(
    classifier: tuple[np.ndarray, np.ndarray], class_counts: Any, file: str | Path, names: Sequence[str] | None = None
) -> None:
    """Draw the geometry of a classifier: its rows' cosines measured and predicted, and each row's nearest other one.

    Args:
        classifier: W Wᵀ (K, K) measured, and predicted.
        class_counts: (K,), in whose order the classes are drawn, the most frequent first.
        file: where the picture goes; its ending chooses the format.
        names: of the classes; shown for up to 20.
    """
    from matplotlib.figure import Figure

    from hf_sharp.model.predicted_geometry import cosines

    counts = np.asarray(class_counts)
    order = np.argsort(-counts, kind="stable")
    measured, predicted = (gram[np.ix_(order, order)] for gram in classifier)
    shown = [names[i] if names is not None else str(i) for i in order] if len(order) <= 20 else None
    figure = Figure(figsize=(13, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    for axes, gram, title in ((left, measured, "measured"), (middle, predicted, "predicted")):
        picture = axes.imshow(cosines(gram), cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(f"cosines between class vectors, {title}", fontsize=10)
        axes.set_xlabel("classes, most frequent first")
        if shown is not None:
            axes.set_yticks(range(len(order)), shown, fontsize=8, parse_math=False)
            axes.set_xticks([])
    figure.colorbar(picture, ax=(left, middle), shrink=0.85)
    for gram, label, colour, marker in (
        (measured, "measured", _COLOURS[1], "o"),
        (predicted, "predicted", _COLOURS[2], "x"),
    ):
        cosine = cosines(gram)
        np.fill_diagonal(cosine, -np.inf)
        right.plot(counts[order], np.degrees(np.arccos(cosine.max(1))), marker, color=colour, label=label, alpha=0.8)
    right.set_xscale("log")
    right.set_xticks(sorted({int(counts.min()), int(counts.max())}))
    right.xaxis.set_major_formatter("{x:g}")
    right.xaxis.set_minor_formatter("")
    right.set(
        xlabel="training examples of the class", ylabel="angle to the nearest class vector (degrees)", ylim=(0, None)
    )
    right.legend(frameon=False, fontsize=9)
    _save(figure, file)


def plot_step_geometry(curves: Mapping[str, Mapping[str, Any]], file: str | Path, title: str = "") -> None:
    """Draw theory against experiment under step imbalance: norms and angles of classifier and embeddings over γ.

    Args:
        curves: label to `{"gamma": [...], "values": (8, n), "line": bool, "color": str}`; the rows of `values` are, for
            the classifier and then for the embeddings: squared norm of frequent over rare, and the cosines between
            frequent classes, between rare ones, and between the two kinds.
        file: where the picture goes; its ending chooses the format.
        title: the picture's title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6.4), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True)
    what = (
        "squared norm, frequent / rare",
        "cosine, frequent to frequent",
        "cosine, rare to rare",
        "cosine, frequent to rare",
    )
    for i, (label, curve) in enumerate(curves.items()):
        line = curve["line"]
        style: dict[str, Any] = {"color": curve["color"], "linestyle": "-" if line else "", "linewidth": 1.6}
        style |= {} if line else {"marker": curve.get("marker", "o"), "markersize": 5, "fillstyle": "none"}
        for axes, values in zip(panels.flat, curve["values"], strict=True):
            axes.plot(curve["gamma"], values, label=label if axes is panels.flat[0] else None, zorder=2 + i, **style)
    for axes, (row, column) in zip(panels.flat, np.ndindex(2, 4), strict=True):
        axes.set_title(f"{('classifier', 'embeddings')[row]}: {what[column]}", fontsize=9)
        if column == 0:
            axes.set_yscale("log")
        if row == 1:
            axes.set_xlabel("γ")
        axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
    figure.legend(loc="outside lower center", ncols=len(curves), frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    _save(figure, file)


def plot_loss_along(reports: Mapping[str, Mapping[str, Any]], file: str | Path, title: str = "") -> None:
    """Draw the rise of the loss along the ascent direction and along a random one, for models side by side.

    Args:
        reports: model name to `measure_curvature`.
        file: where the picture goes; its ending chooses the format.
        title: the picture's title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    kinds = (("ascent", "along the gradient"), ("random", "along a random direction"))
    for axes, (kind, what) in zip(panels, kinds, strict=True):
        for (model, report), colour in zip(reports.items(), _COLOURS[1:] * len(reports), strict=False):
            radii = np.asarray(report["along"]["radii"])
            for group, line in (("all", "-"), ("few", "--")):
                if (values := report["along"][kind][group]) is not None and report[group] is not None:
                    rise = np.asarray(values) - report[group]["loss"]
                    label = f"{model}, {'all classes' if group == 'all' else 'few'}"
                    axes.plot(radii, rise, line, color=colour, linewidth=1.7, marker="o", markersize=3, label=label)
        axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axes.set_xticks(radii[::2])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="distance from the weights", title=what)
    panels[0].set_ylabel("loss − loss at the weights")
    panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    _save(figure, file)


def plot_few_shot(rows: Mapping[str, Mapping[str, Any]], file: str | Path, title: str = "") -> None:
    """Draw the accuracies of several backbones on several domains, with their intervals.

    Args:
        rows: name of the backbone to domain to `FewShotResult`.
        file: where the picture goes; its ending chooses the format.
        title: the picture's title.
    """
    from matplotlib.figure import Figure

    domains = list(dict.fromkeys(domain for row in rows.values() for domain in row))
    figure = Figure(figsize=(2.2 + 1.6 * len(domains), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, row) in enumerate(rows.items()):
        offset = (i - (len(rows) - 1) / 2) * 0.7 / max(len(rows), 1)
        places = [domains.index(domain) + offset for domain in row]
        style: dict[str, Any] = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        heights = [100 * result.accuracy for result in row.values()]
        bars = [100 * result.interval for result in row.values()]
        axes.errorbar(places, heights, bars, linestyle="", capsize=3, markersize=5.5, label=name, **style)
    axes.set_xticks(range(len(domains)), domains, parse_math=False)
    axes.set_xlim(-0.5, len(domains) - 0.5)
    axes.set_ylabel("accuracy (%), 95 % interval")
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(len(rows), 4), frameon=False, fontsize=9)
    _save(figure, file)


def _save(figure: Any, file: str | Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    for legend in filter(None, [*figure.legends, *(axes.get_legend() for axes in figure.axes)]):
        for text in legend.get_texts():
            text.set_parse_math(False)  # a $ in the name of a run is one
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
