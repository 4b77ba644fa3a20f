"""The Markdown table and the plot of a task, from its results file."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pages.formatting import table
from tasks import TITLES

from hf_sharp.reports.plots.style import MARKERS, PALETTE, picture
from study.figures import paired
from study.rows import REFERENCE


def _percent(values: Sequence[float | None]) -> str:
    if any(value is None for value in values):
        return "–"
    numbers = [100 * cast(float, value) for value in values]
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.1f}{spread}"


def difference(ours: Mapping[str, Mapping], reference: Mapping[str, Mapping], metric: str) -> str:
    """Format the mean paired difference of a metric in points with its 95 % interval, bold if it excludes 0."""
    pairs = [(ours[seed][metric], reference[seed][metric]) for seed in ours if seed in reference]
    if len(pairs) < 2 or any(None in pair for pair in pairs):
        return "–"
    interval = {name: 100 * value for name, value in paired(*zip(*pairs, strict=True)).items()}
    bold = "**" if interval["low"] > 0 or interval["high"] < 0 else ""
    return f"{bold}{interval['mean']:+.1f}{bold} ({interval['low']:+.1f} … {interval['high']:+.1f})"


def few_metric(result: Mapping[str, Any]) -> str:
    """Return the metric of rare classes: those with fewer than 20 examples or, if there are none, the rarest third."""
    return "few_accuracy" if result["few_classes"] else "rarest_third"


def make_table(result: Mapping[str, Any]) -> str:
    """Make the Markdown table of a task.

    Args:
        result: the result of `collect`.

    Returns:
        One line per row of the protocol: means and standard deviations over seeds in %, and paired differences to
        logit adjustment with their 95 % intervals, bold where they exclude 0; then the stopped rows, and how the table
        was made.
    """
    few_name = "few (n < 20)" if result["few_classes"] else "rarest third"
    metrics = ("balanced", few_name, "worst class", "calibration error", "training", "passes")
    columns = (TITLES[result["task"]], *metrics, "balanced − logit adjustment", "few − logit adjustment")
    rows = [_cells(result, name) for name in result["rows"]]
    for name, value in result["stopped"].items():
        rows.append([name, f"stopped: {100 * value:+.1f} on validation data", *[""] * (len(columns) - 2)])
    return f"{table(columns, rows)}\n\n{_caption(result)}\n"


def _cells(result: Mapping[str, Any], name: str) -> list[str]:
    rows, row, few = result["rows"], result["rows"][name], few_metric(result)
    reference = rows.get(REFERENCE, {"seeds": {}})["seeds"]
    seeds = row["seeds"]
    chosen = ", ".join(f"{key} {value}" for key, value in result["chosen"].get(name, {}).items())
    if "strength" in row:
        chosen = f"τ {row['strength']}"
    metrics = ("balanced_accuracy", few, "worst_class_recall", "calibration_error", "train_accuracy")
    return [
        f"{name} ({chosen})" if chosen else name,
        *(_percent([seed[metric] for seed in seeds.values()]) for metric in metrics),
        f"{passes(row):.2f}",
        *(difference(seeds, reference, metric) for metric in ("balanced_accuracy", few)),
    ]


def passes(row: Mapping[str, Any]) -> float:
    """Return the cost of a row's steps in plain steps, counting passes; a backward pass is two thirds of a plain step.

    Unlike time, this does not depend on the machine and its load.
    """
    return statistics.fmean((s["passes_forward"] + 2 * s["passes_backward"]) / 3 for s in row["seeds"].values())


def _caption(result: Mapping[str, Any]) -> str:
    sizes, counts = result["sizes"], result["class_counts"]
    on_gpu = "NVIDIA" in result["machine"]  # the GPU runs used older packages than this machine
    versions = " (versions: benchmarks/protocol.md)" if on_gpu else f", torch {result['versions']['torch']}"
    tail = f"{result['classes']} classes from {counts[0]} down to {counts[-1]} training examples, " if counts else ""
    return (
        f"{tail}{result['few_classes']} of them with fewer than 20; {sizes.get('train', 0)} for training, "
        f"{sizes.get('validation', 0)} for validation. Base: {', '.join(result['base'] or ['not chosen yet'])}. Seeds "
        f"{', '.join(map(str, result['final_seeds']))}: mean ± standard deviation; differences are paired, with 95 % "
        f"intervals. `{result['command']}` on {result['machine']}{versions}. Data: "
        f"`benchmarks/results/evidence_{result['task']}.json`."
    )


KINDS = {"base": PALETTE[0], "control": PALETTE[1], "sharp": PALETTE[3]}


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Draw every final run: one line per row, one marker per seed, one colour per kind of row.

    Args:
        result: the result of `collect`.
        file: the picture, a PNG.
    """
    rows, few = result["rows"], few_metric(result)
    few_name = "classes under 20 examples" if few == "few_accuracy" else "rarest third of the classes"
    panels = {"balanced_accuracy": "balanced accuracy in %", few: f"{few_name}, recall in %"}
    title = f"{TITLES[result['task']]}: every run with the final seeds; the bar is the mean"
    with picture(file, (9.5, 1.4 + 0.28 * max(len(rows), 1)), title) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (metric, label) in zip(axes, panels.items(), strict=True):
            for height, row in enumerate(rows.values()):
                colour = KINDS[row.get("kind", "control")]
                values = {seed: 100 * run[metric] for seed, run in row["seeds"].items() if run[metric] is not None}
                for seed, value in values.items():
                    marker = MARKERS[result["final_seeds"].index(int(seed)) % len(MARKERS)]
                    axis.plot(value, height, marker, color=colour, markersize=5, alpha=0.75, clip_on=False)
                if values:
                    axis.plot(statistics.fmean(values.values()), height, "|", color="black", markersize=13)
            axis.set_xlabel(label)
            axis.grid(axis="x")
        axes[0].set_yticks(range(len(rows)), list(rows))
        axes[0].invert_yaxis()
        figure.legend(
            handles=_legend({row.get("kind", "control") for row in rows.values()}, result["final_seeds"]),
            loc="outside lower center",
            ncols=4,
        )


def _legend(shown: Collection[str], seeds: Sequence[int]) -> list[Any]:
    from matplotlib.lines import Line2D

    names = {"base": "bases, with logit adjustment", "control": "without sharpness", "sharp": "with sharpness"}
    kinds = [
        Line2D([], [], color=KINDS[kind], linewidth=5, label=name) for kind, name in names.items() if kind in shown
    ]
    marks = [
        Line2D([], [], marker=MARKERS[i % len(MARKERS)], linestyle="", color="black", label=f"seed {seed}")
        for i, seed in enumerate(seeds)
    ]
    return kinds + marks
