"""Measure whether momentum-SAM pays off in short trainings: the same rows of a task with fewer epochs.

python benchmarks/duration.py --workers 2
python benchmarks/duration.py --limit-minutes 0    # only collect what is finished

Rates, bases and radii are those in benchmarks/results/evidence_TASK.json, which were chosen on validation data for the
task's own number of epochs. Short trainings may need a higher rate, so they also run with three times the rate. The
seeds were not used for any choice. Resumable: runs are saved in outputs/duration/TASK/EPOCHS.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tasks
from study import OUTPUTS, RESULTS, use_one_thread
from study.driver import read_finished, work_through
from study.plan import make_plan
from study.results import finished_results
from study.rows import REFERENCE, ROWS
from study.runs import Run

TASKS = ("wordnet", "foldoc")
FACTORS = {0.25: (1, 3), 0.5: (1, 3), 1: (1,)}  # share of the epochs to multiples of the learning rate
NAMES = (REFERENCE, "momentum-SAM")
SEEDS = range(100, 105)
FOLDER = OUTPUTS.with_name("duration")
FILE = RESULTS / "duration.json"


class Planned(NamedTuple):
    """A run, with its row, its epochs, and its learning rate in multiples of the chosen one."""

    row: str
    run: Run
    epochs: int
    multiple: int

    @property
    def folder(self) -> Path:
        """The folder for its files."""
        return FOLDER / self.run.task / str(self.epochs)


def plan_runs(results: dict[str, Any]) -> Iterator[Planned]:
    """List all runs, seed by seed, so that comparisons are complete for the first seeds when the time is up.

    Args:
        results: task to the content of benchmarks/results/evidence_TASK.json.

    Yields:
        The runs.
    """
    plans = {task: make_plan(task, {run["key"]: run for run in results[task]["runs"]}) for task in TASKS}
    for seed in SEEDS:
        for task, plan in plans.items():
            for name in NAMES:
                (run,) = plan.runs_of(ROWS[name], plan.chosen[name], [seed])
                for factor, multiples in FACTORS.items():
                    for multiple in multiples:
                        epochs = round(factor * tasks.load(task).EPOCHS)
                        yield Planned(name, run._replace(rate=run.rate * multiple), epochs, multiple)


def collect(planned: list[Planned]) -> dict[str, Any]:
    """Collect the finished runs.

    Args:
        planned: all runs.

    Returns:
        The content of benchmarks/results/duration.json: for each task, number of epochs and learning rate, row and
        seed to the metrics on the test set.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    machines = set()
    for one in sorted(planned, key=lambda one: (TASKS.index(one.run.task), one.epochs, one.multiple)):
        record = read_finished(one.folder).get(one.run.key)
        if record is not None:
            machines.add(record["machine"])
            rows = found.setdefault((one.run.task, one.epochs, one.multiple), {})
            of_row = rows.setdefault(one.row, {"options": dict(one.run.options), "rate": one.run.rate, "seeds": {}})
            of_row["seeds"][str(one.run.seed)] = record["test"] | {"train_accuracy": record["train_accuracy"]}
    trainings = [
        {"task": task, "epochs": epochs, "multiple": multiple, "rows": rows}
        for (task, epochs, multiple), rows in found.items()
    ]
    return {"command": "python benchmarks/duration.py", "machine": "; ".join(sorted(machines)), "trainings": trainings}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--limit-minutes", type=float, default=math.inf, help="start no run after this time")
    arguments = parser.parse_args()
    use_one_thread()
    planned = list(plan_runs(finished_results()))
    for one in planned:
        one.folder.mkdir(parents=True, exist_ok=True)
    jobs = [(one.run, one.folder, one.epochs) for one in planned]
    try:
        work_through(jobs, arguments.workers, arguments.limit_minutes)
    finally:
        if (content := collect(planned))["trainings"]:
            FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
