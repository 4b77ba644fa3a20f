"""Markdown tables of committed results."""

import json
from collections.abc import Iterable
from typing import Any

from study import RESULTS


def results(name: str) -> dict[str, Any]:
    """Read one committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Make a Markdown table."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("--- |", "---|")


def percent(metric: dict[str, Any]) -> str:
    """Format the mean over seeds in percent, with the standard deviation if there are several seeds."""
    spread = "" if metric["stdev"] is None else f" ± {100 * metric['stdev']:.1f}"
    return f"{100 * metric['mean']:.1f}{spread}"


def made_by(name: str, seeds: str = "") -> str:
    """Say which command made a result, on which machine, and where its data are."""
    result = results(name)
    return f"`{result['command']}` on {result['machine']}{seeds}. Data: `benchmarks/results/{name}.json`."
