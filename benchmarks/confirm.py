"""Confirm the evidence on fresh seeds: the row that was best on validation data against today's common practice.

python benchmarks/confirm.py clipart solar_cells --rows best weights --workers 2
python benchmarks/confirm.py foldoc --rows default ImbSAM     # a short name, or a row as the evidence calls it
python benchmarks/confirm.py all --workers 2                  # the five short names, on every finished task
python benchmarks/confirm.py all --limit-minutes 0            # only collect what is finished

Rates, bases and settings are those in benchmarks/results/evidence_TASK.json, which were chosen on validation data. The
seeds from 100 on were not used for any choice and are in no other table. Runs start seed by seed, so that comparisons
are complete for the first seeds when the time is up. Resumable: runs are saved in outputs/confirmation/TASK, and their
records in benchmarks/results/confirmation_TASK.json, so that another machine can continue.
"""

from __future__ import annotations

import argparse
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from study import OUTPUTS, RESULTS, use_one_thread
from study.claims import TODAY, best_row, today
from study.driver import read_finished, restore, work_through
from study.plan import make_plan
from study.results import PACKAGES, finished_results
from study.rows import REFERENCE, ROWS
from study.runs import Run

SEEDS = range(100, 110)
TUNED = "logit adjustment, tuned τ"
USUAL = ("best", "cross-entropy", "weights", "default", "tuned")


def rows_of(result: dict[str, Any]) -> dict[str, str]:
    """Return the names of the rows that can be repeated: the usual ones, and every other with finished seeds.

    Args:
        result: the content of benchmarks/results/evidence_TASK.json.

    Returns:
        Name, as `--rows` takes it, to row.
    """
    rows = (str(best_row(result)), *(today(result, name) for name in TODAY), REFERENCE, TUNED)
    usual = dict(zip(USUAL, rows, strict=True))
    return usual | {name: name for name in result["rows"] if name in ROWS and name not in rows}


def plan_runs(result: dict[str, Any]) -> dict[str, list[Run]]:
    """Make the runs of every row that is repeated, one per seed.

    Args:
        result: the content of benchmarks/results/evidence_TASK.json.

    Returns:
        Name of a row, as `--rows` takes it, to its runs, in the order of `SEEDS`.
    """
    plan = make_plan(result["task"], {record["key"]: record for record in result["runs"]})
    return {short: plan.runs_of(ROWS[name], plan.chosen[name], SEEDS) for short, name in rows_of(result).items()}


def collect(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Collect the finished runs of a task.

    Args:
        result: the content of benchmarks/results/evidence_TASK.json.
        folder: the folder of the task's runs.

    Returns:
        The content of benchmarks/results/confirmation_TASK.json: per row, the test metrics of every finished seed.
    """
    finished = read_finished(folder)
    names = rows_of(result)
    rows: dict[str, Any] = {}
    for short, runs in plan_runs(result).items():
        seeds = {str(run.seed): finished[run.key]["test"] for run in runs if run.key in finished}
        if seeds:
            rows[short] = {"row": names[short], "options": dict(runs[0].options), "seeds": seeds}
    return {
        "task": result["task"],
        "command": f"python benchmarks/confirm.py {result['task']}",
        "machine": "; ".join(sorted({record["machine"] for record in finished.values()})),
        "versions": {name: version(name) for name in PACKAGES},
        "few_classes": result["few_classes"],
        "rows": rows,
        "runs": [record | {"key": key} for key, record in finished.items()],
    }


def main() -> None:
    """Run the command line."""
    finished = finished_results()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=["all", *finished], metavar="TASK")
    parser.add_argument("--rows", nargs="+", default=USUAL, metavar="ROW")
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--limit-minutes", type=float, default=math.inf, help="start no run after this time")
    arguments = parser.parse_args()
    use_one_thread()
    names = list(finished) if "all" in arguments.tasks else arguments.tasks
    if unknown := {row for row in arguments.rows for task in names if row not in rows_of(finished[task])}:
        parser.error(f"these rows are not in every task named: {sorted(unknown)}")
    folders = {task: OUTPUTS.with_name("confirmation") / task for task in names}
    files = {task: RESULTS / f"confirmation_{task}.json" for task in names}
    for task, folder in folders.items():
        restore(folder, files[task])
    planned = {task: plan_runs(finished[task]) for task in names}
    jobs = [
        (rows[short][place], folders[task], None)
        for place in range(len(SEEDS))
        for task, rows in planned.items()
        for short in arguments.rows
        if not (folders[task] / f"{rows[short][place].key}.json").exists()
    ]
    try:
        work_through(jobs, arguments.workers, arguments.limit_minutes)
    finally:
        for task, file in files.items():
            if (content := collect(finished[task], folders[task]))["runs"]:
                file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
