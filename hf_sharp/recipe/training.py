"""From a command line to trained, compared and published models, for images and texts alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch

from hf_sharp.recipe.adapters import AdapterArguments, add_adapters
from hf_sharp.recipe.arguments import DataArguments, ModelArguments, RunArguments, load_splits
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.models import load_model
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.runs import plan_runs, run_side_by_side
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments


@dataclass(frozen=True)
class Recipe:
    """What differs between images and texts.

    Attributes:
        arguments: the dataclass of the data's options.
        auto: the transformers class, such as `AutoModelForImageClassification`.
        load_processor: takes the options of model and data, and loads the processor of the model's inputs.
        prepare: takes the splits, the processor, the data's options and the label column; returns splits of inputs.
        examples: what the data consists of, for the title.
        defaults: training arguments, used where neither config nor flags set them.
    """

    arguments: type[DataArguments]
    auto: Any
    load_processor: Callable[[ModelArguments, Any], Any]
    prepare: Callable[[datasets.DatasetDict, Any, Any, str], datasets.DatasetDict]
    examples: str
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def parser(self, argv: Sequence[str] | None) -> RecipeParser:
        """Read a command line; None: that of this process."""
        classes = (self.arguments, ModelArguments, RunArguments, AdapterArguments, SharpTrainingArguments)
        parser = RecipeParser(classes, argv)
        parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available(), **self.defaults)
        return parser


@dataclass(frozen=True)
class Prepared:
    """Data that are ready to train on, and how to make a trainer for them.

    Attributes:
        splits: the prepared splits.
        data: the data's options.
        class_names: K names.
        merge: whether adapters are merged into the saved model.
        make_trainer: takes training arguments and makes a trainer with a fresh model.
    """

    splits: datasets.DatasetDict
    data: DataArguments
    class_names: list[str]
    merge: bool
    make_trainer: Callable[[SharpTrainingArguments], SharpTrainer]


def prepare_training(parser: RecipeParser, recipe: Recipe, without: Sequence[str] = ()) -> Prepared:
    """Load and prepare the data that a command line names.

    Args:
        parser: the options.
        recipe: images or texts.
        without: splits to leave out.

    Returns:
        The data, and how to make a trainer.

    Raises:
        ValueError: options, data and model that do not fit each other.
    """
    data, model, _, adapters, args = parser.build()
    processor = recipe.load_processor(model, data)
    with args.main_process_first(desc="preparing the data"):
        splits = load_splits(data, args.label_column)
        for split in without:
            splits.pop(split)
        with stage(f"the {recipe.examples} cannot be prepared"):
            splits = recipe.prepare(splits, processor, data, args.label_column)
    class_names = splits["train"].features[args.label_column].names

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        classifier = load_model(recipe.auto, model, class_names)
        if getattr(classifier.config, "pad_token_id", None) is None:  # GPT-2 and its kin
            classifier.config.pad_token_id = getattr(processor, "pad_token_id", None)
        classifier = add_adapters(classifier, len(class_names), adapters, args)
        with stage("the trainer cannot be made"):
            trainer = SharpTrainer(
                model=classifier,
                args=args,
                train_dataset=splits["train"],
                eval_dataset=splits.get("validation"),
                processing_class=processor,
            )
            trainer.get_optimizer_cls_and_kwargs(args, classifier)  # it may need a package that is not installed
        return trainer

    return Prepared(splits, data, class_names, adapters.peft_merge, make_trainer)


def train_classifier(argv: Sequence[str] | None, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Train as a config and flags say, together with every run to compare with.

    Args:
        argv: the command line without the program's name; None: that of this process.
        recipe: images or texts.

    Returns:
        Run name to its results, which are also saved.

    Raises:
        ValueError: options, data and model that do not fit each other.
    """
    parser = recipe.parser(argv)
    data, *_, args = parser.build()
    runs = plan_runs(parser)
    if data.validation_split is None and data.validation_fraction is None and args.eval_strategy != "no":
        raise ValueError(
            f"eval_strategy={args.eval_strategy.value!r} needs validation data. Add --validation_fraction 0.1, or "
            "--validation_split with the name of a split."
        )
    ready = prepare_training(parser, recipe)
    prepared = {"left_out": ready.data.left_out, "picture_range": getattr(ready.data, "picture_range", None)}
    count, classes = len(ready.splits["train"]), len(ready.class_names)
    title = f"{data.dataset}: {count:,} training {recipe.examples}, {classes} classes"
    record = {name: value for name, value in prepared.items() if value}
    return run_side_by_side(runs, ready.make_trainer, ready.splits["test"], title, args.output_dir, record, ready.merge)
