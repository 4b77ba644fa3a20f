"""Trains, compares and publishes models as a command line says, for both images and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import datasets
import torch
from accelerate.state import PartialState
from transformers import get_scheduler

from hf_sharp.recipe.adapters import AdapterArguments, add_adapters
from hf_sharp.recipe.arguments import DataArguments, ModelArguments, RunArguments, load_splits
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.models import load_model
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.planned import no_folder_left, plan_runs
from hf_sharp.recipe.runs import TestData, check_runs, run_side_by_side
from hf_sharp.registry.words import quantity
from hf_sharp.sharpness.ascent import check_first_moment
from hf_sharp.sharpness.replay import random_state_kept
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments

# The values of options with which nothing is evaluated while training.
_NO_EVALUATION: dict[str, tuple] = {
    "eval_strategy": ("no",),
    "eval_on_start": (False,),
    "load_best_model_at_end": (False,),
    "save_strategy": ("no", "steps", "epoch"),
    "metric_for_best_model": (None,),
}


class Extras(NamedTuple):
    """The parts of a recipe's data other than its splits.

    Attributes:
        make_transform: takes training arguments, and returns the transform of training batches; None for no transform.
        tta: the name of the test-time augmentation.
        views: the test split in each of its views.
        record: the facts about the data to record with the results.
    """

    make_transform: Callable[[SharpTrainingArguments], Any] | None = None
    tta: str = "none"
    views: tuple[datasets.Dataset, ...] = ()
    record: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Recipe:
    """The parts of a recipe that differ between images and texts.

    Attributes:
        arguments: the dataclass of the data's options.
        auto: the transformers class, such as `AutoModelForImageClassification`.
        load_processor: takes the options of model and data, and loads the processor of the model's inputs.
        prepare: takes the splits, the processor, the data's options and the label column; returns splits of inputs.
        examples: what the examples are called in titles, such as "images".
        extras_of: takes the prepared splits, the processor, the data's options and the training arguments; returns the
            `Extras`.
        defaults: training arguments to use if neither config nor flags set them.
    """

    arguments: type[DataArguments]
    auto: Any
    load_processor: Callable[[ModelArguments, Any], Any]
    prepare: Callable[[datasets.DatasetDict, Any, Any, str], datasets.DatasetDict]
    examples: str
    extras_of: Callable[[datasets.DatasetDict, Any, Any, SharpTrainingArguments], Extras] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def parser(self, argv: Sequence[str] | None) -> RecipeParser:
        """Parse a command line; None for that of this process."""
        classes = (self.arguments, ModelArguments, RunArguments, AdapterArguments, SharpTrainingArguments)
        parser = RecipeParser(classes, argv)
        # Log 20 times per run, which is not too much for long runs, and enough to follow short ones.
        common = {"dataloader_pin_memory": torch.cuda.is_available(), "logging_steps": 0.05}
        parser.set_defaults(**common, **self.defaults)
        return parser


@dataclass(frozen=True)
class Prepared:
    """Data that is ready for training, and a function that creates a trainer for it.

    Attributes:
        splits: the prepared splits.
        data: the data's options.
        class_names: K names.
        extras: the parts of the data other than the splits.
        merge: whether adapters are merged into the saved model.
        make_trainer: takes training arguments and returns a trainer with a new model.
    """

    splits: datasets.DatasetDict
    data: DataArguments
    class_names: list[str]
    extras: Extras
    merge: bool
    make_trainer: Callable[[SharpTrainingArguments], SharpTrainer]


def prepare_training(parser: RecipeParser, recipe: Recipe, without: Sequence[str] = ()) -> Prepared:
    """Load and prepare the data that a command line names.

    Args:
        parser: the options.
        recipe: the recipe for images or texts.
        without: splits to leave out.

    Returns:
        The data, with a function that creates a trainer.

    Raises:
        ValueError: options, data and model do not fit each other.
    """
    data, model, _, adapters, args = parser.build()
    processor = recipe.load_processor(model, data)
    with args.main_process_first(desc="preparing the data"):
        splits = load_splits(data, args.label_column)
        for split in without:
            splits.pop(split)
        with stage(f"the {recipe.examples} cannot be prepared"):
            splits = recipe.prepare(splits, processor, data, args.label_column)
    extras = recipe.extras_of(splits, processor, data, args) if recipe.extras_of else Extras()
    class_names = splits["train"].features[args.label_column].names

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        classifier = load_model(recipe.auto, model, class_names)
        if getattr(classifier.config, "pad_token_id", None) is None:  # GPT-2 and similar models
            classifier.config.pad_token_id = getattr(processor, "pad_token_id", None)
        classifier = add_adapters(classifier, len(class_names), adapters, args)
        with stage("the trainer cannot be created"):
            trainer = SharpTrainer(
                model=classifier,
                args=args,
                train_dataset=splits["train"],
                eval_dataset=splits.get("validation"),
                processing_class=processor,
                train_transform=extras.make_transform and extras.make_transform(args),
            )
            check_optimizer(trainer)
        with stage(f"the model cannot take the {recipe.examples}"):
            try_model(trainer)
        return trainer

    return Prepared(splits, data, class_names, extras, adapters.peft_merge, make_trainer)


def train_classifier(argv: Sequence[str] | None, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Train as a config and flags say, together with every run to compare with.

    Args:
        argv: the command line without the program's name; None for that of this process.
        recipe: the recipe for images or texts.

    Returns:
        Run name to its results, which are also saved; empty with `--check_only`.

    Raises:
        ValueError: options, data and model do not fit each other.
    """
    parser = recipe.parser(argv)
    data, _, which, _, args = parser.build()
    runs = plan_runs(parser)
    _check_asked(data, args)
    ready = prepare_training(parser, recipe)
    if which.check_only:
        with no_folder_left(runs):
            check_runs(runs, ready.make_trainer, ready.merge)
        _tell_checked(len(runs), ready, recipe.examples)
        return {}
    prepared = {"left_out": ready.data.left_out, "picture_range": getattr(ready.data, "picture_range", None)}
    count, classes = len(ready.splits["train"]), len(ready.class_names)
    title = f"{data.dataset}: {count:,} training {recipe.examples}, {classes} classes"
    extras = ready.extras
    record = {name: value for name, value in prepared.items() if value} | dict(extras.record)
    if extras.views:
        title += f"; test {recipe.examples} in {len(extras.views)} views"
    test = TestData(ready.splits["test"], extras.tta, extras.views)
    return run_side_by_side(runs, ready.make_trainer, test, title, args.output_dir, record, ready.merge)


