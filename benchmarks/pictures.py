"""Draw the pictures of docs/ from the committed results.

python benchmarks/pictures.py
"""

import json
from pathlib import Path

from hf_sharp.plots import plot_radius

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"


def recovery() -> None:
    """Draw learned radii that began too low, at the default and too high, over the steps."""
    result = json.loads((ROOT / "benchmarks" / "results" / "fashion_mnist_lt_recovery.json").read_text())
    learned = {}
    for name, row in result["runs"].items():
        if "rho" in row:
            start = dict(part.split("=") for part in name.split(",") if "=" in part).get("rho", result["config"]["rho"])
            learned[float(start)] = row["rho"]["0"]
    curves = {f"from {start:g}": {"step": [0, *c["step"]], "rho": [start, *c["rho"]]} for start, c in learned.items()}
    plot_radius(curves, PICTURES / "radius_recovery.png", "learned radius, Fashion-MNIST-LT, 20 epochs")


def main() -> None:
    """Draw all of them."""
    PICTURES.mkdir(exist_ok=True)
    recovery()


if __name__ == "__main__":
    main()
