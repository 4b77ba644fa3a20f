"""A search for loss strength, method and radius on validation data, which the test split never enters.

Optuna's TPE proposes a run, `SharpTrainer` trains it, and successive halving ends it early if it falls behind. The
study is an SQLite file: the same command goes on after an interruption, and every proposal depends on the seed and the
finished runs alone.

`Trainer.hyperparameter_search` is not used: its trials change one set of training arguments in place, without the
checks of the options, and options of an earlier trial stay in force.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed

from hf_sharp.model.posthoc import choose_strength
from hf_sharp.recipe.budget import Budget, read_budget
from hf_sharp.recipe.kind import recipe_for
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.planned import without_effect
from hf_sharp.recipe.search_space import SEARCHED, TAU, SearchSpace, is_log
from hf_sharp.recipe.training import Prepared, prepare_training, train_classifier
from hf_sharp.recipe.tuned_config import write_config
from hf_sharp.reports.long_tail_report import report_of_prediction
from hf_sharp.reports.plots.tuning import plot_pareto, plot_sensitivity
from hf_sharp.reports.tuning import FINISHED, best_of, paragraph
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)

STUDY = "study.db"
_RUNGS = 9  # evaluations of a run: successive halving looks at the 1st, the 3rd and the 9th
_HELD_OUT = 0.2
# How every run of the search trains, whatever the config says.
_QUIET = {
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": ["none"],
    "disable_tqdm": True,
    "push_to_hub": False,
    "logging_strategy": "no",
    "eval_strategy": "steps",
    "resume_from_checkpoint": None,
    "metric_for_best_model": None,
}
_HEADER = f"{'run':>4}  {'method':<14}  {'radius':>7}  {'tau':>5}  {'balanced':>8}  {'few':>5}  {'cost':>5}  state"


def tune(
    config: str | Path,
    budget: str = "20runs",
    *,
    output_dir: str | Path | None = None,
    search: Sequence[str] = SEARCHED,
    seed: int = 0,
    retrain: bool = False,
    flags: Sequence[str] = (),
) -> dict[str, Any]:
    """Choose loss strength, method and radius for a config, on validation data held out of the training split.

    Args:
        config: a YAML file of options, as for `hf-sharp train`.
        budget: a number of runs, as in "20runs", or a time, as in "2h". Runs of earlier calls count.
        output_dir: the folder of the search; a search in it is continued. Default: outputs/tune/CONFIG.
        search: the options to search: method, rho, loss_tau, learning_rate, focal_gamma, loss_gamma, loss_margin,
            head_init.
        seed: seed of the search; the training's is the config's.
        retrain: train the chosen config on all training examples, and report the test split.
        flags: options that override the config, as on the command line.

    Returns:
        The content of `tuning.json`: `runs`, `best` (the number of a run), `options` (the chosen ones), `said`.

    Raises:
        ValueError: options that do not fit each other, the model or the data; or a folder with another search.
        ModuleNotFoundError: Optuna is not installed.
    """
    import optuna  # noqa: F401 (missing: say so before the data is loaded)

    allowed = read_budget(budget)
    argv = ["--config", str(config), *flags]
    recipe = recipe_for(argv)
    parser = recipe.parser(argv)
    folder = Path(output_dir or f"outputs/tune/{Path(config).stem}")
    if parser.values.get("validation_split") is None and parser.values.get("validation_fraction") is None:
        parser.values["validation_fraction"] = _HELD_OUT
        logger.warning("%g of every training class is held out to choose on.", _HELD_OUT)
    space = SearchSpace(parser.values, search)
    ready = prepare_training(parser, recipe, without=["test"])  # before a mistake in the data could leave a folder
    search_of = Search(open_study(folder, parser, space, seed), parser, space, ready, folder, seed)
    search_of.go_on(allowed)
    result = search_of.finish()
    if retrain:
        words = ["--config", str(folder / "best.yaml"), "--output_dir", str(folder / "model")]
        train_classifier([*words, "--resume_from_checkpoint", "true"], recipe)
    return result


def open_study(folder: Path, parser: RecipeParser, space: SearchSpace, seed: int) -> Any:
    """Open the study of a folder, or make one.

    Args:
        folder: the folder of the search.
        parser: the options.
        space: what is searched.
        seed: seed of the search.

    Returns:
        The study. A run that was interrupted waits to be run again, with the options that it had.

    Raises:
        ValueError: the folder holds something else, or a search with other options.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file = folder / STUDY
    if folder.exists() and not file.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"the output folder {str(folder)!r} holds no search, and is not empty. Choose another one.")
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    study = optuna.create_study(study_name="tune", direction="maximize", storage=storage, load_if_exists=True)
    ignored = ("output_dir", "resume_from_checkpoint", "overwrite_output_dir", "compare_with", "disable_tqdm")
    values = {name: value for name, value in parser.values.items() if name not in ignored and value is not None}
    settings = {"search": list(space.search), "seed": seed, "options": json.loads(json.dumps(values, default=str))}
    known = study.user_attrs.get("settings")
    if known is not None and known != settings:
        before, now = known["options"] | known, settings["options"] | settings
        differ = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        shown = ", ".join(f"{n}: {before.get(n)!r} then, {now.get(n)!r} now" for n in sorted(differ) if n != "options")
        raise ValueError(
            f"the search in {str(folder)!r} had other options ({shown}). Choose another --output_dir, or delete it."
        )
    study.set_user_attr("settings", settings)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.WAITING)  # next in the queue again
    return study


