"""Holds out validation examples from every class, and keeps at least one training example of each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_sharp.data.class_names import shown
from hf_sharp.data.columns import other_columns
from hf_sharp.data.labels import arrow_column, find_label_column, read_labels
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.words import brief, quantity

logger = logging.getLogger(__name__)
# The limits of a fraction to hold out.
FRACTION: dict[str, Any] = {"above": 0, "most": 0.5, "share": True}


def split_validation(
    dataset: datasets.Dataset,
    fraction: float = 0.1,
    seed: int = 0,
    *,
    label_column: str = "label",
    label2id: Mapping[str, int] | None = None,
    group_column: str | None = None,
    part: str = "validation",
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split a training set by class into training and validation examples.

        validation examples of class c = min(⌊fraction · n_c + ½⌋, n_c − 1)

    With `group_column`, groups of examples, such as all images of a patient, are counted and held out as a whole.
    Otherwise a model could do well in validation by recognizing groups that it saw in training.

    Args:
        dataset: the training set.
        fraction: the share of every class to hold out, in (0, 0.5].
        seed: the seed for choosing examples.
        label_column: the column with the labels; if there is no `label`, `labels` is used.
        label2id: class name to class index, for labels that are names. Default: an arbitrary numbering.
        group_column: the column whose equal values mark a group. A group belongs to the class of its first example.
        part: what the held-out examples are called in messages.

    Returns:
        The training and the validation examples, each in their original order. Every class keeps at least one training
        example; a warning names the classes without a validation example.

    Raises:
        ValueError: the fraction is outside (0, 0.5], `dataset` is not a `datasets.Dataset` or is empty, a column does
            not exist, or no class would get a validation example.

    Example:
        >>> data = datasets.Dataset.from_dict({"label": [0] * 20 + [1] * 10 + [2]})
        >>> train, validation = split_validation(data, 0.1)
        >>> np.bincount(train["label"]).tolist(), np.bincount(validation["label"], minlength=3).tolist()
        ([18, 9, 1], [2, 1, 0])
    """
    check_number(f"the fraction to hold out for {part}", fraction, **FRACTION)
    check_is_dataset(dataset, "split")
    label_column = find_label_column(dataset, label_column)
    if label2id is None and label_column in dataset.column_names:
        names = [name for name in dataset.unique(label_column) if isinstance(name, str)]
        label2id = {name: index for index, name in enumerate(names)}
    labels = read_labels(dataset, label_column, label2id=label2id)
    if len(labels) == 0:
        raise ValueError("the dataset is empty and cannot be split.")
    groups = np.arange(len(labels)) if group_column is None else _groups(dataset, group_column, "group_column")
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    of_rows, labels = labels, labels[first]
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    without = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(int(np.floor(fraction * len(rows) + 0.5)), len(rows) - 1)
        chosen[rng.choice(rows, size=count, replace=False)] = True
        if count == 0:
            without.append(int(label))
    held_out = _with_every_class_left(chosen, group_of, of_rows)
    if not held_out.any():
        largest = int(np.bincount(labels).max())
        remedy = "Use a larger fraction." if largest > 1 else f"Is {label_column!r} the column with the labels?"
        raise ValueError(
            f"a {part} fraction of {fraction} holds out no example: the largest class has {largest}. {remedy}"
        )
    if without:
        feature = dataset.features[label_column]
        absent = feature.int2str(without) if isinstance(feature, datasets.ClassLabel) else without
        classes_are = quantity(len(without), "class is", "classes are")
        logger.warning("%s too small for a %s example: %s.", classes_are, part, shown(absent))
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))


def _with_every_class_left(chosen: np.ndarray, group_of: np.ndarray, labels: np.ndarray) -> np.ndarray:
    # The rows to hold out. A group may have rows of several classes, and all rows of a class: it stays then.
    for label in np.unique(labels):
        of_class = group_of[labels == label]
        if chosen[of_class].all():
            chosen[of_class[0]] = False
    return chosen[group_of]


def check_is_dataset(dataset: Any, purpose: str) -> None:
    """Raise a ValueError for anything but a `datasets.Dataset`, such as all splits, a stream or a DataFrame."""
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"got {type(dataset).__name__} to {purpose}, expected a datasets.Dataset. Take one split of a DatasetDict, "
            "make one with Dataset.from_list or Dataset.from_pandas, or choose the examples yourself."
        )


def drop_repeats(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """Keep only the first of all rows with the same value in a column.

    Args:
        dataset: the rows.
        column: the column that identifies a row, such as an image's name.

    Returns:
        The kept rows, in their original order.

    Raises:
        ValueError: the column does not exist, or has no value in some row.

    Example:
        >>> drop_repeats(datasets.Dataset.from_dict({"id": ["b", "a", "b"]}), "id")["id"][:]
        ['b', 'a']
    """
    first = np.unique(_groups(dataset, column, "--unique_column"), return_index=True)[1]
    if len(first) < len(dataset):
        repeats = quantity(len(dataset) - len(first), "row that repeats", "rows that repeat")
        logger.warning("Left out: %s a value of %r.", repeats, column)
    return dataset.select(first)


def _groups(dataset: datasets.Dataset, column: str, option: str) -> np.ndarray:
    """Number the values of a column, in the order of their first rows."""
    if column not in dataset.column_names:
        raise ValueError(f"there is no column {column!r}; {other_columns(column, dataset.column_names, option)}")
    values = arrow_column(dataset, column)
    if pa.types.is_nested(values.type):
        raise ValueError(
            f"column {column!r} has {brief(repr(dataset.features[column]))}, which cannot be compared. Name a column "
            "with texts or numbers, such as a file name or an ID."
        )
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = pc.if_else(pc.equal(pc.utf8_trim_whitespace(values), ""), None, values)  # an empty cell of a CSV file
    if values.null_count:
        row = int(np.argmax(np.asarray(values.is_null())))
        raise ValueError(f"row {row} has no value in column {column!r}, so its group is unknown. Correct or remove it.")
    return np.asarray(pc.index_in(values, values.unique()))
