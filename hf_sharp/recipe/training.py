"""From a command line to trained, compared and published models, for images and texts alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import datasets
import torch
from transformers import get_scheduler

from hf_sharp.recipe.adapters import AdapterArguments, add_adapters
from hf_sharp.recipe.arguments import DataArguments, ModelArguments, RunArguments, load_splits
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.models import load_model
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.planned import plan_runs
from hf_sharp.recipe.runs import TestData, check_runs, run_side_by_side
from hf_sharp.sharpness.replay import random_state, set_random_state
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments


class Extras(NamedTuple):
    """What a recipe's data has besides its splits.

    Attributes:
        make_transform: takes training arguments, and makes the transform that only training sees; None: there is none.
        tta: the name of the test-time augmentation.
        views: the test split in each of its views.
        record: what to record with the results.
    """

    make_transform: Callable[[SharpTrainingArguments], Any] | None = None
    tta: str = "none"
    views: tuple[datasets.Dataset, ...] = ()
    record: Mapping[str, Any] = MappingProxyType({})


def train_classifier(
    argv: Sequence[str] | None,
    arguments: type[DataArguments],
    auto: Any,
    load_processor: Callable[[ModelArguments, Any], Any],
    prepare: Callable[[datasets.DatasetDict, Any, Any, str], datasets.DatasetDict],
    examples: str,
    extras_of: Callable[[datasets.DatasetDict, Any, Any, SharpTrainingArguments], Extras] | None = None,
    **defaults: Any,
) -> dict[str, dict[str, Any]]:
    """Train as a config and flags say, together with every run to compare with.

    Args:
        argv: the command line without the program's name; None: that of this process.
        arguments: the dataclass of the data's options.
        auto: the transformers class, such as `AutoModelForImageClassification`.
        load_processor: takes the options of model and data, and loads the processor of the model's inputs.
        prepare: takes the splits, the processor, the data's options and the label column; returns splits of inputs.
        examples: what the data consists of, for the title.
        extras_of: takes the prepared splits, the processor, the data's options and the training arguments; returns
            what the data has besides its splits.
        **defaults: training arguments, used where neither config nor flags set them.

    Returns:
        Run name to its results, which are also saved; nothing with `--check_only`.

    Raises:
        ValueError: options, data and model that do not fit each other.
    """
    parser = RecipeParser((arguments, ModelArguments, RunArguments, AdapterArguments, SharpTrainingArguments), argv)
    # Logs every twentieth of a run: long ones not too much, short ones enough to see where they go.
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available(), logging_steps=0.05, **defaults)
    data, model, which, adapters, args = parser.build()
    runs = plan_runs(parser)
    _check_asked(data, args)
    processor = load_processor(model, data)
    with args.main_process_first(desc="preparing the data"):
        splits = load_splits(data, args.label_column)
        with stage(f"the {examples} cannot be prepared"):
            splits = prepare(splits, processor, data, args.label_column)
    extras = extras_of(splits, processor, data, args) if extras_of else Extras()
    class_names = splits["train"].features[args.label_column].names

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        classifier = load_model(auto, model, class_names)
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
                train_transform=extras.make_transform and extras.make_transform(args),
            )
            check_optimizer(trainer)
        with stage(f"the model cannot take the {examples}"):
            try_model(trainer)
        return trainer

    if which.check_only:
        check_runs(runs, make_trainer, adapters.peft_merge)
        return {}
    prepared = {"left_out": data.left_out, "picture_range": getattr(data, "picture_range", None)}
    title = f"{data.dataset}: {len(splits['train']):,} training {examples}, {len(class_names)} classes"
    record = {name: value for name, value in prepared.items() if value} | dict(extras.record)
    if extras.views:
        title += f"; test {examples} in {len(extras.views)} views"
    test = TestData(splits["test"], extras.tta, extras.views)
    return run_side_by_side(runs, make_trainer, test, title, args.output_dir, record, adapters.peft_merge)


def _check_asked(data: DataArguments, args: SharpTrainingArguments) -> None:
    if data.validation_split is None and data.validation_fraction is None and args.eval_strategy != "no":
        strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
        raise ValueError(
            f"eval_strategy={strategy!r} needs validation data. Add --validation_fraction 0.1, or "
            "--validation_split with the name of a split."
        )
    if args.max_steps <= 0 and args.num_train_epochs == 0:
        raise ValueError(
            "num_train_epochs is 0: nothing would be trained. hf-sharp evaluate reports on a model as it is."
        )


def check_optimizer(trainer: SharpTrainer) -> None:
    """Make optimizer and scheduler of a single number: their options must fit, and their packages be installed.

    Args:
        trainer: the trainer, which keeps none of them.

    Raises:
        Exception: whatever transformers, torch or another package raises.
    """
    args = trainer.args
    trainer.get_optimizer_cls_and_kwargs(args, cast(Any, trainer.model))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    options: Any = args.lr_scheduler_kwargs
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(10),
        num_training_steps=10,
        scheduler_specific_kwargs=options,
    )


def try_model(trainer: SharpTrainer) -> None:
    """Run the first training example through the model, in evaluation mode; random states stay.

    Args:
        trainer: the trainer. A model that is sharded later is not tried.

    Raises:
        Exception: whatever the model raises for such inputs.
    """
    model, state = cast(torch.nn.Module, trainer.model), random_state([])
    if trainer.is_fsdp_enabled:
        return
    was_training = model.training
    try:
        batch = trainer.data_collator([cast(Any, trainer.train_dataset)[0]])
        batch.pop("labels")
        with torch.no_grad():
            model.eval()(**trainer._prepare_inputs(batch))
    finally:
        model.train(was_training)
        set_random_state(state)
