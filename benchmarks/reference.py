"""The tables of methods, losses, options and configs in README.md and docs/, made from their definitions.

benchmarks/tables.py puts them between their markers: run `make docs`.
"""

from collections.abc import Callable
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "recipes" / "configs"


def config_table() -> str:
    """Make the table of configs from the comment at the top of each file."""
    lines = ["| config | what it trains | needs |", "|---|---|---|"]
    for config in sorted(CONFIGS.glob("*.yaml")):
        comment = config.read_text().split("\n\n")[0].splitlines()
        comment = [line.removeprefix("# ") for line in comment if line.startswith("# ")]
        words, needs = [], "nothing"
        for line in comment:
            if line.startswith("Data"):
                needs = line.partition(": ")[2].rstrip(".")
            elif not line.startswith("Recipe: "):
                words.append(line)
        lines.append(f"| [{config.name}](../recipes/configs/{config.name}) | {' '.join(words)} | {needs} |")
    return "\n".join(lines)


REFERENCE_TABLES: dict[str, Callable[[], str]] = {"configs": config_table}
