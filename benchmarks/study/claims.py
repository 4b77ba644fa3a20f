"""The protocol's comparisons: the best row by validation data against today's practice, and LETS against a grid."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages.formatting import table
from tasks import TITLES

from hf_sharp.reports.plots.style import PALETTE, picture
from study.report import difference, few_metric, passes
from study.rows import REFERENCE, ROWS

TODAY = ("cross-entropy", "inverse-frequency weights")
LETS = ("LETS", "LETS as published")
GAINS = ("gain over cross-entropy: balanced", "few", "gain over weights: balanced", "few")
OPTIONS = {"loss_tau": "τ", "rho": "ρ"}


def today(result: Mapping[str, Any], name: str) -> str:
    """Return the name of a baseline's row on the base in use today."""
    return f"{name}, today's base" if f"{name}, today's base" in result["rows"] else name


def default_row(result: Mapping[str, Any]) -> str:
    """Return the name of the row of hf_sharp's default, logit adjustment with τ = 1, on the base in use today."""
    name = "base: full, head from noise"
    return name if name in result["rows"] else REFERENCE


def best_row(result: Mapping[str, Any]) -> str | None:
    """Return the name of the row that is best on validation data, among those trained with the final seeds.

    The further rows of the protocol are included once all of them are finished.

    Args:
        result: the result of `collect`.

    Returns:
        The name of the row; None before the search is finished.
    """
    scores: dict[str, float] = {}
    for name, found in result["validation"].items():
        untuned = name.startswith(REFERENCE) and not result["chosen"].get(name)
        row = REFERENCE if untuned else name
        candidate = row in ROWS and not (ROWS[row].further and result["stage"] != "done")
        if row in result["rows"] and found and candidate:
            scores[row] = max(found.values())
    return max(scores, key=lambda name: scores[name]) if scores else None


def _mean(seeds: Mapping[str, Mapping], metric: str) -> str:
    return f"{100 * statistics.fmean(seed[metric] for seed in seeds.values()):.1f}"


def overview(results: Sequence[Mapping[str, Any]]) -> str:
    """Make the table that compares, for every task, the best row with cross-entropy and weights as used today.

    Args:
        results: results of `collect`; tasks without a finished comparison are left out.

    Returns:
        A Markdown table: balanced and few-class accuracy in %, and paired differences with 95 % intervals.
    """
    rows = []
    for result in results:
        if (name := best_row(result)) is None or not _has_baselines(result):
            continue
        setting = ", ".join(f"{key} {value}" for key, value in result["chosen"].get(name, {}).items())
        shown = f"{name} ({setting})" if setting else name
        baselines = [_pair(result, today(result, baseline)) for baseline in TODAY]
        figures = [shown, _pair(result, name), *_gains(result, name), f"{passes(result['rows'][name]):.2f}"]
        rows.append([TITLES[result["task"]], *baselines, *figures])
    columns = ("task", "cross-entropy", "weights", "best by validation", "its figures", *GAINS, "passes")
    return table(columns, rows)


def overview_of_default(results: Sequence[Mapping[str, Any]]) -> str:
    """Make the same comparison for hf_sharp's default, on the base that people use today.

    Args:
        results: as for `overview`.

    Returns:
        A Markdown table.
    """
    rows = []
    for result in filter(_has_baselines, results):
        name = default_row(result)
        rows.append([TITLES[result["task"]], _pair(result, name), *_gains(result, name)])
    return table(("task", "default", *GAINS), rows)


def frequent(result: Mapping[str, Any], name: str) -> dict[str, dict[str, float]]:
    """Compute the mean recall of a row's classes with at least 20 training examples.

    Args:
        result: the result of `collect`, or a part of it.
        name: the row.

    Returns:
        Seed to `{"frequent": mean recall}`. It follows from balanced accuracy, the mean over all classes, and
        `few_accuracy`, the mean over the others.
    """
    classes, few = result["classes"], result["few_classes"]
    return {
        seed: {"frequent": (classes * run["balanced_accuracy"] - few * run["few_accuracy"]) / (classes - few)}
        for seed, run in result["rows"][name]["seeds"].items()
    }


