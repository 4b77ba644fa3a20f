"""Run a recipe for several seeds, and write one JSON file per config, from which the README's table is made.

python benchmarks/compare.py recipes/configs/quickstart.yaml --seeds 0 1 2
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
METRICS = (
    *("accuracy", "balanced_accuracy", "many_accuracy", "medium_accuracy", "few_accuracy", "worst_class_recall"),
    *("macro_f1", "calibration_error"),
)


def recipe_of(config: Path) -> str:
    """Find the recipe for a config: the one whose path its first lines name, else image classification."""
    task = "text" if "text_classification.py" in config.read_text() else "image"
    return f"recipes/{task}_classification.py"


def run_seed(config: Path, seed: int) -> dict[str, dict]:
    """Run the recipe for one seed, or read its saved results; return run name to results."""
    folder = Path("outputs/benchmarks") / config.stem / f"seed_{seed}"
    command = ["accelerate", "launch", "--config_file", "recipes/accelerate/single_gpu.yaml", recipe_of(config)]
    command += ["--config", str(config), "--seed", str(seed), "--output_dir", str(folder)]
    command += ["--resume_from_checkpoint", "true"]
    subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=True, cwd=ROOT)
    files = sorted((ROOT / folder).glob("*/all_results.json")) or [ROOT / folder / "all_results.json"]
    # In the order of the runs: the runs to compare with come first.
    files.sort(key=lambda file: file.stat().st_mtime)
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds, and the values of each seed."""
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "stdev": spread, "per_seed": values}


def thinned(curve: dict[str, list], points: int = 40) -> dict[str, list]:
    """Keep some points of a curve over steps, including the last one, rounded to four digits."""
    every = max(len(curve["step"]) // points, 1)
    kept = sorted({*range(0, len(curve["step"]), every), len(curve["step"]) - 1})
    return {"step": [curve["step"][i] for i in kept], "rho": [float(f"{curve['rho'][i]:.4g}") for i in kept]}


def summarize(runs: dict[int, dict[str, dict]]) -> dict[str, dict]:
    """Return every run's mean and standard deviation over seeds, and the figures of each seed."""
    summary = {}
    for name in next(iter(runs.values())):
        per_seed = {seed: results[name] for seed, results in runs.items()}
        row: dict = {}
        for metric in METRICS:
            values = [result["report"][metric] for result in per_seed.values()]
            if None not in values:
                row[metric] = over_seeds(values)
        if all("radius" in result for result in per_seed.values()):
            row["rho"] = {seed: thinned(result["radius"]) for seed, result in per_seed.items()}
        row["train_seconds"] = [result["training"]["train_runtime"] for result in per_seed.values()]
        if all("passes" in result["training"] for result in per_seed.values()):
            row["passes"] = [result["training"]["passes"] for result in per_seed.values()]
        summary[name] = row
    return summary


def main() -> None:
    """Run all seeds one after the other, and write benchmarks/results/CONFIG.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    config = arguments.config
    runs = {seed: run_seed(config, seed) for seed in arguments.seeds}
    some = next(iter(next(iter(runs.values())).values()))
    first = some["report"]
    result = {
        "command": f"python benchmarks/compare.py {config} --seeds {' '.join(map(str, arguments.seeds))}",
        "config": yaml.safe_load((ROOT / config).read_text()),
        "seeds": arguments.seeds,
        "machine": some["machine"],
        "versions": some["versions"],
        "classes": {group: first[f"{group}_classes"] for group in ("many", "medium", "few")},
        "rare_threshold": first["rare_threshold"],
        "common_threshold": first["common_threshold"],
        "class_counts": first["class_counts"],
        "runs": summarize(runs),
    }
    file = ROOT / "benchmarks" / "results" / f"{config.stem}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
