"""Texts in the recipes: the options, the tokenizer, and checks that its tokens fit the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_sharp.data.columns import other_columns
from hf_sharp.data.local_names import refuse_missing
from hf_sharp.recipe.arguments import DataArguments, ModelArguments
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.models import class_for
from hf_sharp.recipe.training import Recipe, train_classifier
from hf_sharp.registry.words import brief

logger = logging.getLogger(__name__)

# Position embeddings that are not for tokens: RoBERTa and related models count from padding_idx + 1.
_OFFSET_POSITIONS = (
    *("roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "ibert", "luke", "esm"),
    *("longformer", "mpnet", "data2vec-text"),
)


@dataclass
class TextArguments(DataArguments):
    """Options of text data."""

    text_column: str = field(default="text", metadata={"help": "The column with the texts."})
    max_length: int = field(default=128, metadata={"help": "Texts are truncated to this many tokens."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Name or folder of the tokenizer, if it is not the model's."}
    )


def load_tokenizer(model: ModelArguments, data: TextArguments) -> Any:
    """Load the tokenizer, by default the model's, and check that its tokens fit the model.

    Args:
        model: the options of the model.
        data: the tokenizer's name; its `max_length` is reduced if the model has fewer positions.

    Returns:
        The tokenizer, with a padding token.

    Raises:
        ValueError: no tokenizer is named, it cannot be loaded, or it does not belong to the model.
    """
    name = data.tokenizer_name or model.model_name_or_path
    if name is None:
        raise ValueError("a model from scratch needs a tokenizer: set tokenizer_name to a name or folder.")
    refuse_missing(name, "Name another tokenizer with --tokenizer_name.")
    with stage(f"the tokenizer {name!r} cannot be loaded", "Name another one with --tokenizer_name."):
        config = None
        if model.model_name_or_path:
            _, config = class_for(AutoModelForSequenceClassification, model.model_name_or_path, model.trust_remote_code)
        trusted = {"trust_remote_code": True} if model.trust_remote_code else {}
        own = {"config": config} if data.tokenizer_name is None and config is not None else {}
        tokenizer = AutoTokenizer.from_pretrained(name, **own, **trusted)
    fit_tokenizer(tokenizer, config or model.make_config(), name, data)
    return tokenizer


def fit_tokenizer(tokenizer: Any, config: Any, name: str, data: TextArguments) -> None:
    """Make a tokenizer fit a model: set a padding token, and limit texts to the model's number of positions.

    Args:
        tokenizer: the tokenizer; it gets a padding token if it has none.
        config: the model's config.
        name: the tokenizer's name, for error messages.
        data: its `max_length` is reduced if the model has fewer positions.

    Raises:
        ValueError: the tokenizer has more tokens than the model has embeddings, or only special tokens.
    """
    words, embeddings = len(tokenizer), getattr(config, "vocab_size", None)
    if words <= len(tokenizer.all_special_tokens):
        raise ValueError(
            f"the tokenizer {name!r} has only {words} special tokens: its vocabulary file is missing. Name the "
            "tokenizer that the model was trained with: --tokenizer_name."
        )
    if embeddings is not None and words > embeddings:
        raise ValueError(
            f"the tokenizer {name!r} has {words:,} tokens, but the model has embeddings for {embeddings:,}: it is not "
            "this model's. Name the right one with --tokenizer_name."
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in _OFFSET_POSITIONS:
        positions -= (config.pad_token_id or 0) + 1
    if positions is not None and 0 < positions < data.max_length:
        logger.warning("Texts are truncated to %d tokens, the model's number of positions.", positions)
        data.max_length = positions
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer {name!r} has no padding token, and no end token to use for it.")
        tokenizer.pad_token = tokenizer.eos_token
        logger.warning("The tokenizer has no padding token: %r is used.", tokenizer.eos_token)


def prepare_texts(
    splits: datasets.DatasetDict, tokenizer: Any, data: TextArguments, label_column: str
) -> datasets.DatasetDict:
    """Replace texts by their tokens; padding is left to the batches.

    Args:
        splits: the data.
        tokenizer: the tokenizer of the model.
        data: the text column, and the maximum length.
        label_column: the column with the labels, which is kept; all other columns are removed.

    Returns:
        The splits of tokens.

    Raises:
        ValueError: the column is not a text column.
    """
    if data.text_column == label_column:
        raise ValueError(f"text_column and label_column are both {label_column!r}. Change one of them.")
    for split in splits.values():
        if getattr(split.features.get(data.text_column), "dtype", None) not in ("string", "large_string"):
            raise ValueError(
                f"column {data.text_column!r} is not a text column{_first_other(split, data.text_column)}; "
                f"{other_columns(data.text_column, split.column_names, '--text_column')} Pictures are for "
                "recipes/image_classification.py."
            )

    def to_tokens(batch: dict[str, list]) -> dict[str, Any]:
        return tokenizer(batch[data.text_column], truncation=True, max_length=data.max_length)

    tokens = {}
    for name, split in splits.items():  # new data may have fewer columns than the labelled splits
        others = [column for column in split.column_names if column != label_column]
        tokens[name] = split.map(to_tokens, batched=True, remove_columns=others, desc="tokenizing")
    return datasets.DatasetDict(tokens)


TEXTS = Recipe(TextArguments, AutoModelForSequenceClassification, load_tokenizer, prepare_texts, "texts")


def train_texts(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train on texts with `train_classifier`.

    Args:
        argv: the command line without the program's name; None for that of this process.

    Returns:
        Run name to its results, which are also saved.
    """
    return train_classifier(argv, TEXTS)


def _first_other(data: datasets.Dataset, column: str) -> str:
    # The first value that is no text, for a message.
    values = enumerate(data[column] if column in data.column_names else ())
    return next((f" (row {row} has {brief(repr(value))})" for row, value in values if not isinstance(value, str)), "")