def price(results: Sequence[Mapping[str, Any]]) -> str:
    """Make the table of what each way to help the rare classes costs the frequent ones.

    Args:
        results: as for `overview`.

    Returns:
        A Markdown table: the mean recall in % of the classes with at least 20 training examples, for cross-entropy, and
        paired differences from it with 95 % intervals.
    """
    rows = []
    for result in filter(_has_baselines, results):
        plain, weights = (today(result, name) for name in TODAY)
        tuned = next(name for name in (f"{REFERENCE}, tuned τ", REFERENCE) if name in result["rows"])
        before = frequent(result, plain)
        others = (weights, f"{plain}, adjusted after training", default_row(result), tuned, best_row(result) or tuned)
        costs = [difference(frequent(result, name), before, "frequent") for name in others]
        rows.append([TITLES[result["task"]], _mean(before, "frequent"), *costs])
    columns = (
        "task",
        "cross-entropy",
        "weights",
        "corrected after training",
        "default",
        "tuned τ",
        "best by validation",
    )
    return table(columns, rows)


def _has_baselines(result: Mapping[str, Any]) -> bool:
    return all(today(result, baseline) in result["rows"] for baseline in TODAY)


def _pair(result: Mapping[str, Any], name: str) -> str:
    seeds = result["rows"][name]["seeds"]
    return f"{_mean(seeds, 'balanced_accuracy')} / {_mean(seeds, few_metric(result))}"


def _gains(result: Mapping[str, Any], name: str) -> list[str]:
    # The gains over cross-entropy and over weights as used today, in both metrics.
    rows = result["rows"]
    return [
        difference(rows[name]["seeds"], rows[today(result, baseline)]["seeds"], metric)
        for baseline in TODAY
        for metric in ("balanced_accuracy", few_metric(result))
    ]


def _comparable(result: Mapping[str, Any]) -> dict[str, str]:
    # The rows that the plot shows for a task: label to row.
    found = {name: today(result, name) for name in TODAY}
    best = best_row(result)
    found["logit adjustment (hf_sharp's default)"] = default_row(result)
    if best not in (None, REFERENCE):
        tuning, head = result["base"]
        setting = ", ".join(f"{OPTIONS.get(key, key)} {value:g}" for key, value in result["chosen"][best].items())
        parts = ("LoRA" if tuning == "lora" else "", "class means" if head == "class_mean" else "")
        shown = ", ".join(filter(None, (*parts, best.removesuffix(", tuned τ"))))
        found[f"{shown} ({setting})" if setting else shown] = str(best)
    return found if best and all(row in result["rows"] for row in found.values()) else {}


def draw_overview(results: Sequence[Mapping[str, Any]], file: Path) -> bool:
    """Draw every run of today's practice, of the default and of the row that was best on validation data.

    Args:
        results: results of `collect`; tasks without a finished comparison are left out.
        file: the picture, a PNG.

    Returns:
        Whether there is a finished comparison; if not, nothing is drawn.
    """
    shown = [(result, rows) for result in results if (rows := _comparable(result))]
    if not shown:
        return False
    with picture(file, (9, 0.9 + 0.34 * sum(len(rows) + 1 for _, rows in shown))) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        labels: dict[float, str] = {}
        height = 0
        for result, rows in shown:
            axes[0].annotate(
                f"{TITLES[result['task']]}: {result['class_counts'][0]} … {result['class_counts'][-1]} "
                "examples per class",
                (0, height),
                xycoords=("axes fraction", "data"),
                va="center",
                weight="bold",
            )
            for place, (label, row) in enumerate(rows.items()):
                height += 1
                labels[height] = label
                for axis, metric in zip(axes, (few_metric(result), "balanced_accuracy"), strict=True):
                    values = [100 * seed[metric] for seed in result["rows"][row]["seeds"].values()]
                    mean, colour = statistics.fmean(values), PALETTE[0 if place < len(TODAY) else place]
                    axis.barh(height, mean, color=colour, alpha=0.35, height=0.7)
                    axis.plot(values, [height] * len(values), "o", color=colour, markersize=4, clip_on=False)
            height += 1
        for axis, title in zip(axes, ("recall of the rare classes in %", "balanced accuracy in %"), strict=True):
            axis.set_xlabel(title)
            axis.set_xlim(left=0)
            axis.grid(axis="x")
        axes[0].set_yticks(list(labels), list(labels.values()))
        axes[0].set_ylim(height - 0.4, -0.6)
    return True


