"""One run of a search: a training on this machine that may be ended early."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PrinterCallback, TrainerCallback, set_seed

from hf_sharp.model.posthoc import choose_strength
from hf_sharp.recipe.kind import recipe_for
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.planned import without_effect
from hf_sharp.recipe.training import Prepared, Recipe
from hf_sharp.reports.long_tail_report import report_of_prediction
from hf_sharp.reports.tuning import ENDED_EARLY, FINISHED, NOT_FINITE
from hf_sharp.trainer.saving import NotFiniteError
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)

_HELD_OUT = 0.2
_EVALUATIONS = 9  # per run; successive halving first looks at the 3rd, as the learning rate may rise until then
# The options that every run of the search has, whatever the config says.
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
_KEPT = ("accuracy", "balanced_accuracy", "few_accuracy", "per_class_recall", "per_class_support")


def read_options(argv: Sequence[str]) -> tuple[RecipeParser, Recipe]:
    """Read the options of the config to tune; if it names no validation data, hold out a fifth of every training class.

    Args:
        argv: the arguments of a training.

    Returns:
        The options, and the recipe for images or for texts.

    Raises:
        ValueError: an option does not exist, or the model cannot be loaded.
    """
    recipe = recipe_for(argv)
    parser = recipe.parser(argv)
    if parser.values.get("validation_split") is None and parser.values.get("validation_fraction") is None:
        parser.values["validation_fraction"] = _HELD_OUT
        logger.warning("A share of %g of every training class is held out as validation data.", _HELD_OUT)
    return parser, recipe


@dataclass(frozen=True)
class Runner:
    """Trains the runs of a search.

    Args:
        parser: the options of the config.
        ready: the prepared data, with a function that creates a trainer.
        folder: the folder of the search.
    """

    parser: RecipeParser
    ready: Prepared
    folder: Path

    def arguments(self, change: Mapping[str, Any]) -> SharpTrainingArguments:
        """Make the training arguments of a run, given the options that differ from the config."""
        change = {**change, **without_effect(self.parser.values, change)}
        folder = str(self.folder / "runs")  # nothing is saved in it
        built = self.parser.build(**{**change, **_QUIET, "eval_steps": 1, "output_dir": folder})
        (args,) = (arguments for arguments in built if isinstance(arguments, SharpTrainingArguments))
        per_step = args.train_batch_size * args.gradient_accumulation_steps
        per_epoch = math.ceil(len(self.ready.splits["train"]) / per_step)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
        args.eval_steps = max(steps // _EVALUATIONS, 1)
        return args

    def train(
        self, change: Mapping[str, Any], goes_on: Callable[[float, int, float], bool], correct: bool = False
    ) -> dict[str, Any]:
        """Train one run.

        Args:
            change: the options that differ from the config.
            goes_on: takes the balanced accuracy of an evaluation, the evaluation's number, counted from 1, and the cost
                of a step so far; returns whether the run goes on. It is not called after the last step.
            correct: whether to also choose the strength of a correction after training.

        Returns:
            `state`, `seconds`, `passes` (the cost of a step, in plain steps), `report` (None if the run did not finish)
            and `free`: strength, value and scores of the correction after training, or None.
        """
        args = self.arguments(change)
        began = time.perf_counter()
        set_seed(args.seed)
        trainer = self.ready.make_trainer(args)
        trainer.remove_callback(PrinterCallback)
        asks = _Asks(goes_on, trainer)
        trainer.add_callback(asks)
        state = NOT_FINITE
        try:
            trainer.train()
            state = ENDED_EARLY if asks.ended else FINISHED
        except NotFiniteError as error:
            if correct:  # chosen with the config's own options
                raise
            logger.warning("%s", error)
        cost = {"state": state, "seconds": time.perf_counter() - began, "passes": _passes(trainer)}
        if state != FINISHED:
            return {**cost, "report": None, "free": None}
        report = report_of_prediction(trainer.predict(self.ready.splits["validation"]), trainer.class_frequencies)
        kept = {name: report[name] for name in _KEPT}
        free = _correction(trainer) if correct else None
        return {**cost, "report": kept, "free": free}


def _passes(trainer: SharpTrainer) -> float:
    return round(trainer.record.passes, 2)


def _correction(trainer: SharpTrainer) -> dict[str, Any] | None:
    # Chooses the strength of a correction after training, which needs no further run.
    counts = trainer.class_frequencies.counts
    try:
        strength, scores = choose_strength(cast(nn.Module, trainer.model), trainer.get_eval_dataloader(), counts)
    except ValueError as error:
        logger.warning("The correction after training cannot be chosen: %s", error)
        return None
    line = {str(tau): score for tau, score in scores.items()}
    return {"strength": strength, "value": scores[strength], "scores": line}


class _Asks(TrainerCallback):
    # Asks after every evaluation except the last whether the run should go on.
    def __init__(self, goes_on: Callable[[float, int, float], bool], trainer: SharpTrainer) -> None:
        self.goes_on, self.trainer, self.count, self.ended = goes_on, trainer, 0, False

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self.count += 1
        found = metrics["eval_balanced_accuracy"], self.count, _passes(self.trainer)
        if state.global_step < state.max_steps and not self.goes_on(*found):
            self.ended = control.should_training_stop = True
