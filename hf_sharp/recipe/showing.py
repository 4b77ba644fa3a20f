"""Shows a report in the terminal and writes it into a folder, for all commands that evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hf_sharp.reports.evaluation_pictures import draw_evaluation
from hf_sharp.reports.plots import plot_recall_by_count
from hf_sharp.reports.results import write_json
from hf_sharp.reports.table import comparison_table, per_class_table

REPORT = "report.json"
_RAREST = "10"


def per_class_field() -> Any:
    """Make the dataclass field of `--per_class`: no value, a number of classes, or 'all'."""
    return field(
        default=None,
        metadata={
            "help": f"Also show a table of this many of the rarest classes, or 'all'; without a value, {_RAREST}.",
            "nargs": "?",
            "const": _RAREST,
        },
    )


def rows_shown(per_class: str | None) -> int | None:
    """Read `--per_class`: the number of classes to show, None for all of them, 0 for no table.

    Example:
        >>> rows_shown(None), rows_shown("10"), rows_shown("all")
        (0, 10, None)
    """
    if per_class is None or per_class == "all":
        return 0 if per_class is None else None
    if not (per_class.isdecimal() and int(per_class) > 0):
        raise ValueError(
            f"--per_class takes a number of classes, or 'all'; got {per_class!r}. Put MODEL and DATASET before it."
        )
    return int(per_class)


def show_report(console: Console, name: str, report: Mapping[str, Any], title: str, rows: int | None = 0) -> None:
    """Print the long-tail report.

    Args:
        console: the console to print to.
        name: the name of the model.
        report: the result of `long_tail_report`.
        title: the title of the table.
        rows: how many of the rarest classes to show; None for all, 0 for none.
    """
    console.print(comparison_table({name: report}, title))
    if rows != 0:
        console.print(per_class_table(report, rows, "by class, the rarest first"))


def write_report(
    folder: Path,
    name: str,
    report: Mapping[str, Any],
    predictions: np.ndarray,
    references: np.ndarray,
    probabilities: np.ndarray,
    title: str,
) -> None:
    """Write the long-tail report and its plots into a folder: report.json, and four PNG files.

    Args:
        folder: the folder; created if it does not exist.
        name: the name of the model.
        report: the result of `long_tail_report`.
        predictions: (N,) predicted class indices.
        references: (N,) true class indices.
        probabilities: (N, K).
        title: the title of the plots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT, report)
    plot_recall_by_count({name: report}, folder / "recall_by_count.png", title)
    draw_evaluation(folder, report, predictions, references, probabilities, title)
