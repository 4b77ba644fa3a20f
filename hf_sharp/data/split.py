"""Hold out validation examples from every class, leaving each at least one training example."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import datasets
import numpy as np

from hf_sharp.data.labels import read_labels

logger = logging.getLogger(__name__)


def split_validation(
    dataset: datasets.Dataset,
    fraction: float = 0.1,
    seed: int = 0,
    *,
    label_column: str = "label",
    label2id: Mapping[str, int] | None = None,
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split a training set by class into training and validation examples.

        validation examples of class c = min(⌊fraction · n_c + ½⌋, n_c − 1)

    Args:
        dataset: the training set.
        fraction: share of every class to hold out, in (0, 0.5].
        seed: seed of the choice of examples.
        label_column: the column with the labels.
        label2id: class name to class index, for labels that are names. Default: any numbering.

    Returns:
        The training and the validation examples, each in their original order. Every class keeps at least one training
        example; a warning names the classes without a validation example.

    Raises:
        ValueError: a fraction outside (0, 0.5], an empty dataset, or no validation example in any class.

    Example:
        >>> data = datasets.Dataset.from_dict({"label": [0] * 20 + [1] * 10 + [2]})
        >>> train, validation = split_validation(data, 0.1)
        >>> np.bincount(train["label"]).tolist(), np.bincount(validation["label"], minlength=3).tolist()
        ([18, 9, 1], [2, 1, 0])
    """
    if not 0 < fraction <= 0.5:
        raise ValueError(f"the fraction to hold out must be in (0, 0.5], got {fraction}.")
    if label2id is None and label_column in dataset.column_names:
        names = [name for name in dataset.unique(label_column) if isinstance(name, str)]
        label2id = {name: index for index, name in enumerate(names)}
    labels = read_labels(dataset, label_column, label2id=label2id)
    if len(labels) == 0:
        raise ValueError("the dataset is empty and cannot be split.")
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    without = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(int(np.floor(fraction * len(rows) + 0.5)), len(rows) - 1)
        held_out[rng.choice(rows, size=count, replace=False)] = True
        if count == 0:
            without.append(int(label))
    if not held_out.any():
        largest = int(np.bincount(labels).max())
        remedy = "Use a larger fraction." if largest > 1 else f"Is {label_column!r} the column with the labels?"
        raise ValueError(f"a fraction of {fraction} holds out no example: the largest class has {largest}. {remedy}")
    if without:
        feature = dataset.features[label_column]
        absent = feature.int2str(without) if isinstance(feature, datasets.ClassLabel) else without
        shown = ", ".join(map(repr, absent[:10])) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
        classes_are = "1 class is" if len(without) == 1 else f"{len(without)} classes are"
        logger.warning("%s too small for a validation example: %s.", classes_are, shown)
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))
