"""A search in progress: proposes runs, records their results, and writes the outcome at the end."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from hf_sharp.recipe.budget import Budget
from hf_sharp.recipe.planned import without_effect
from hf_sharp.recipe.search_space import TAU, SearchSpace, is_log
from hf_sharp.recipe.tuned_config import write_config
from hf_sharp.recipe.tuning_run import Runner
from hf_sharp.reports.figures import duration
from hf_sharp.reports.plots.tuning import plot_pareto, plot_sensitivity
from hf_sharp.reports.results import write_whole
from hf_sharp.reports.tuning import ENDED_EARLY, FINISHED, best_of, paragraph

_HEADER = " run  method           radius    tau  balanced    few   cost     time  state"


class Search:
    """A search in progress. Every proposal depends only on the seed and the finished runs.

    Args:
        study: the Optuna study.
        space: the options to search.
        runner: trains the runs.
        seed: the seed of the search.

    Raises:
        ValueError: the options of a method do not fit the config.
    """

    def __init__(self, study: Any, space: SearchSpace, runner: Runner, seed: int) -> None:
        import optuna

        self.study, self.space, self.runner, self.seed = study, space, runner, seed
        self.study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=3)
        for run in (space.first(), *space.ladder(1.0)):  # find mistakes of all methods before the first run
            runner.arguments(space.options(_Fixed(run)))

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs so far, as in `tuning.json`, in the order in which they began and without interrupted runs.

        `passes` is None for a run of an older version that did not count passes.
        """
        from optuna.trial import TrialState

        states = {TrialState.COMPLETE: FINISHED, TrialState.PRUNED: ENDED_EARLY}
        return [
            {
                "number": trial.number,
                "state": states[trial.state],
                "value": trial.value if trial.state == TrialState.COMPLETE else None,
                "params": trial.params,
                "passes": None,
                **trial.user_attrs,
            }
            for trial in self.study.get_trials(deepcopy=False, states=list(states))
        ]

    def go_on(self, budget: Budget) -> None:
        """Run until the budget is used up; earlier runs count."""
        with Progress(budget, self.runs) as progress:
            while budget.allows([run["seconds"] for run in self.runs]):
                trial = self.ask()
                change = self.space.options(trial)

                def goes_on(value: float, evaluation: int, passes: float, trial: Any = trial) -> bool:
                    return self.goes_on(trial, value, evaluation)

                self.tell(trial, change, self.runner.train(change, goes_on, correct=not self.runs))
                progress.show(self.runs)
                gc.collect()  # trainers are in reference cycles with their models

    def ask(self) -> Any:
        """Begin the next run.

        Returns:
            The trial of the run. The first run is the plain one, and must end before the second can begin.
        """
        import optuna

        waiting = optuna.trial.TrialState.WAITING
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        runs = self.runs
        if not states:
            self.study.enqueue_trial(self.space.first())
        if runs and "ladder" not in self.study.user_attrs:
            ladder = self.space.ladder(runs[0]["free"]["strength"] if runs[0].get("free") else 1.0)
            for run in ladder:
                self.study.enqueue_trial(run, skip_if_exists=True)
            self.study.set_user_attr("ladder", 1 + len(ladder))
        begun = len(states) - states.count(waiting)
        self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + begun, n_startup_trials=4)
        return self.study.ask()

    def goes_on(self, trial: Any, value: float, evaluation: int) -> bool:
        """Record the balanced accuracy of an evaluation, and tell whether the run should go on."""
        with warnings.catch_warnings():  # Optuna warns if a run that was interrupted reports a figure again
            warnings.simplefilter("ignore", UserWarning)
            trial.report(value, evaluation)
        if trial.number < self.study.user_attrs.get("ladder", 1):  # one complete run for every method
            return True
        return not trial.should_prune()

    def tell(self, trial: Any, change: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
        """Record the result of a run.

        Args:
            trial: the trial.
            change: the options that differ from the config.
            outcome: the result of `Runner.train`.
        """
        import optuna

        report = outcome["report"]
        own = change.get("sharpness", self.space.values["sharpness"])
        notes = {
            **outcome,
            "options": dict(change),
            "group": trial.params.get("method", own),
            "few": report and report["few_accuracy"],
        }
        for name, note in notes.items():
            if note is not None or name != "free":  # only the first run has the note `free`
                trial.set_user_attr(name, note)
        if outcome["state"] == FINISHED:
            self.study.tell(trial, report["balanced_accuracy"])
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def finish(self) -> dict[str, Any]:
        """Write the chosen config, the plots and `tuning.json`, and return the content of `tuning.json`."""
        runs, folder, values = self.runs, self.runner.folder, self.runner.parser.values
        best, free = best_of(runs), runs[0].get("free")
        examples = len(self.runner.ready.splits["validation"])
        said = paragraph(runs, examples, free)
        chosen = best["options"]
        options = {**values, **chosen, **without_effect(values, chosen), "hub_token": None}  # files may be shared
        write_config(folder / "best.yaml", options, chosen, runs, said)
        lines = {TAU: {float(tau): score for tau, score in free["scores"].items()}} if free else None
        title = f"{values.get('dataset', 'digits')}, {examples:,} validation examples"
        plot_sensitivity(runs, folder / "sensitivity.png", title, is_log=is_log, free=lines)
        plot_pareto(runs, folder / "pareto.png", title)
        kept = {name: value for name, value in options.items() if value is not None}
        result = {"runs": runs, "best": best["number"], "options": kept, "said": said, "examples": examples}
        text = json.dumps(result, indent=2, ensure_ascii=False, default=str)
        write_whole(folder / "tuning.json", text + "\n")
        return json.loads(text)


class Progress:
    """Shows the table of runs, and a progress bar, while a search runs.

    Args:
        budget: the budget of the search.
        runs: the earlier runs.
    """

    def __init__(self, budget: Budget, runs: list[dict[str, Any]]) -> None:
        self.budget, self.before = budget, runs
        self.total = budget.runs if budget.runs is not None else int(budget.seconds or 0)
        self.shown: set[int] = set()

    def __enter__(self) -> Progress:
        """Show the earlier runs."""
        tqdm.write(_HEADER)
        unit = "s" if self.budget.runs is None else "run"
        self.bar = tqdm(total=self.total, initial=self._done(self.before), unit=unit, desc="tuning", leave=False)
        self.show(self.before)
        return self

    def __exit__(self, *_: Any) -> None:
        """Remove the bar."""
        self.bar.close()

    def show(self, runs: list[dict[str, Any]]) -> None:
        """Add new runs to the table, and move the progress bar."""
        for run in runs:
            if run["number"] not in self.shown:
                self.shown.add(run["number"])
                tqdm.write(_row(run))
        self.bar.n = self._done(runs)
        self.bar.refresh()

    def _done(self, runs: list[dict[str, Any]]) -> int:
        done = len(runs) if self.budget.runs is not None else int(sum(run["seconds"] for run in runs))
        return min(done, self.total)


class _Fixed:
    # Stands in for a trial: its suggest_ methods return given values.
    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        return self.params.get(name, low)

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return self.params.get(name, choices[0])


def _row(run: Mapping[str, Any]) -> str:
    options = run["options"]
    radius, tau = (f"{options[name]:g}" if options.get(name) is not None else "" for name in ("rho", TAU))
    value, few = (f"{100 * run[name]:.1f}" if run[name] is not None else "" for name in ("value", "few"))
    cost = "" if run["passes"] is None else f"{run['passes']:.2f}"
    return (
        f"{run['number']:>4}  {run['group'][:14]:<14}  {radius:>7}  {tau:>5}  {value:>8}  {few:>5}  {cost:>5}  "
        f"{duration(run['seconds']):>7}  {run['state']}"
    )
