"""From a command line to trained, compared and published models, whatever the examples are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch

from hf_sharp.recipe.adapters import AdapterArguments, add_adapters
from hf_sharp.recipe.arguments import (
    DataArguments,
    ModelArguments,
    RunArguments,
    load_splits,
)
from hf_sharp.recipe.models import load_model
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.runs import plan_runs, run_side_by_side
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments


def train_classifier(
    argv: Sequence[str] | None,
    arguments: type[DataArguments],
    auto: Any,
    load_processor: Callable[[ModelArguments, Any], Any],
    prepare: Callable[[datasets.DatasetDict, Any, Any, str], datasets.DatasetDict],
    examples: str,
    **defaults: Any,
) -> dict[str, dict[str, Any]]:
    """Train as a config and flags say, and every run that it is to be compared with.

    Args:
        argv: the command line without the program's name; None: that of this process.
        arguments: the dataclass of the data.
        auto: the transformers class, such as `AutoModelForImageClassification`.
        load_processor: loads what turns examples into a model's inputs, of the model's and the data's arguments.
        prepare: lets the splits give inputs; of the splits, the processor, the data's arguments and the label column.
        examples: what the data consists of, for the title.
        **defaults: training arguments, where neither config nor flags say otherwise.

    Returns:
        Run name to its results, which are saved too.
    """
    parser = RecipeParser((arguments, ModelArguments, RunArguments, AdapterArguments, SharpTrainingArguments), argv)
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available(), **defaults)
    data, model, _, adapters, args = parser.build()
    runs = plan_runs(parser)
    if data.validation_split is None and data.validation_fraction is None and args.eval_strategy != "no":
        raise ValueError(
            f"eval_strategy={args.eval_strategy.value!r} needs validation data. Add --validation_fraction 0.1, or "
            "--validation_split with the name of a split."
        )
    processor = load_processor(model, data)
    with args.main_process_first(desc="preparing the data"):
        splits = prepare(load_splits(data, args.label_column), processor, data, args.label_column)
    class_names = splits["train"].features[args.label_column].names

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        return SharpTrainer(
            model=add_adapters(load_model(auto, model, class_names), len(class_names), adapters, args),
            args=args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=processor,
        )

    title = f"{data.dataset}: {len(splits['train']):,} training {examples}, {len(class_names)} classes"
    return run_side_by_side(runs, make_trainer, splits["test"], title, args.output_dir, adapters.peft_merge)
