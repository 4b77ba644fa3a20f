"""Few-shot results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from hf_sharp.few_shot.evaluation import Comparison, FewShotResult, average


def few_shot_table(rows: Mapping[str, Mapping[str, FewShotResult]], title: str | None = None) -> Table:
    """Put the accuracies of several backbones on several domains into a table, with their averages.

    Args:
        rows: name of the backbone to domain to result; a domain that a backbone has no result on is left blank.
        title: the table's title.

    Returns:
        A `rich` table, in %, a row per backbone; the best of a domain is bold.
    """
    domains = _domains(rows)
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("accuracy in % ± 95 %", overflow="fold")
    for domain in domains:
        table.add_column(escape(domain), justify="right")
    table.add_column("average", justify="right")
    best = {domain: max(row[domain].accuracy for row in rows.values() if domain in row) for domain in domains}
    for name, row in rows.items():
        cells = []
        for domain in domains:
            found = row.get(domain)
            cell = "" if found is None else _percent(found.accuracy, found.interval)
            cells.append(f"[bold]{cell}[/bold]" if found is not None and found.accuracy == best[domain] else cell)
        whole = all(domain in row for domain in domains)
        table.add_row(escape(name), *cells, _percent(*average(list(row.values()))) if whole else "")
    return table


def comparison_rows(comparisons: Mapping[str, Mapping[str, Comparison]], title: str | None = None) -> Table:
    """Put paired differences into a table.

    Args:
        comparisons: what is compared, to where (a domain, or an average) to the comparison.
        title: the table's title.

    Returns:
        A `rich` table, in percentage points; differences whose interval leaves zero out are bold.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("difference in points ± 95 %, paired", overflow="fold")
    columns = _domains(comparisons)
    for column in columns:
        table.add_column(escape(column), justify="right")
    for name, row in comparisons.items():
        cells = []
        for column in columns:
            found = row.get(column)
            cell = "" if found is None else f"{100 * found.difference:+.1f} ± {100 * found.interval:.1f}"
            sure = found is not None and abs(found.difference) > found.interval
            cells.append(f"[bold]{cell}[/bold]" if sure else cell)
        table.add_row(escape(name), *cells)
    return table


def _domains(rows: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return list(dict.fromkeys(domain for row in rows.values() for domain in row))


def _percent(accuracy: float, interval: float) -> str:
    return f"{100 * accuracy:.1f} ± {100 * interval:.1f}"
