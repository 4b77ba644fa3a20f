"""Repeat the chosen rows of the evidence with many seeds on a GPU, several runs at a time. Writes one JSON.

python benchmarks/gpu_seeds.py wordnet fashion_mnist --seeds 20 --workers 12 --limit-seconds 240

Rates, base and settings are those that benchmarks/results/evidence_TASK.json chose on validation data; the seeds from
100 on chose nothing and are in no other table. Runs start seed by seed, so that comparisons are complete for the first
seeds when the time is over.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from study import OUTPUTS, RESULTS
from study.driver import read_finished, work
from study.figures import paired
from study.rows import ADJUSTED, PLAIN, ROWS
from study.runs import Run, machine_class, make_run

FIRST_SEED = 100
SHARP = ("momentum-SAM", "SAM")
METRICS = ("balanced_accuracy", "few_accuracy")


def rows_of(task: str, seed: int) -> dict[str, Run]:
    """Make the runs of one seed: cross-entropy, logit adjustment, and two sharp rows on top of it."""
    chosen = json.loads((RESULTS / f"evidence_{task}.json").read_text())
    base = tuple(chosen["base"])
    rate = chosen["rates"]["/".join(base)]
    options = {"cross-entropy": PLAIN, "logit adjustment": ADJUSTED}
    for name in SHARP:
        middle = ROWS[name].tries[1]
        options[name] = {**ROWS[name].options, **chosen["chosen"].get(name, middle)}
    return {name: make_run(task, base, rate, seed, values) for name, values in options.items()}


def run_until(end: float, run: Run, folder: Path) -> None:
    """Execute a run, unless the time is over."""
    if time.time() < end:
        work(run, folder)


def compare(task: str, seeds: range, folder: Path) -> dict[str, Any]:
    """Compare every row with logit adjustment, over the seeds for which both are finished."""
    finished = read_finished(folder)
    by_row: dict[str, dict[int, dict]] = {}
    for seed in seeds:
        for name, run in rows_of(task, seed).items():
            if run.key in finished:
                by_row.setdefault(name, {})[seed] = finished[run.key]["test"]
    result: dict[str, Any] = {}
    reference = by_row.get("logit adjustment", {})
    for name, found in by_row.items():
        both = sorted(set(found) & set(reference))
        result[name] = {"options": dict(rows_of(task, seeds[0])[name].options), "seeds": both}
        for metric in METRICS:
            ours, theirs = ([part[seed][metric] for seed in both] for part in (found, reference))
            result[name][metric] = ours
            if name != "logit adjustment" and len(both) > 1:
                result[name][f"{metric}_minus_logit_adjustment"] = paired(ours, theirs)
    return result


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--limit-seconds", type=float, default=240, help="start no run after this time")
    parser.add_argument("--output", type=Path, default=RESULTS / "evidence_gpu.json")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    end = time.time() + arguments.limit_seconds
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    folders = {task: OUTPUTS.with_name("evidence_gpu") / task for task in arguments.tasks}
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as executor:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        waiting = [
            executor.submit(run_until, end, run, folder)
            for seed in seeds
            for task, folder in folders.items()
            for run in rows_of(task, seed).values()
        ]
    failed = [repr(error) for future in waiting if (error := future.exception()) is not None]
    result: dict[str, Any] = {
        "command": f"python benchmarks/gpu_seeds.py {' '.join(arguments.tasks)} --seeds {arguments.seeds}",
        "machine": machine_class(),
        "versions": {"torch": torch.__version__.partition("+")[0]},
        "failed": failed,
        "tasks": {task: compare(task, seeds, folder) for task, folder in folders.items()},
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({task: {n: r["seeds"] for n, r in rows.items()} for task, rows in result["tasks"].items()}))


if __name__ == "__main__":
    main()
