"""A search whose runs are trained in parallel on the machines of a Ray cluster.

Ray Tune assigns each run to a machine, and restarts it if the machine is lost. The same study as on one machine decides
what to run and what to end early. Proposals depend on which runs have finished, and so on the speed of the machines.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from hf_sharp.recipe.budget import Budget
from hf_sharp.recipe.search import Progress, Search
from hf_sharp.recipe.training import prepare_training
from hf_sharp.recipe.tuning_run import Runner, read_options
from hf_sharp.reports.tuning import ENDED_EARLY

_LOST = 3  # how often a run is restarted after its machine was lost
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the study records everything
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends this command as it ends the others
    "RAY_AIR_NEW_OUTPUT": "0",
}


def go_on_with_ray(search: Search, budget: Budget, argv: Sequence[str], cpus_per_run: int | None) -> None:
    """Run until the budget is used up; earlier runs count.

    Args:
        search: the search.
        budget: the budget; a time budget counts the sum of the runs' times.
        argv: the arguments of a training, which every machine parses itself.
        cpus_per_run: the CPU cores per run; None for one if the run has a GPU, else all of a machine.

    Raises:
        ValueError: no machine has that many cores, or a run failed.
    """
    os.environ |= _ENVIRONMENT
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    if ours := not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    scratch = search.runner.folder.resolve() / "ray"
    try:
        with Progress(budget, search.runs) as progress:
            runs = _Runs(search, budget, progress)
            words = {"argv": list(argv), "folder": str(search.runner.folder), "place": os.getcwd()}
            tuner = tune.Tuner(
                tune.with_resources(_train, _resources(cpus_per_run)),
                param_space=words,
                tune_config=tune.TuneConfig(search_alg=runs, num_samples=-1, reuse_actors=True),
                run_config=tune.RunConfig(
                    storage_path=str(scratch),
                    stop=runs.stop,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=_LOST),
                ),
            )
            tuner.fit()
    finally:
        if ours:
            ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    if runs.failed:
        raise ValueError(runs.failed)


class _Runs(Searcher):
    """The interface to Ray Tune: proposes runs, ends them early and takes their results."""

    def __init__(self, search: Search, budget: Budget, progress: Progress) -> None:
        super().__init__()
        self.search, self.budget, self.progress = search, budget, progress
        self.open: dict[str, tuple[Any, dict[str, Any]]] = {}
        self.failed = ""

    def suggest(self, trial_id: str) -> Any:
        """Choose the options of the next run, if the budget allows it; the first run must end before the others."""
        seconds = [run["seconds"] for run in self.search.runs]
        if self.open and not seconds:
            return None
        mean = sum(seconds) / max(len(seconds), 1)
        if self.failed or not self.budget.allows([*seconds, *(mean for _ in self.open)]):
            return Searcher.FINISHED
        trial = self.search.ask()
        change = self.search.space.options(trial)
        self.open[trial_id] = trial, change
        return {"change": change, "correct": not seconds}

    def stop(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tell whether a run should end early."""
        return "value" in result and not self.search.goes_on(
            self.open[trial_id][0], result["value"], result["evaluation"]
        )

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the result of a run; one that failed or was lost stays open in the study."""
        trial, change = self.open.pop(trial_id)
        result = result or {}
        if error or "failed" in result:
            self.failed = result.get("failed", f"run {trial.number} was lost {1 + _LOST} times.")
            return
        early = {"state": ENDED_EARLY, "report": None, "free": None}
        early |= {name: result.get(name) for name in ("seconds", "passes")}
        outcome = json.loads(result["outcome"]) if "outcome" in result else early
        self.search.tell(trial, change, outcome | {"machine": result["machine"]})
        self.progress.show(self.search.runs)

    def __deepcopy__(self, _: Any) -> _Runs:
        """Return this object itself: Ray Tune copies its settings, but the search must not be copied."""
        return self

    def __reduce__(self) -> Any:
        """Pickle nothing: Ray Tune saves its state, but the state of the search is in the study."""
        return (object, ())

    def save(self, checkpoint_path: str) -> None:
        """Save nothing, because the state is in the study."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing, because the state is in the study."""


def _resources(cpus_per_run: int | None) -> dict[str, float]:
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    most = max(int(machine.get("CPU", 0)) for machine in machines)
    if cpus_per_run is not None and cpus_per_run > most:
        raise ValueError(f"no machine of the Ray cluster has {cpus_per_run} cores for a run; the most is {most}.")
    if any(machine.get("GPU", 0) for machine in machines):
        return {"cpu": cpus_per_run or 1, "gpu": 1}
    return {"cpu": cpus_per_run or min(int(machine["CPU"]) for machine in machines if machine.get("CPU", 0))}


@cache
def _runner(argv: tuple[str, ...], folder: str) -> Runner:
    parser, recipe = read_options(argv)
    return Runner(parser, prepare_training(parser, recipe, without=["test"]), Path(folder))


def _train(config: dict[str, Any]) -> None:
    # Runs on any machine of the cluster, in its own process.
    machine = f"{platform.node()}-{ray.get_runtime_context().get_node_id()[:6]}"

    def goes_on(value: float, evaluation: int, passes: float) -> bool:
        so_far = {"seconds": time.perf_counter() - began, "passes": passes}
        # If the run is to end, this call does not return.
        tune.report({"value": value, "evaluation": evaluation, "machine": machine, **so_far})
        return True

    try:
        os.chdir(config["place"])
        runner = _runner(tuple(config["argv"]), config["folder"])
        began = time.perf_counter()
        outcome = runner.train(config["change"], goes_on, config["correct"])
        tune.report({"outcome": json.dumps(outcome), "machine": machine})
    except Exception as error:  # a restart would fail again in the same way
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        tune.report({"failed": f"a run failed on {machine}: {kind}{error}"})
