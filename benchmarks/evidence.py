"""Train every method on a task by the protocol in benchmarks/protocol.md, and record every run. Resumable.

python benchmarks/backbones/convert.py all                 # once
python benchmarks/evidence.py all --prepare                # once: download and read the data
python benchmarks/evidence.py wordnet                      # resumes where it stopped
python benchmarks/evidence.py wordnet --workers 2 --limit-minutes 60
python benchmarks/evidence.py wordnet --stage rate         # stop after this stage: rate, base, tune or final
python benchmarks/evidence.py wordnet --stage further_final --rows Focal-SAM ImbSAM   # of the further rows, these
python benchmarks/evidence.py wordnet --status             # what is finished, what comes next
python benchmarks/evidence.py wordnet --try SAM            # a few steps of one row on every base, without the test set
python benchmarks/evidence.py all --tables                 # benchmarks/results/evidence_*.json as Markdown
python benchmarks/evidence.py all --picture                # a picture of every run

The names of a run's files depend on everything that its result depends on, so that no run is repeated, and several
drivers can share a task. Runs finished on another machine are read from benchmarks/results/evidence_TASK.json. Runs
with the tuning seeds never read the test set.

Each run writes outputs/evidence/TASK/KEY.json and KEY.npz (logits), which git ignores. They are collected in
benchmarks/results/evidence_TASK.json, from which tables and pictures are made.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import tasks
import torch
from study import CACHE, OUTPUTS, PICTURES, RESULTS, use_one_thread
from study.claims import draw_overview
from study.driver import drive, read_finished, recover_logits, restore, try_out
from study.plan import STAGES, make_plan
from study.report import draw, make_table
from study.results import collect, finished_results
from study.rows import ROWS

TRY_EPOCHS = 0.1


def print_status(task: str, folder: Path) -> None:
    """Print what has been chosen so far, and how many runs of the current stage remain."""
    restore(folder, RESULTS / f"evidence_{task}.json")
    finished = read_finished(folder)
    plan = make_plan(task, finished)
    hours = sum(record["train_cpu_seconds"] for record in finished.values()) / 3600
    print(
        f"{task}: {len(finished)} runs finished ({hours:.1f} core hours); stage {plan.stage}, {len(plan.wanted)} runs "
        f"remaining in it; rates {plan.rates}, base {plan.base}"
    )
    for name, scores in plan.validation.items():
        shown = ", ".join(f"{index}: {100 * value:.1f}" for index, value in scores.items())
        print(f"  {name}: {shown}" + (f"; best {plan.chosen[name]}" if name in plan.chosen else ""))
    print(f"  stopped: {plan.stopped or 'none'}; waiting for options: {', '.join(plan.waiting) or 'none'}")


def train(task: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Train the missing runs, and write the results file, even after an interruption."""
    file = RESULTS / f"evidence_{task}.json"
    restore(folder, file)
    try:
        if arguments.logits:
            recover_logits(task, folder, arguments.workers)
        drive(task, folder, arguments.workers, arguments.stage, arguments.limit_minutes, arguments.rows)
    finally:
        before = json.loads(file.read_text()) if file.exists() else {}
        result = collect(task, folder, f"python benchmarks/evidence.py {task}", before)
        if result["runs"]:
            file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["all", *tasks.NAMES])
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--stage", choices=STAGES, default="final", help="the last stage to run")
    parser.add_argument("--limit-minutes", type=float, help="start no run after this time")
    further = [name for name, row in ROWS.items() if row.further]
    parser.add_argument("--rows", nargs="+", choices=further, metavar="ROW", help="only these of the further rows")
    parser.add_argument(
        "--logits", action="store_true", help="first repeat runs that need a correction but finished elsewhere"
    )
    parser.add_argument("--prepare", action="store_true", help="only download and read the data")
    parser.add_argument("--status", action="store_true", help="only print the progress")
    parser.add_argument("--try", dest="try_row", choices=list(ROWS), metavar="ROW", help="only train a few steps")
    parser.add_argument("--tables", action="store_true", help="only print Markdown tables of the results")
    parser.add_argument("--picture", action="store_true", help="only draw every run of the results")
    arguments = parser.parse_args()
    use_one_thread()
    torch.set_num_threads(1)
    finished = finished_results()
    if arguments.task == "all" and arguments.picture:
        draw_overview(list(finished.values()), PICTURES / "evidence.png")
    for task in tasks.NAMES if arguments.task == "all" else [arguments.task]:
        if arguments.prepare:
            print(f"{task}: {len(tasks.load(task).prepare(CACHE))} examples")
        elif arguments.status:
            print_status(task, OUTPUTS / task)
        elif arguments.try_row:
            for line in try_out(task, arguments.try_row, OUTPUTS.with_name("evidence_try") / task, TRY_EPOCHS):
                print(f"{task} {line}", flush=True)
        elif arguments.tables or arguments.picture:
            if task not in finished:
                print(f"{task}: the main rows are not finished")
            elif arguments.tables:
                print(make_table(finished[task]))
            else:
                draw(finished[task], PICTURES / f"evidence_{task}.png")
        else:
            train(task, OUTPUTS / task, arguments)


if __name__ == "__main__":
    main()
