"""Few-shot results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from hf_sharp.few_shot.evaluation import Comparison, FewShotResult, average, compare

Rows = Mapping[str, Mapping[str, FewShotResult]]


def differences(rows: Rows) -> dict[str, dict[str, Comparison]]:
    """Compare rows named `method` or `method + fusion`, by domain and on average.

    Args:
        rows: name to domain to result; all rows have the same domains.

    Returns:
        `one against another` to domain (or `average`) to comparison: every row against the first row, and all pairs of
        rows that differ only in the method or only in the fusion.
    """
    first = next(iter(rows), "")
    parts = {name: name.partition(" + ")[::2] for name in rows}
    earlier: list[str] = []
    comparisons = {}
    for name, row in rows.items():
        for base in earlier:
            if base != first and not any(a == b for a, b in zip(parts[name], parts[base], strict=True)):
                continue
            by_domain = {domain: compare(result, rows[base][domain]) for domain, result in row.items()}
            by_domain["average"] = compare(list(row.values()), [rows[base][domain] for domain in row])
            comparisons[f"{name} against {base}"] = by_domain
        earlier.append(name)
    return comparisons


def summary(rows: Rows) -> dict[str, dict[str, dict[str, float]]]:
    """Return accuracies and intervals, without those of single episodes, for JSON.

    Args:
        rows: name to domain to result.

    Returns:
        Name to domain (or `average`) to accuracy and interval.
    """
    return {
        name: {domain: {"accuracy": r.accuracy, "interval": r.interval} for domain, r in row.items()}
        | {"average": dict(zip(("accuracy", "interval"), average(list(row.values())), strict=True))}
        for name, row in rows.items()
    }


def few_shot_table(rows: Rows, title: str | None = None) -> Table:
    """Show the accuracies of several backbones on several domains, with their averages.

    Args:
        rows: name to domain to result; a domain without a result is left blank.
        title: the table's title.

    Returns:
        A `rich` table in percent with a row per name; the best accuracy of each domain is bold.
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
            result = row.get(domain)
            cell = "" if result is None else _percent(result.accuracy, result.interval)
            cells.append(f"[bold]{cell}[/bold]" if result is not None and result.accuracy == best[domain] else cell)
        complete = all(domain in row for domain in domains)
        table.add_row(escape(name), *cells, _percent(*average(list(row.values()))) if complete else "")
    return table


def comparison_rows(comparisons: Mapping[str, Mapping[str, Comparison]], title: str | None = None) -> Table:
    """Show paired differences.

    Args:
        comparisons: name to domain (or `average`) to comparison, as `differences` returns them.
        title: the table's title.

    Returns:
        A `rich` table in percentage points; differences whose interval excludes zero are bold.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("difference in points ± 95 %, paired", overflow="fold")
    columns = _domains(comparisons)
    for column in columns:
        table.add_column(escape(column), justify="right")
    for name, row in comparisons.items():
        cells = []
        for column in columns:
            paired = row.get(column)
            cell = "" if paired is None else f"{100 * paired.difference:+.1f} ± {100 * paired.interval:.1f}"
            excludes_zero = paired is not None and abs(paired.difference) > paired.interval
            cells.append(f"[bold]{cell}[/bold]" if excludes_zero else cell)
        table.add_row(escape(name), *cells)
    return table


def _domains(rows: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    return list(dict.fromkeys(domain for row in rows.values() for domain in row))


def _percent(accuracy: float, interval: float) -> str:
    return f"{100 * accuracy:.1f} ± {100 * interval:.1f}"