class Search:
    """A search in progress.

    Args:
        study: the Optuna study.
        parser: the options.
        space: what is searched.
        ready: the data, and how to make a trainer.
        folder: the folder of the search.
        seed: seed of the search.
    """

    def __init__(
        self, study: Any, parser: RecipeParser, space: SearchSpace, ready: Prepared, folder: Path, seed: int
    ) -> None:
        self.study, self.parser, self.space, self.ready = study, parser, space, ready
        self.folder, self.seed = folder, seed
        for run in (space.first(), *space.ladder(1.0)):  # mistakes of every method, before the first run
            self.arguments(space.options(_Fixed(run)))

    def arguments(self, change: Mapping[str, Any]) -> SharpTrainingArguments:
        """Make the training arguments of a run from the options that differ from the config."""
        change = {**change, **without_effect(self.parser.values, change)}
        folder = str(self.folder / "runs")  # nothing is saved there
        (args,) = (
            built
            for built in self.parser.build(**{**change, **_QUIET, "eval_steps": 1, "output_dir": folder})
            if isinstance(built, SharpTrainingArguments)
        )
        per_step = args.train_batch_size * args.gradient_accumulation_steps
        per_epoch = math.ceil(len(self.ready.splits["train"]) / per_step)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        args.eval_steps = max(steps // _RUNGS, 1)
        return args

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs so far, as `tuning.json` holds them; interrupted ones are left out."""
        from optuna.trial import TrialState

        ended = {TrialState.COMPLETE: FINISHED, TrialState.PRUNED: "ended early"}
        return [
            {
                "number": number,
                "state": ended[trial.state],
                "value": trial.value if trial.state == TrialState.COMPLETE else None,
                "params": trial.params,
                **trial.user_attrs,
            }
            for number, trial in enumerate(self.study.get_trials(deepcopy=False, states=list(ended)))
        ]

    def go_on(self, budget: Budget) -> None:
        """Run until the budget is used up; runs of before count."""
        runs = self.runs
        total = budget.runs if budget.runs is not None else int(budget.seconds or 0)
        tqdm.write(_HEADER)
        for run in runs:
            tqdm.write(_row(run, runs[0]))
        by_runs = budget.runs is not None
        with tqdm(total=total, unit="run" if by_runs else "s", desc="tuning", leave=False) as bar:
            while budget.allows([run["seconds"] for run in runs]):
                bar.n = min(len(runs) if by_runs else int(sum(run["seconds"] for run in runs)), total)
                bar.refresh()
                self._propose(len(runs))
                runs = self.runs
                tqdm.write(_row(runs[-1], runs[0]))
                if by_runs:
                    bar.update()

    def _propose(self, done: int) -> None:
        import optuna

        if done == 0 and not self._waiting():
            self.study.enqueue_trial(self.space.first())
        if done > 0 and "ladder" not in self.study.user_attrs:
            ladder = self.space.ladder(self.runs[0]["free"]["strength"] if self.runs[0]["free"] else 1.0)
            for run in ladder:
                self.study.enqueue_trial(run, skip_if_exists=True)
            self.study.set_user_attr("ladder", 1 + len(ladder))
        protected = done < self.study.user_attrs.get("ladder", 1)
        self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + done, n_startup_trials=4)
        self.study.pruner = (
            optuna.pruners.NopPruner()
            if protected
            else optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
        )
        self._run(self.study.ask(), first=done == 0)
        gc.collect()  # trainers hold their models in cycles

    def _waiting(self) -> bool:
        import optuna

        return bool(self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING]))

    def _run(self, trial: Any, first: bool) -> None:
        import optuna

        change = self.space.options(trial)
        args = self.arguments(change)
        began = time.perf_counter()
        set_seed(args.seed)
        trainer = self.ready.make_trainer(args)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Reporter(trial))
        try:
            trainer.train()
        except optuna.TrialPruned:
            self._note(trial, change, time.perf_counter() - began, None)
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
        seconds = time.perf_counter() - began
        report = report_of_prediction(trainer.predict(self.ready.splits["validation"]), trainer.class_frequencies)
        self._note(trial, change, seconds, report)
        if first:
            trial.set_user_attr("free", self._free(trainer))
        self.study.tell(trial, report["balanced_accuracy"])

    def _note(self, trial: Any, change: Mapping[str, Any], seconds: float, report: Mapping[str, Any] | None) -> None:
        kept = ("accuracy", "balanced_accuracy", "few_accuracy", "per_class_recall", "per_class_support")
        sharp = change.get("sharpness", self.space.values["sharpness"])
        trial.set_user_attr("options", dict(change))
        trial.set_user_attr("seconds", seconds)
        trial.set_user_attr("group", trial.params.get("method", sharp))
        trial.set_user_attr("few", None if report is None else report["few_accuracy"])
        trial.set_user_attr("report", None if report is None else {name: report[name] for name in kept})

    def _free(self, trainer: SharpTrainer) -> dict[str, Any] | None:
        # The strength that a correction after training chooses, which needs no run.
        if TAU not in self.space.search:
            return None
        counts = trainer.class_frequencies.counts
        try:
            strength, scores = choose_strength(cast(nn.Module, trainer.model), trainer.get_eval_dataloader(), counts)
        except ValueError as error:
            logger.warning("no correction without training: %s", error)
            return None
        line = {str(tau): score for tau, score in scores.items()}
        return {"strength": strength, "value": scores[strength], "scores": line}

    def finish(self) -> dict[str, Any]:
        """Write the chosen config, the pictures and `tuning.json`, and return its content."""
        runs = self.runs
        best, free = best_of(runs), runs[0]["free"]
        examples = len(self.ready.splits["validation"])
        said = paragraph(runs, examples, free)
        chosen = best["options"]
        options = {**self.parser.values, **chosen, **without_effect(self.parser.values, chosen)}
        write_config(self.folder / "best.yaml", options, chosen, runs, said)
        lines = {TAU: {float(tau): score for tau, score in free["scores"].items()}} if free else None
        title = f"{self.parser.values.get('dataset', 'digits')}, {examples:,} validation examples"
        plot_sensitivity(runs, self.folder / "sensitivity.png", title, is_log=is_log, free=lines)
        plot_pareto(runs, self.folder / "pareto.png", title)
        kept = {name: value for name, value in options.items() if value is not None}
        result = {"runs": runs, "best": best["number"], "options": kept, "said": said, "examples": examples}
        text = json.dumps(result, indent=2, ensure_ascii=False, default=str)
        (self.folder / "tuning.json").write_text(text + "\n", encoding="utf-8")
        return json.loads(text)


class _Fixed:
    # Has the methods of a trial that choose, and chooses what is given.
    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        return self.params.get(name, low)

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return self.params.get(name, choices[0])


class _Reporter(TrainerCallback):
    # Reports every evaluation to the trial, which may end the run.
    def __init__(self, trial: Any) -> None:
        self.trial, self.rung = trial, 0

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        import optuna

        self.rung += 1
        with warnings.catch_warnings():  # a run that was interrupted reports the same figure again
            warnings.simplefilter("ignore", UserWarning)
            self.trial.report(metrics["eval_balanced_accuracy"], self.rung)
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise optuna.TrialPruned


def _row(run: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    options = run["options"]
    radius, tau = (f"{options[name]:g}" if options.get(name) is not None else "" for name in ("rho", TAU))
    value, few = (f"{100 * run[name]:.1f}" if run[name] is not None else "" for name in ("value", "few"))
    cost = run["seconds"] / max(first["seconds"], 1e-9)
    return (
        f"{run['number']:>4}  {run['group'][:14]:<14}  {radius:>7}  {tau:>5}  {value:>8}  {few:>5}  {cost:>5.1f}  "
        f"{run['state']}"
    )