def lets_line(result: Mapping[str, Any]) -> str | None:
    """Compare the learned radius with the best fixed one, in words.

    Args:
        result: the result of `collect`.

    Returns:
        One line; None unless both rows exist.
    """
    rows = result["rows"]
    found = [name for name in LETS if name in rows]
    if not found or "SAM" not in rows:
        return None
    fixed = [100 * seed["balanced_accuracy"] for seed in rows["SAM"]["seeds"].values()]
    parts = []
    for name in found:
        learned = [100 * seed["balanced_accuracy"] for seed in rows[name]["seeds"].values()]
        apart = statistics.fmean(learned) - statistics.fmean(fixed)
        parts.append(f"{name} {apart:+.1f} points")
    spread = statistics.stdev(fixed) if len(fixed) > 1 else float("nan")
    return (
        f"{TITLES[result['task']]}: against SAM at its best radius ({statistics.fmean(fixed):.1f} ± {spread:.1f}), "
        f"{', '.join(parts)}"
    )


def confirmation(results: Sequence[Mapping[str, Any]]) -> str:
    """Make the table of the fresh seeds: the best row by validation data, and every row against logit adjustment.

    Args:
        results: contents of benchmarks/results/confirmation_TASK.json.

    Returns:
        A Markdown table: balanced and few-class accuracy in %, and paired differences with 95 % intervals.
    """
    lines = []
    for result in results:
        metrics, rows = ("balanced_accuracy", few_metric(result)), result["rows"]
        for short, row in rows.items():
            name = f"{row['row']} (the best)" if short == "best" else row["row"]
            figures = " / ".join(_mean(row["seeds"], metric) for metric in metrics)
            pairs = (("best", short), (short, "default"))
            gains = [_gain(rows, one, other, metric) for one, other in pairs for metric in metrics]
            lines.append([TITLES[result["task"]], name, figures, *gains, str(len(row["seeds"]))])
    columns = ("best − it: balanced", "few", f"it − {REFERENCE}: balanced", "few")
    return table(("task", "row", "its figures", *columns, "seeds"), lines)


def _gain(rows: Mapping[str, Any], one: str, other: str, metric: str) -> str:
    both = one != other and {one, other} <= {*rows}
    return difference(rows[one]["seeds"], rows[other]["seeds"], metric) if both else ""


def shorter_trainings(result: Mapping[str, Any]) -> str:
    """Make the table of the trainings with fewer epochs, which compares a row with logit adjustment.

    Args:
        result: the content of benchmarks/results/duration.json.

    Returns:
        A Markdown table: balanced and few-class accuracy in %, the accuracy on training examples, and paired
        differences with 95 % intervals.
    """
    shown = [training for training in result["trainings"] if len(training["rows"]) == 2]
    names = sorted(shown[0]["rows"], key=lambda name: name != REFERENCE)
    lines = []
    for training in shown:
        rows = [training["rows"][name] for name in names]
        both = [seed for seed in rows[0]["seeds"] if seed in rows[1]["seeds"]]
        plain, sharp = ({seed: row["seeds"][seed] for seed in both} for row in rows)
        pairs = [f"{_mean(seeds, 'balanced_accuracy')} / {_mean(seeds, 'few_accuracy')}" for seeds in (plain, sharp)]
        gains = [difference(sharp, plain, metric) for metric in ("balanced_accuracy", "few_accuracy")]
        cells = [TITLES[training["task"]], str(training["epochs"]), f"{rows[0]['rate']:g}", pairs[0]]
        cells += [_mean(plain, "train_accuracy"), pairs[1], *gains, str(len(both))]
        lines.append(cells)
    settings = ("task", "epochs", "learning rate", names[0], "training examples right", names[1])
    return table((*settings, "gain: balanced", "few", "seeds"), lines)
