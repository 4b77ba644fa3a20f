"""Reports of several runs side by side, as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def comparison_table(reports: Mapping[str, Mapping[str, Any]], title: str | None = None) -> Table:
    """Put the long-tail reports of several runs side by side.

    Args:
        reports: run name to `long_tail_report`; group sizes and thresholds are those of the first.
        title: the table's title.

    Returns:
        A `rich` table, one column per run; the best of each row is bold.
    """
    first = next(iter(reports.values()))
    rare, common = first["rare_threshold"], first["common_threshold"]
    rows = {
        "accuracy": "accuracy",
        "balanced accuracy": "balanced_accuracy",
        f"many (n > {common}, {first['many_classes']} classes)": "many_accuracy",
        f"medium ({rare} ≤ n ≤ {common}, {first['medium_classes']} classes)": "medium_accuracy",
        f"few (n < {rare}, {first['few_classes']} classes)": "few_accuracy",
        "worst class": "worst_class_recall",
    }
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("recall in %, mean over classes")
    for run in reports:
        table.add_column(run, justify="right")
    for label, metric in rows.items():
        values = [report[metric] for report in reports.values()]
        best = max((value for value in values if value is not None), default=None)
        cells = []
        for report, value in zip(reports.values(), values, strict=True):
            cell = "–" if value is None else f"{100 * value:.1f}"
            if metric == "worst_class_recall":
                cell = f"({report['worst_class']}) {cell}"
            cells.append(f"[bold]{cell}[/bold]" if value is not None and value == best else cell)
        table.add_row(label, *cells)
    return table
