"""Prepares the head before training: a cosine head instead of the linear one, and its initial values."""

from __future__ import annotations

import logging
from typing import Any

import datasets
import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import AutoModel, AutoTokenizer

from hf_sharp.data.labels import arrow_column
from hf_sharp.model.class_names import init_head_from_class_names
from hf_sharp.model.cosine_head import CosineHead, use_cosine_head
from hf_sharp.model.head_init import Reduce, init_head_from_class_means
from hf_sharp.trainer.preflight import STREAMS
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)

CLIP_SCALE = 25.0  # the factor of cosines with text embeddings: LIFT, arXiv 2309.10019


def cosine_head_of(model: nn.Module) -> CosineHead | None:
    """Find the cosine head of a model; None if it has none."""
    heads = [module for module in model.modules() if isinstance(module, CosineHead)]
    # PEFT keeps the frozen original head beside the copy that is trained.
    return next((head for head in heads if head.weight.requires_grad), heads[0] if heads else None)


def make_cosine_head(model: nn.Module, num_classes: int, args: SharpTrainingArguments) -> CosineHead | None:
    """Replace a model's head by a cosine head, if the arguments ask for one.

    Args:
        model: the model, changed in place. An existing cosine head is kept.
        num_classes: K.
        args: `cosine_head` and its options.

    Returns:
        The cosine head, or None.

    Raises:
        ValueError: the model cannot be saved with a cosine head, or has adapters.
    """
    existing = cosine_head_of(model)
    if existing is not None or not args.cosine_head:
        return existing
    return use_cosine_head(
        model,
        num_classes,
        scale=args.cosine_scale,
        learn_scale=args.cosine_learn_scale,
        allow_custom_code=args.cosine_custom_code,
        head=args.head,
    )


def start_head(trainer: Any, model: nn.Module) -> None:
    """Set the initial values of the head as `head_init` says, with at most one pass over the training set.

    Args:
        trainer: the `LongTailTrainer`, with arguments, training set and class frequencies.
        model: the model, changed in place.

    Raises:
        ValueError: the training set is a stream, the model is sharded, or class names are asked for and the model has
            no text tower.
    """
    args = trainer.args
    if args.head_init == "none":
        return
    if trainer.is_fsdp_enabled:
        raise ValueError(
            "head_init is not supported with FSDP2. Run hf_sharp.model.head_init.init_head_from_class_means on the "
            "model first, on one device, and leave head_init at 'none'."
        )
    if isinstance(trainer.train_dataset, STREAMS):
        raise ValueError(
            f"head_init={args.head_init!r} needs a training set that is not a stream. Load it without streaming."
        )
    if args.head_init == "class_names":
        _start_from_names(trainer, model)
        return
    start = init_head_from_class_means(
        model,
        _batches(trainer),
        trainer.class_frequencies.counts,
        scale=args.head_scale,
        examples_per_class=None if _draws(trainer) else args.head_examples,
        reduce=_sum_over_processes(trainer),
        head=args.head,
        progress=None if args.disable_tqdm else "class means",
    )
    examples = int(start.examples.sum())
    logger.info("The head starts from the class means of %d examples, with scale %.3g.", examples, start.scale)


def _sum_over_processes(trainer: Any) -> Reduce | None:
    return (lambda value: trainer.accelerator.reduce(value, "sum")) if trainer.args.world_size > 1 else None


def _draws(trainer: Any) -> bool:
    # Whether the labels can be read without the examples.
    return trainer.args.head_examples is not None and isinstance(trainer.train_dataset, datasets.Dataset)


def _batches(trainer: Any) -> DataLoader:
    args, data = trainer.args, trainer.train_dataset
    rows = np.arange(len(data))
    if _draws(trainer):
        rows = draw_per_class(np.asarray(arrow_column(data, args.label_column)), args.head_examples, args.seed)
    rows = rows[args.process_index :: args.world_size]
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator, "class means")
    return DataLoader(
        Subset(data, rows.tolist()),
        batch_size=args.eval_batch_size,
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
    )


def draw_per_class(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Draw at most `limit` examples of every class at random.

    Args:
        labels: (N,) one label per example, numbers or names.
        limit: the largest number of examples per class.
        seed: the seed of the draw.

    Returns:
        The drawn row numbers, in ascending order.

    Example:
        >>> draw_per_class(np.array([0, 0, 0, 1]), 2, seed=0)
        array([0, 2, 3])
    """
    classes, members = np.unique(labels, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(members[shuffled], kind="stable")]
    first = np.searchsorted(members[by_class], np.arange(len(classes)))
    rank = np.arange(len(labels)) - first[members[by_class]]
    return np.sort(by_class[rank < limit])


def _start_from_names(trainer: Any, model: nn.Module) -> None:
    args, names = trainer.args, trainer.class_frequencies.names
    source = getattr(getattr(model, "config", None), "_name_or_path", None)
    if names is None or not source:
        raise ValueError(
            "head_init='class_names' needs class names, and a model loaded from a checkpoint with a text tower, such "
            f"as openai/clip-vit-base-patch16; got the names {names} and the checkpoint {source!r}."
        )
    try:
        towers, tokenizer = AutoModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"head_init='class_names': {source!r} could not be opened with both towers: {error}"
        ) from error
    scale = CLIP_SCALE if args.head_scale is None else args.head_scale
    # If there is no exact form, a map is fitted to the training images.
    init_head_from_class_names(
        model,
        towers.to(args.device),
        tokenizer,
        names,
        scale=scale,
        batches=_batches(trainer),
        reduce=_sum_over_processes(trainer),
        head=args.head,
    )
