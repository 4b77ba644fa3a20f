"""Reports of several runs side by side, as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table


def comparison_table(reports: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """Put the long-tail reports of several runs side by side.

    Args:
        reports: run name to `long_tail_report`; group sizes and thresholds are those of the first.
        title: the table's title.

    Returns:
        A `rich` table, one column per run, or with more than three runs one row per run; the best is bold.
    """
    first = next(iter(reports.values()))
    rare, common = first["rare_threshold"], first["common_threshold"]
    rows = {
        "accuracy": "accuracy",
        "balanced accuracy": "balanced_accuracy",
        f"many (n > {common}, {_classes(first['many_classes'])})": "many_accuracy",
        f"medium ({rare} ≤ n ≤ {common}, {_classes(first['medium_classes'])})": "medium_accuracy",
        f"few (n < {rare}, {_classes(first['few_classes'])})": "few_accuracy",
        "worst class": "worst_class_recall",
    }
    wide = len(reports) > 3  # then a row per run, as a terminal is longer than wide
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("recall in %" if wide else "recall in %, mean over classes", overflow="fold")
    cells = {label: _row(reports, metric, name_classes=not wide) for label, metric in rows.items()}
    for heading in rows if wide else reports:
        table.add_column(heading.split(" (")[0].replace(" ", "\n") if wide else escape(heading), justify="right")
    if wide:
        table.caption, table.caption_justify = "\n".join(label for label in rows if "(" in label), "left"
        for i, run in enumerate(reports):
            table.add_row(escape(run), *(row[i] for row in cells.values()))
    else:
        for label, row in cells.items():
            table.add_row(label, *row)
    return table


def _classes(number: int) -> str:
    return "1 class" if number == 1 else f"{number} classes"


def _row(reports: Mapping[str, Mapping[str, Any]], metric: str, name_classes: bool) -> list[str]:
    values = [report[metric] for report in reports.values()]
    best = max((value for value in values if value is not None), default=None)
    cells = []
    for report, value in zip(reports.values(), values, strict=True):
        cell = "–" if value is None else f"{100 * value:.1f}"
        if metric == "worst_class_recall" and name_classes:
            cell = f"({escape(str(report['worst_class']))}) {cell}"
        cells.append(f"[bold]{cell}[/bold]" if value is not None and value == best else cell)
    return cells
