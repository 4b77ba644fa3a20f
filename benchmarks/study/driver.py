"""Execute the plan of a task with several processes. Finished runs are never repeated."""

from __future__ import annotations

import fcntl
import json
import math
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tasks

from study import CACHE
from study.plan import STAGES, Plan, make_plan
from study.rows import POST_HOC, ROWS
from study.runs import FINAL_SEEDS, TUNING_SEEDS, Run, make_run
from study.training import execute


def read_finished(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the records of all finished runs, by key."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def restore(folder: Path, results: Path) -> None:
    """Write the records of a results file into the folder of its task, so that another machine can continue.

    Args:
        folder: the folder of the task.
        results: benchmarks/results/evidence_TASK.json, which need not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for record in json.loads(results.read_text())["runs"] if results.exists() else ():
        file = folder / f"{record.pop('key')}.json"
        if not file.exists():
            file.write_text(json.dumps(record, indent=1) + "\n")


@contextmanager
def claim(folder: Path, key: str) -> Iterator[bool]:
    """Claim a run, so that no other driver starts it. A claim ends with its process.

    Args:
        folder: the folder of the task.
        key: the run's key.

    Yields:
        Whether the claim succeeded.
    """
    file = folder / f"{key}.lock"
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            file.unlink(missing_ok=True)


def is_claimed(folder: Path, key: str) -> bool:
    """Check whether another process has claimed a run."""
    if not (folder / f"{key}.lock").exists():
        return False
    with claim(folder, key) as ours:
        return not ours


def work(run: Run, folder: Path, epochs: float | None = None) -> str:
    """Execute one run and write its files; do nothing if they exist or another driver has claimed the run.

    An existing record is kept, so that choices based on it do not change; missing logits are written.

    Args:
        run: the run.
        folder: the folder of the task.
        epochs: fewer epochs than the task's, for a trial.

    Returns:
        The run's key.
    """
    key = run.key
    file, logits = folder / f"{key}.json", folder / f"{key}.npz"
    with claim(folder, key) as ours:
        if not ours or (file.exists() and logits.exists()):
            return key
        error = folder / f"{key}.error"
        try:
            record, arrays = execute(run, epochs)
        except Exception:
            error.write_text(f"{json.dumps(run.values())}\n{traceback.format_exc()}")
            raise
        partial = folder / f"{key}.part.npz"
        np.savez_compressed(partial, allow_pickle=False, **arrays)
        partial.rename(logits)
        if not file.exists():
            text = folder / f"{key}.part"
            text.write_text(json.dumps(record, indent=1) + "\n")
            text.rename(file)
        error.unlink(missing_ok=True)
    return key


def work_before(end: float, run: Run, folder: Path, epochs: float | None) -> str | None:
    """Execute a run as `work` does and return its key, or None once `end`, a time.time(), is over."""
    return work(run, folder, epochs) if time.time() < end else None


def work_through(jobs: Sequence[tuple[Run, Path, float | None]], workers: int, limit_minutes: float) -> None:
    """Execute runs in this order, without a plan that depends on their results.

    Args:
        jobs: the arguments of `work`.
        workers: the number of processes.
        limit_minutes: start no run after this time.

    Raises:
        SystemExit: runs failed; the others are finished.
    """
    end, failed = time.time() + 60 * limit_minutes, 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        started = {executor.submit(work_before, end, *job): job[0] for job in jobs}
        for future, run in started.items():
            if (error := future.exception()) is not None:
                failed += 1
                print(f"{run.task} {run.key} failed: {error!r}", flush=True)
            elif future.result():
                print(f"{run.task} seed {run.seed} rate {run.rate:g} {dict(run.options)}", flush=True)
    if failed:
        raise SystemExit(f"{failed} runs failed.")


class _Pool:
    """Starts runs in processes, and reports those that finish or fail."""

    def __init__(self, executor: ProcessPoolExecutor, folder: Path, workers: int) -> None:
        self.executor, self.folder, self.workers = executor, folder, workers
        self.pending: dict[Future, Run] = {}
        self.failed: set[str] = set()

    def start(self, wanted: list[Run]) -> None:
        """Start as many runs as there are free workers."""
        busy = {run.key for run in self.pending.values()} | self.failed
        for run in wanted:
            if len(self.pending) >= self.workers:
                return
            if run.key not in busy and not is_claimed(self.folder, run.key):
                self.pending[self.executor.submit(work, run, self.folder)] = run
                busy.add(run.key)

    def wait(self, stage: str) -> None:
        """Wait until at least one run ends, and report it."""
        for future in wait(self.pending, return_when=FIRST_COMPLETED).done:
            run = self.pending.pop(future)
            if (error := future.exception()) is not None:
                self.failed.add(run.key)
                print(f"{run.key} failed: {error!r}; see {run.key}.error", flush=True)
            elif (file := self.folder / f"{run.key}.json").exists():
                print(f"{stage} {describe(run, json.loads(file.read_text()))}", flush=True)


def describe(run: Run, record: dict[str, Any]) -> str:
    """Describe a finished run on one line."""
    return (
        f"{run.tuning}/{run.head} rate {run.rate:g} seed {run.seed} {dict(run.options)}: validation "
        f"{record['validation']['balanced_accuracy']:.3f}, training {record['train_accuracy']:.3f}, "
        f"{record['train_cpu_seconds']:.0f} s"
    )


def drive(
    task: str,
    folder: Path,
    workers: int,
    last_stage: str,
    limit_minutes: float | None,
    further: Collection[str] | None = None,
) -> None:
    """Execute the plan: each free process starts the next run that follows from the finished ones.

    Args:
        task: the task's name.
        folder: the folder of its runs.
        workers: the number of processes.
        last_stage: the last stage whose runs are started.
        limit_minutes: start no run after this time.
        further: the names of the further rows to train; None for all.

    Raises:
        SystemExit: some runs failed; the others are finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks.load(task).prepare(CACHE)
    end = math.inf if limit_minutes is None else time.monotonic() + 60 * limit_minutes
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        pool = _Pool(executor, folder, workers)
        while True:
            plan = make_plan(task, read_finished(folder), further)
            wanted = plan.wanted if plan.stage in STAGES[: STAGES.index(last_stage) + 1] else []
            in_time = time.monotonic() < end
            if in_time:
                pool.start(wanted)
            if pool.pending:
                pool.wait(plan.stage)
            elif in_time and any(is_claimed(folder, run.key) for run in wanted):
                time.sleep(5)  # another driver executes the last runs of this stage
            else:
                break
    if pool.failed:
        raise SystemExit(f"{task}: {len(pool.failed)} runs failed.")


def missing_logits(task: str, folder: Path) -> list[Run]:
    """List the finished runs that need a correction after training, but whose logits are on another machine."""
    finished = read_finished(folder)
    plan = make_plan(task, finished)
    if plan.base is None:  # nothing is corrected before the base is chosen
        return []
    seeds = (*TUNING_SEEDS, *FINAL_SEEDS)
    runs = dict.fromkeys(run for source in POST_HOC.values() for run in plan.runs_of(ROWS[source], 0, seeds))
    return [run for run in runs if run.key in finished and not (folder / f"{run.key}.npz").exists()]


def recover_logits(task: str, folder: Path, workers: int) -> None:
    """Repeat the runs of `missing_logits`.

    Args:
        task: the task's name.
        folder: the folder of its runs.
        workers: the number of processes.
    """
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        for key in executor.map(work, missing_logits(task, folder), repeat(folder)):
            print(f"logits of {key}", flush=True)


def try_out(task: str, row: str, folder: Path, epochs: float) -> Iterator[str]:
    """Train a row for a few steps on every base, as a trial: with a tuning seed, and therefore without the test set.

    Args:
        task: the task's name.
        row: one of `ROWS`; its middle setting is used.
        folder: the folder of the runs.
        epochs: a fraction of an epoch.

    Yields:
        A line for each base.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = (ROWS[row].options, ROWS[row].tries[len(ROWS[row].tries) // 2])
    for tuning, head in Plan(task).bases:
        rates = tasks.load(task).RATES[tuning]
        run = make_run(task, (tuning, head), rates[len(rates) // 2], TUNING_SEEDS[0], *options)
        yield describe(run, json.loads((folder / f"{work(run, folder, epochs)}.json").read_text()))
