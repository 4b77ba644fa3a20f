"""Write the README's tables from the committed results, or check that they are the same.

python benchmarks/readme.py           # rewrite what is between the markers
python benchmarks/readme.py --check   # exit 1 if anything differs
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROWS = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "many": "many_accuracy",
    "medium": "medium_accuracy",
    "few": "few_accuracy",
    "worst class": "worst_class_recall",
}


def results(name: str) -> dict[str, Any]:
    """Read one committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def cell(row: dict[str, Any], metric: str) -> str:
    """Show mean and standard deviation in percent, and with three seeds or fewer all of them."""
    if metric not in row:
        return "–"
    values = " / ".join(f"{100 * value:.1f}" for value in row[metric]["per_seed"])
    spread = row[metric]["stdev"]
    return values if spread is None else f"{100 * row[metric]['mean']:.1f} ± {100 * spread:.1f} ({values})"


def accuracy_table(name: str) -> str:
    """Make the table of one comparison, with what is needed to repeat it."""
    result = results(name)
    runs, classes = result["runs"], result["classes"]
    lines = ["| recall in % | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for label, metric in ROWS.items():
        group = f" ({classes[label]} classes)" if label in classes else ""
        lines.append(f"| {label}{group} | " + " | ".join(cell(row, metric) for row in runs.values()) + " |")
    spans = {name: (min(row["train_seconds"]), max(row["train_seconds"])) for name, row in runs.items()}
    seconds = ", ".join(f"{name} {low:.0f} to {high:.0f} s" for name, (low, high) in spans.items())
    counts = result["class_counts"]
    lines.append("")
    lines.append(
        f"`{result['command']}` on {result['machine']}, seeds {', '.join(map(str, result['seeds']))}: mean ± standard "
        f"deviation (each seed); {sum(counts):,} training examples, classes from {max(counts):,} down to {min(counts)}"
        f"; few is n < {result['rare_threshold']}, many is n > {result['common_threshold']}. Training: {seconds}. "
        f"Data: [benchmarks/results/{name}.json](benchmarks/results/{name}.json)."
    )
    return "\n".join(lines)


def cost_table() -> str:
    """Make the table of step costs."""
    result = results("cost")
    models = result["models"]
    lines = [
        "| step | passes (forward + backward) | "
        + " | ".join(f"{name.upper()}, times plain" for name in models)
        + " |",
        "|---|---|" + "---|" * len(models),
    ]
    for method, row in models["vit"]["methods"].items():
        cells = []
        for model in models.values():
            low, middle, high = model["methods"][method]["ratio_quartiles"]
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        passes = row["passes"]
        lines.append(f"| {method} | {passes['forward']} + {passes['backward']} | " + " | ".join(cells) + " |")
    lines += ["", f"Median and quartiles of paired ratios: `{result['command']}` on {result['machine']}."]
    return "\n".join(lines)


def main() -> int:
    """Rewrite or check every block between `<!-- NAME -->` and `<!-- end -->`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text()

    def block(match: re.Match[str]) -> str:
        name = match[1]
        table = cost_table() if name == "cost" else accuracy_table(name)
        return f"<!-- {name} -->\n{table}\n<!-- end -->"

    made = re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)
    if arguments.check:
        if made != text:
            print("README.md differs from benchmarks/results: run python benchmarks/readme.py")
        return int(made != text)
    readme.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