def _tell_checked(runs: int, ready: Prepared, examples: str) -> None:
    if PartialState().is_main_process:
        counts = ", ".join(f"{len(rows):,} {split}" for split, rows in ready.splits.items())
        number = quantity(runs, "run", "runs")
        print(f"{number}; {examples}: {counts}; {len(ready.class_names)} classes: nothing wrong found")


def _check_asked(data: DataArguments, args: SharpTrainingArguments) -> None:
    for name, unset in _NO_EVALUATION.items():
        value = getattr(args, name)
        value = getattr(value, "value", value)  # of an enum
        if value not in unset and not data.has_validation:
            raise ValueError(
                f"{name}={value!r} needs validation data. Add --validation_fraction 0.1, or --validation_split with "
                "the name of a split."
            )
    if args.max_steps <= 0 and args.num_train_epochs == 0:
        raise ValueError(
            "num_train_epochs is 0, so nothing would be trained. To evaluate a model as it is, use hf-sharp evaluate."
        )


def check_optimizer(trainer: SharpTrainer) -> None:
    """Create optimizer and scheduler for a single number, to check that their options fit and packages are installed.

    Args:
        trainer: the trainer, which does not keep them.

    Raises:
        ValueError: the ascent follows the optimizer's first moment, and the optimizer keeps none.
        Exception: any exception that transformers, torch or another package raises.
    """
    args = trainer.args
    kind, options = trainer.get_optimizer_cls_and_kwargs(args, cast(Any, trainer.model))
    if trainer.engine.ascent.needs_first_moment:
        of_layers = ("params", "model", "optimizer_dict")  # Trainer removes these itself
        options = {name: value for name, value in options.items() if name not in of_layers}
        check_first_moment(kind([torch.zeros(1, requires_grad=True)], **options))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    scheduling: Any = args.lr_scheduler_kwargs
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(10),
        num_training_steps=10,
        scheduler_specific_kwargs=scheduling,
    )


def try_model(trainer: SharpTrainer) -> None:
    """Run the first training example through the model, in evaluation mode and without changing random states.

    Args:
        trainer: the trainer. A model that will be sharded is not tried.

    Raises:
        Exception: any exception that the model raises for such inputs.
    """
    model = cast(torch.nn.Module, trainer.model)
    if trainer.is_fsdp_enabled:
        return
    was_training = model.training
    with random_state_kept([]):
        try:
            batch = trainer.data_collator([cast(Any, trainer.train_dataset)[0]])
            batch.pop("labels")
            with torch.no_grad():
                model.eval()(**trainer._prepare_inputs(batch))
        finally:
            model.train(was_training)
