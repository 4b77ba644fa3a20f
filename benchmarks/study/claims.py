"""What the protocol judges: the best row by validation data against what people do today, and LETS against a grid."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from study.report import difference, few_metric, relative_cost
from study.rows import REFERENCE

TODAY = ("cross-entropy", "inverse-frequency weights")
LETS = ("LETS", "LETS as published")


def today(result: Mapping[str, Any], name: str) -> str:
    """Name the row of a baseline on the base that people use today."""
    return f"{name}, today's base" if f"{name}, today's base" in result["rows"] else name


def best_row(result: Mapping[str, Any]) -> str | None:
    """Name the row with the best setting on validation data, among those that were trained with the final seeds.

    Args:
        result: the result of `collect`.

    Returns:
        The row; None before the search is finished.
    """
    scores: dict[str, float] = {}
    for name, found in result["validation"].items():
        untuned = name.startswith(REFERENCE) and not result["chosen"].get(name)
        row = REFERENCE if untuned else name
        if row in result["rows"] and found:
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
    lines = [
        "| task | cross-entropy | weights | best by validation | its figures | − cross-entropy: balanced | few | "
        "− weights: balanced | few | cost |",
        "|" + "---|" * 10,
    ]
    for result in results:
        name = best_row(result)
        baselines = [today(result, baseline) for baseline in TODAY]
        if name is None or any(baseline not in result["rows"] for baseline in baselines):
            continue
        few, rows = few_metric(result), result["rows"]

        def pair(row: str, seeds: Mapping = rows, few: str = few) -> str:
            return f"{_mean(seeds[row]['seeds'], 'balanced_accuracy')} / {_mean(seeds[row]['seeds'], few)}"

        gains = [
            difference(rows[name]["seeds"], rows[baseline]["seeds"], metric)
            for baseline in baselines
            for metric in ("balanced_accuracy", few)
        ]
        setting = ", ".join(f"{key} {value}" for key, value in result["chosen"].get(name, {}).items())
        shown = f"{name} ({setting})" if setting else name
        cells = [result["task"], *map(pair, baselines), shown, pair(name), *gains, f"{relative_cost(result, name):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def lets_line(result: Mapping[str, Any]) -> str | None:
    """Say where the learned radius stands beside the best fixed one.

    Args:
        result: the result of `collect`.

    Returns:
        One line; None without both rows.
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
        f"{result['task']}: against SAM at its best radius ({statistics.fmean(fixed):.1f} ± {spread:.1f}), "
        f"{', '.join(parts)}"
    )
