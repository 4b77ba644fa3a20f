"""Large margin and corrections after training: train a config's runs for several seeds, correct each of the models.

python benchmarks/head.py recipes/configs/fashion_mnist_lt_head.yaml --seeds 0 1 2

The strength of every correction is chosen on validation examples that no training used; the figures are those on the
test set.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from compare import METRICS, over_seeds, recipe_of, run_seed

from hf_sharp.metrics import long_tail_report
from hf_sharp.model.posthoc import METHODS, adjust_head, choose_strength, collect_features
from hf_sharp.recipe import LookArguments, load_splits, open_saved
from hf_sharp.reports.results import machine_class

ROOT = Path(__file__).resolve().parent.parent
FIELDS = set(LookArguments.__dataclass_fields__)


def corrected(folder: Path, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Apply every correction to one model; return the correction's name to its strength and test report."""
    data = LookArguments(**{name: value for name, value in config.items() if name in FIELDS}, batch_size=500)
    saved = open_saved(str(folder), load_splits(data, "label"), data)
    counts = saved.frequencies.counts
    features, labels, layer = collect_features(saved.model, saved.batches("test"), len(counts))
    head = torch.nn.Sequential(layer)  # its inputs are features, so that the model runs only once
    seen, its_labels, _ = collect_features(saved.model, saved.batches("validation"), len(counts))
    validation = [{"input": seen.float(), "labels": its_labels}]
    reports = {}
    for method in ("as trained", *METHODS):
        strength, adjusted = 0.0, head
        if method in METHODS:
            strength, _ = choose_strength(head, validation, counts, method)
            adjusted = adjust_head(head, counts, method, strength=strength)
        with torch.no_grad():
            probabilities = adjusted(features.float()).double().softmax(1).numpy()
        report = long_tail_report(probabilities.argmax(1), labels.numpy(), counts, probabilities)
        reports[method] = {"strength": strength, **{name: report.get(name) for name in METRICS}}
    return reports


def main() -> None:
    """Run all seeds one after the other, and write benchmarks/results/CONFIG.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    name, config = arguments.config.stem, yaml.safe_load((ROOT / arguments.config).read_text())
    per_seed: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in arguments.seeds:
        results = run_seed(arguments.config, seed)
        for run in results:
            reports = corrected(ROOT / "outputs" / "benchmarks" / name / f"seed_{seed}" / run, config)
            for method, report in reports.items():
                per_seed.setdefault(run, {}).setdefault(method, []).append(report)
    first = next(iter(results.values()))["report"]
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for run, methods in per_seed.items():
        for method, of_seeds in methods.items():
            row: dict[str, Any] = {"strengths": [report["strength"] for report in of_seeds]}
            for metric in METRICS:
                values = [report[metric] for report in of_seeds]
                if None not in values:
                    row[metric] = over_seeds(values)
            rows.setdefault(run, {})[method] = row
    result = {
        "command": f"python benchmarks/head.py {arguments.config} --seeds {' '.join(map(str, arguments.seeds))}",
        "recipe": recipe_of(ROOT / arguments.config),
        "config": config,
        "seeds": arguments.seeds,
        "machine": machine_class(),
        "class_counts": first["class_counts"],
        "classes": {group: first[f"{group}_classes"] for group in ("many", "medium", "few")},
        "rare_threshold": first["rare_threshold"],
        "common_threshold": first["common_threshold"],
        "runs": rows,
    }
    (ROOT / "benchmarks" / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
