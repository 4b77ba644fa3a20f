"""Record the signal that updates of a learned radius would get: the sign of dU/dρ for every objective, at fixed radii.

python benchmarks/radius_signal.py

Trains the Fashion-MNIST-LT recipe's model with SAM at each radius, computes the derivative of each objective at every
update, and writes benchmarks/results/radius_signal.json.
"""

import json
import runpy
import shlex
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from hf_sharp.reports.results import machine_class
from hf_sharp.sharpness.radius import RHO_OBJECTIVES, LearnedRadius, radius_derivative

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "recipes/configs/fashion_mnist_lt_recovery.yaml"
RADII = (0.005, 0.05, 0.5)
EPOCHS = 3


def derivatives_at(rho: float) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Train at one radius; return the derivatives by objective, and the report of the trained model."""
    seen: dict[str, list[float]] = defaultdict(list)
    at_w = LearnedRadius.at_w

    def watching(self: LearnedRadius, parameters: Any, gradients: Any, loss: Any, grad_scale: Any) -> None:
        if self.direction is not None and self._validation is not None:
            validation, of_validation = self._validation
            for objective in RHO_OBJECTIVES:
                sides = (validation, loss), (of_validation, gradients)
                value = radius_derivative(objective, self._learning_rate, *sides, self.direction, self.step)
                seen[objective].append(value.item())
        at_w(self, parameters, gradients, loss, grad_scale)

    recipe = runpy.run_path(str(ROOT / "recipes" / "image_classification.py"))["main"]
    LearnedRadius.at_w = watching  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as out:
            argv = ["--config", str(ROOT / CONFIG), "--output_dir", out, "--num_train_epochs", str(EPOCHS)]
            argv += ["--rho", str(rho), "--rho_learning_rate", "0", "--compare_with", "none"]
            (result,) = recipe(argv).values()
    finally:
        LearnedRadius.at_w = at_w  # type: ignore[method-assign]
    return seen, result["report"]


def main() -> None:
    """Measure every radius, and write the JSON."""
    rows = []
    for rho in RADII:
        seen, report = derivatives_at(rho)
        rows.append(
            {
                "rho": rho,
                "updates": len(seen["gap"]),
                "balanced_accuracy": report["balanced_accuracy"],
                "objectives": {
                    name: {
                        "share_downwards": round(float(np.mean(np.array(values) > 0)), 3),
                        "mean_over_stdev": round(statistics.fmean(values) / statistics.stdev(values), 3),
                    }
                    for name, values in seen.items()
                },
            }
        )
    result = {
        "command": shlex.join(["python", "benchmarks/radius_signal.py"]),
        "config": CONFIG,
        "epochs": EPOCHS,
        "seed": 0,
        "machine": machine_class(),
        "rows": rows,
    }
    (ROOT / "benchmarks" / "results" / "radius_signal.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
