"""Compare radii: SAM and momentum-SAM at three radii each, for training from scratch, full fine-tuning and LoRA.

python benchmarks/radii.py                    # resumes; needs the rates that benchmarks/evidence.py chose
python benchmarks/radii.py --workers 2

Balanced accuracy on validation data with the tuning seeds of benchmarks/protocol.md; no test set is read. Runs are
shared with those of benchmarks/evidence.py. Writes benchmarks/results/radii.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from study import OUTPUTS, RESULTS, use_one_thread
from study.driver import read_finished, restore, work_through
from study.rows import ADJUSTED, MOMENTUM_RADII, RADII
from study.runs import TUNING_SEEDS, Run, machine_class, make_run

BASES = {
    "from scratch: small ViT, Fashion-MNIST": ("fashion_mnist", ("scratch", "noise")),
    "full fine-tuning: MiniLM, WordNet": ("wordnet", ("full", "noise")),
    "LoRA and class means: MiniLM, WordNet": ("wordnet", ("lora", "class_mean")),
}
GRIDS = {"gradient": RADII, "momentum": MOMENTUM_RADII}


def plan() -> dict[tuple[str, str, float | None], list[Run]]:
    """List the runs of every base, ascent and radius; without sharpness the ascent is "none"."""
    planned: dict[tuple[str, str, float | None], list[Run]] = {}
    for title, (task, base) in BASES.items():
        rate = json.loads((RESULTS / f"evidence_{task}.json").read_text())["rates"]["/".join(base)]
        make = partial(make_run, task, base, rate)
        planned[title, "none", None] = [make(seed, ADJUSTED) for seed in TUNING_SEEDS]
        for ascent, radii in GRIDS.items():
            options = {"sharpness": "sam", "loss": "logit_adjusted"}
            options |= {} if ascent == "gradient" else {"ascent": ascent}
            for rho in radii:
                planned[title, ascent, rho] = [make(seed, options, {"rho": rho}) for seed in TUNING_SEEDS]
    return planned


def summarize(runs: list[Run], finished: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compute the figures of one table cell."""
    records = [finished[run.key] for run in runs]
    scores = [record["validation"]["balanced_accuracy"] for record in records]
    return {
        "balanced_accuracy": scores,
        "mean": statistics.fmean(scores),
        "train_accuracy": statistics.fmean(record["train_accuracy"] for record in records),
        "rate": runs[0].rate,
    }


def main() -> None:
    """Train the missing runs, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    workers = parser.parse_args().workers
    use_one_thread()
    torch.set_num_threads(1)
    planned = plan()
    for task in {task for task, _base in BASES.values()}:
        restore(OUTPUTS / task, RESULTS / f"evidence_{task}.json")
    runs = dict.fromkeys(run for runs in planned.values() for run in runs)
    work_through([(run, OUTPUTS / run.task, None) for run in runs], workers, math.inf)
    finished = {key: record for task, _ in BASES.values() for key, record in read_finished(OUTPUTS / task).items()}
    rows = [
        {"base": title, "ascent": ascent, "rho": rho, **summarize(runs, finished)}
        for (title, ascent, rho), runs in planned.items()
    ]
    result = {
        "command": "python benchmarks/radii.py",
        "machine": machine_class(),
        "seeds": list(TUNING_SEEDS),
        "versions": {"torch": torch.__version__},
        "rows": rows,
    }
    (RESULTS / "radii.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
