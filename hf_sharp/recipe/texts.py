"""Texts: how they are named, tokenized, and which model sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_sharp.recipe.arguments import (
    DataArguments,
    ModelArguments,
    RecipeParser,
    RunArguments,
    load_model,
    load_splits,
)
from hf_sharp.recipe.runs import plan_runs, run_side_by_side
from hf_sharp.trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments


@dataclass
class TextArguments(DataArguments):
    """Which texts."""

    text_column: str = field(default="text", metadata={"help": "The column with the texts."})
    max_length: int = field(default=128, metadata={"help": "Texts are cut after this many tokens."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "The tokenizer's name or folder, if it is not the model's."}
    )


def load_tokenizer(model: ModelArguments, data: TextArguments) -> Any:
    """Load the tokenizer that was named, or the model's."""
    name = data.tokenizer_name or model.model_name_or_path
    if name is None:
        raise ValueError("a model from scratch needs a tokenizer: set tokenizer_name to a name or folder.")
    return AutoTokenizer.from_pretrained(name)


def prepare_texts(
    splits: datasets.DatasetDict, tokenizer: Any, data: TextArguments, label_column: str
) -> datasets.DatasetDict:
    """Replace the texts by their tokens; padding waits until a batch is made.

    Args:
        splits: the data.
        tokenizer: the model's.
        data: the text column, and how long texts may be.
        label_column: the column with the labels, which stays; all others go.

    Returns:
        The splits of tokens.

    Raises:
        ValueError: the column is not a text column.
    """
    first = next(iter(splits.values()))
    if getattr(first.features.get(data.text_column), "dtype", None) not in ("string", "large_string"):
        raise ValueError(f"column {data.text_column!r} is not a text column; the columns are {first.features}.")

    def to_tokens(batch: dict[str, list]) -> dict[str, Any]:
        return tokenizer(batch[data.text_column], truncation=True, max_length=data.max_length)

    others = [name for name in first.column_names if name != label_column]
    return splits.map(to_tokens, batched=True, remove_columns=others, desc="tokenizing")


def train_texts(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train on texts: a config, flags, and every run that it is to be compared with.

    Args:
        argv: the command line without the program's name; None: that of this process.

    Returns:
        Run name to its results, which are saved too.
    """
    parser = RecipeParser((TextArguments, ModelArguments, RunArguments, SharpTrainingArguments), argv)
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())
    data, model, _, args = parser.build()
    runs = plan_runs(parser)
    tokenizer = load_tokenizer(model, data)
    with args.main_process_first(desc="loading and tokenizing"):
        splits = load_splits(data, args.label_column)
        splits = prepare_texts(splits, tokenizer, data, args.label_column)
    class_names = splits["train"].features[args.label_column].names

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        return SharpTrainer(
            model=load_model(AutoModelForSequenceClassification, model, class_names),
            args=args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=tokenizer,
        )

    title = f"{data.dataset}: {len(splits['train']):,} training texts, {len(class_names)} classes"
    return run_side_by_side(runs, make_trainer, splits["test"], title, args.output_dir)
