"""Collect the finished runs of a task for benchmarks/results/evidence_TASK.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import tasks

from study import RESULTS
from study.driver import read_finished
from study.figures import RARE, figures
from study.plan import FINISHED, Plan, Search, make_plan
from study.rows import ADJUSTED, LEFT_OUT, POST_HOC, POST_HOC_STRENGTHS, ROWS
from study.runs import FINAL_SEEDS, TUNING_SEEDS, Run, machine_class

COST = ("train_accuracy", "train_cpu_seconds", "passes_forward", "passes_backward")
PACKAGES = ("hf-sharp", "torch", "transformers", "peft", "datasets", "numpy")


def adjusted_after_training(logits: np.ndarray, counts: np.ndarray, strength: float) -> np.ndarray:
    """Subtract τ log π from the logits, as `hf_sharp.posthoc` does in a head's bias."""
    priors = np.log(np.maximum(counts, 0.5) / counts.sum())
    return logits - strength * priors


def choose_strength(runs: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Choose the strength of the correction after training, by the same criterion as every other setting.

    Args:
        runs: the arrays of the runs with the tuning seeds.

    Returns:
        The element of `POST_HOC_STRENGTHS` with the highest mean balanced accuracy on validation data; the smallest in
        case of a tie.
    """
    scores: dict[int, float] = {}
    for index, strength in enumerate(POST_HOC_STRENGTHS):
        accuracies = []
        for arrays in runs:
            logits = adjusted_after_training(arrays["validation_logits"], arrays["class_counts"], strength)
            metrics = figures(logits, arrays["validation_labels"], arrays["class_counts"])
            accuracies.append(cast(float, metrics["balanced_accuracy"]))
        scores[index] = statistics.fmean(accuracies)
    return POST_HOC_STRENGTHS[Search.best(scores)]


class _Rows:
    """Builds the rows of the results file from the finished runs of a task."""

    def __init__(
        self, folder: Path, plan: Plan, finished: Mapping[str, Mapping[str, Any]], before: Mapping[str, Any]
    ) -> None:
        self.folder, self.plan, self.finished, self.before = folder, plan, finished, before
        self.rows: dict[str, dict[str, Any]] = {}

    def add(self, name: str, kind: str, runs: Sequence[Run]) -> None:
        """Add a row with the finished final seeds, if there are any."""
        records = {run.seed: self.finished[run.key] for run in runs if run.key in self.finished}
        if records:
            self.rows[name] = {
                "kind": kind,
                "options": dict(runs[0].options),
                "base": [runs[0].tuning, runs[0].head],
                "seeds": {
                    str(seed): {**record["test"], **{key: record[key] for key in COST}}
                    for seed, record in records.items()
                },
            }

    def add_trained(self) -> None:
        """Add the bases and all rows that were trained to the end."""
        bases = self.plan.bases if len(self.plan.bases) > 1 else []  # else it is the row of logit adjustment
        for tuning, head in bases:
            name = f"base: {tuning}, head from {head.replace('_', ' ')}"
            self.add(name, "base", self.plan.runs((tuning, head), FINAL_SEEDS, ADJUSTED))
        for name, row in ROWS.items():
            if name in self.plan.chosen and name not in self.plan.stopped:
                runs = self.plan.runs_of(row, self.plan.chosen[name], FINAL_SEEDS)
                self.add(name, "control" if row.control else "sharp", runs)

    def add_post_hoc(self) -> None:
        """Add the rows that are computed from logits; if these are on another machine, keep the earlier rows."""
        for name, source in POST_HOC.items():
            tuning = self.plan.runs_of(ROWS[source], 0, TUNING_SEEDS)
            if source not in self.rows or any(run.key not in self.finished for run in tuning):
                continue
            runs = [
                run for run in [*tuning, *self.plan.runs_of(ROWS[source], 0, FINAL_SEEDS)] if run.key in self.finished
            ]
            if not all((self.folder / f"{run.key}.npz").exists() for run in runs):
                self.rows |= {name: self.before[name]} if name in self.before else {}
                continue
            strength = choose_strength([self.arrays(run) for run in tuning])
            seeds = {}
            for run in self.plan.runs_of(ROWS[source], 0, FINAL_SEEDS):
                if run.key in self.finished:
                    arrays = self.arrays(run)
                    logits = adjusted_after_training(arrays["test_logits"], arrays["class_counts"], strength)
                    metrics = figures(logits, arrays["test_labels"], arrays["class_counts"])
                    seeds[str(run.seed)] = self.rows[source]["seeds"][str(run.seed)] | metrics
            self.rows[name] = self.rows[source] | {"kind": "control", "strength": strength, "seeds": seeds}

    def add_left_out(self) -> None:
        """Keep the earlier rows of methods that have been removed since."""
        self.rows |= {name: row for name, row in self.before.items() if name in LEFT_OUT}

    def arrays(self, run: Run) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{run.key}.npz") as file:
            return dict(file)


def collect(task: str, folder: Path, command: str, before: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Collect the content of benchmarks/results/evidence_TASK.json.

    Args:
        task: the task's name.
        folder: the folder of its runs.
        command: the command that produced them.
        before: the result of an earlier call.

    Returns:
        The choices of the protocol, every run with its figures, and for each row the figures of every finished final
        seed.
    """
    finished = read_finished(folder)
    plan = make_plan(task, finished)
    rows = _Rows(folder, plan, finished, before.get("rows", {}))
    if plan.base is not None:
        rows.add_trained()
        rows.add_post_hoc()
        rows.add_left_out()
    left_out = {
        part: {name: value for name, value in before.get(part, {}).items() if name in LEFT_OUT}
        for part in ("chosen", "validation", "stopped")
    }
    example = next(iter(finished.values()), {})
    counts = example.get("class_counts", ())
    return {
        "task": task,
        "command": command,
        "machine": "; ".join(sorted({record.get("machine", machine_class()) for record in finished.values()})),
        "versions": {name: version(name) for name in PACKAGES},
        "protocol": "benchmarks/protocol.md",
        "tuning_seeds": list(TUNING_SEEDS),
        "final_seeds": list(FINAL_SEEDS),
        "stage": plan.stage,
        "classes": len(counts),
        "class_counts": sorted(counts, reverse=True),
        "few_classes": sum(count < RARE for count in counts),
        "sizes": example.get("sizes", {}),
        "rates": plan.rates,
        "base": plan.base,
        "chosen": {name: dict(ROWS[name].tries[index]) for name, index in plan.chosen.items() if name in ROWS}
        | left_out["chosen"],
        "validation": {
            name: {str(index): round(value, 4) for index, value in scores.items()}
            for name, scores in plan.validation.items()
        }
        | left_out["validation"],
        "stopped": {name: round(value, 4) for name, value in plan.stopped.items()} | left_out["stopped"],
        "waiting": plan.waiting,
        "rows": rows.rows,
        "runs": [record | {"key": key} for key, record in finished.items()],
    }


def finished_results() -> dict[str, dict[str, Any]]:
    """Read the results files of the tasks whose main rows are finished.

    Returns:
        Task to its result, in the order of `tasks.NAMES`.
    """
    files = {task: RESULTS / f"evidence_{task}.json" for task in tasks.NAMES}
    found = {task: json.loads(file.read_text()) for task, file in files.items() if file.exists()}
    return {task: result for task, result in found.items() if result["stage"] in FINISHED}
