"""Texts: how they are named, tokenized, and which model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_sharp.recipe.arguments import DataArguments, ModelArguments
from hf_sharp.recipe.training import train_classifier


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


def train_texts(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train on texts, as `train_classifier` does.

    Args:
        argv: the command line without the program's name; None: that of this process.

    Returns:
        Run name to its results, which are saved too.
    """
    return train_classifier(
        argv, TextArguments, AutoModelForSequenceClassification, load_tokenizer, prepare_texts, "texts"
    )
