"""Tables for the terminal: the reports of several runs side by side, and the classes of one report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from hf_sharp.registry.limits import check_number
from hf_sharp.reports.figures import cost_per_example, group_labels, half_width, percent
from hf_sharp.reports.long_tail_report import frequencies_of

_ROWS_PER_RUN_ABOVE = 3  # with more runs, each run is a row, because columns would not fit the terminal


def comparison_table(
    reports: Mapping[str, Mapping[str, Any]],
    title: str | None = None,
    passes: Mapping[str, float | None] | None = None,
) -> Table:
    """Put the long-tail reports of several runs side by side.

    Args:
        reports: run name to `long_tail_report`; group sizes and thresholds are those of the first report.
        title: the table's title.
        passes: run name to the cost of a training step, in plain steps; not shown if some are missing.

    Returns:
        A `rich` table with a column per run, or, with more than three runs, a row per run; the best figures are bold.
    """
    first = next(iter(reports.values()), {})
    groups = group_labels(frequencies_of(first), first)
    rows = {"accuracy": "accuracy", "balanced accuracy": "balanced_accuracy"}
    rows |= {label: f"{group}_accuracy" for group, label in groups.items()} | {"worst class": "worst_class_recall"}
    if all("expected_cost" in report for report in reports.values()):
        rows["cost per example"] = "expected_cost"
    row_per_run = len(reports) > _ROWS_PER_RUN_ABOVE
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("recall in %" if row_per_run else "recall in %, mean over classes", overflow="fold")
    cells = {label: _row(reports, metric, name_classes=not row_per_run) for label, metric in rows.items()}
    costs = [(passes or {}).get(run) for run in reports]
    if len(reports) > 1 and all(costs):
        cells["cost of a step (plain = 1)"] = [f"{cost:.2f}" for cost in costs]
    for heading in cells if row_per_run else reports:
        label = heading.split(" (")[0].replace(" ", "\n") if row_per_run else escape(heading)
        table.add_column(label, justify="right")
    if row_per_run:
        table.caption, table.caption_justify = "\n".join(groups.values()), "left"
        for i, run in enumerate(reports):
            table.add_row(escape(run), *(row[i] for row in cells.values()))
    else:
        for label, row in cells.items():
            table.add_row(label, *row)
    return table


def _row(reports: Mapping[str, Mapping[str, Any]], metric: str, name_classes: bool) -> list[str]:
    values = [report[metric] for report in reports.values()]
    best = (min if metric == "expected_cost" else max)((value for value in values if value is not None), default=None)
    cells = []
    for report, value in zip(reports.values(), values, strict=True):
        cell = (cost_per_example(report) if metric == "expected_cost" else percent(value)) or "–"
        if metric == "worst_class_recall" and name_classes:
            cell = f"({escape(str(report['worst_class']))}) {cell}"
        cells.append(f"[bold]{cell}[/bold]" if value is not None and value == best else cell)
    return cells


def per_class_table(report: Mapping[str, Any], rows: int | None = 10, title: str | None = None) -> Table:
    """Show the classes of a report, the rarest in training first.

    Args:
        report: the result of `long_tail_report`.
        rows: how many classes to show; None for all.
        title: the table's title.

    Returns:
        A `rich` table. Recall and precision are rounded to the precision that the number of examples supports.

    Raises:
        ValueError: `rows` is not positive.

    Example:
        >>> from hf_sharp.reports.long_tail_report import long_tail_report
        >>> report = long_tail_report([0, 0, 1], [0, 1, 1], [200, 5], class_names=["dog", "cat"])
        >>> [list(column.cells) for column in per_class_table(report, rows=1).columns]
        [['cat'], ['5'], ['few'], ['2'], ['50'], ['100']]
    """
    check_number("rows", rows, least=1, whole=True, optional=True)
    frequencies = frequencies_of(report)
    counts = frequencies.counts
    order = sorted(range(len(counts)), key=lambda c: (counts[c], c))[:rows]
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("class", overflow="fold")
    for heading in ("training\nexamples", "group", "evaluated\nexamples", "recall\nin %", "precision\nin %"):
        table.add_column(heading, justify="left" if heading == "group" else "right")
    for c in order:
        support = report["per_class_support"][c]
        shares = [report[f"per_class_{figure}"][c] for figure in ("recall", "precision")]
        cells = [percent(share, half_width([share], [support])) or "–" for share in shares]
        table.add_row(escape(frequencies.name(c)), f"{counts[c]:,}", frequencies.group_of[c], f"{support:,}", *cells)
    if len(order) < len(counts):
        table.caption = f"the {len(order)} rarest of {len(counts):,} classes"
    return table
