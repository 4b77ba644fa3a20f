"""Converts label columns of any type to named classes, which are the same in every split, or those of a model."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable, concat_tables

from hf_sharp.data.class_names import align_names, composed, match_names, shown
from hf_sharp.data.label_values import label_values, place, refuse_fractions
from hf_sharp.data.labels import arrow_column, without_labels
from hf_sharp.data.renumbered import Renumbered, torchvision_names
from hf_sharp.registry.words import brief, quantity

logger = logging.getLogger(__name__)

_REMEDY = "Rename the classes of the data, or train a model for them."


def align_dataset(
    data: Any,
    label_column: str,
    names: Sequence[str] | None,
    which: str,
    other: str,
    *,
    subset: bool = False,
    remedy: str = "",
) -> Any:
    """Map the labels of a dataset to the class indices of `names`, by name.

    Args:
        data: a dataset that declares its classes (see `declared_classes`); any other is returned unchanged.
        label_column: the column with the labels.
        names: K class names, of the model; None to return the dataset unchanged.
        which: what the dataset is, such as "the evaluation set", for error messages.
        other: what `names` belong to, such as "the model".
        subset: allow the dataset to lack classes, as evaluation data may; a warning names them.
        remedy: what the user can do about other names, for error messages.

    Returns:
        The dataset; its labels have the classes `names`. Other columns, format and transform are kept.

    Raises:
        ValueError: the class names differ, or, without `subset`, a class is missing.

    Example:
        >>> features = datasets.Features({"label": datasets.ClassLabel(names=["b", "a"])})
        >>> data = datasets.Dataset.from_dict({"label": [0, 1]}, features=features)
        >>> align_dataset(data, "label", ["a", "b"], "the test set", "the model")["label"][:]
        [1, 0]
    """
    feature = declared_classes(data, label_column)
    if feature is None or names is None:
        return data
    order = match_names(feature.names, names, which, other, subset=subset, remedy=remedy or _REMEDY)
    if order is None:
        return data
    stream, table = isinstance(data, datasets.IterableDataset), isinstance(data, datasets.Dataset)
    if table and arrow_column(data, label_column).null_count == len(data):
        return without_labels(data.remove_columns(label_column), label_column, names)
    if absent := [name for index, name in enumerate(names) if index not in order]:
        logger.warning("%s has no examples of %s.", which, shown(absent))
    if stream:
        return _renumbered(data, label_column, order, names)
    if not table:
        return Renumbered(data, label_column, order, names)
    codes = np.asarray(pc.fill_null(arrow_column(data, label_column), -1))
    indices = np.where(codes < 0, codes, order[codes])
    return _with_labels(data, label_column, indices, datasets.ClassLabel(names=list(names)))


def declared_classes(data: Any, label_column: str) -> datasets.ClassLabel | None:
    """Return the classes that a dataset declares.

    Args:
        data: any dataset.
        label_column: the column with the labels.

    Returns:
        The ClassLabel of the label column; for datasets of torch, one of the names in `class_to_idx` or `classes`.
        None if it declares none.
    """
    if isinstance(data, (datasets.Dataset, datasets.IterableDataset)):
        feature = (data.features or {}).get(label_column)
        return feature if isinstance(feature, datasets.ClassLabel) else None
    names = torchvision_names(data)
    return None if names is None else datasets.ClassLabel(names=names)


def _renumbered(
    stream: datasets.IterableDataset, label_column: str, order: np.ndarray, names: Sequence[str]
) -> datasets.IterableDataset:
    indices = order.tolist()

    def renumber(row: dict[str, Any]) -> dict[str, Any]:
        label = row[label_column]
        return row | {label_column: label if label is None or label < 0 else indices[int(label)]}

    features = datasets.Features({**stream.features, label_column: datasets.ClassLabel(names=list(names))})
    return stream.map(renumber, features=features)


def name_classes(
    splits: Mapping[str, datasets.Dataset], label_column: str, class_names: Sequence[str] | None = None
) -> datasets.DatasetDict:
    """Convert the label column of every split to the same ClassLabel.

    Strings and booleans are class names. Integers are class indices if they are 0, 1, ... without gaps, or if
    `class_names` names them; other integers, such as codes, are class names. A negative label means a missing label if
    the training split has no negative labels.

    Args:
        splits: the splits by name; the first one is the training split.
        label_column: the column with one label per example: ClassLabel, strings, integers or booleans.
        class_names: K names, in the order of the class indices. Default: those of the ClassLabel, else sorted.

    Returns:
        The splits with named classes.

    Raises:
        ValueError: a row has no label (the error names split and row), labels have a type that cannot be classes,
            class names differ between the splits or from `class_names`, or there are fewer than 2 classes.

    Example:
        >>> codes = datasets.Dataset.from_dict({"label": [401, 25000, 401]})
        >>> name_classes({"train": codes}, "label")["train"].features["label"].names
        ['401', '25000']
    """
    class_names = class_names and [composed(str(name)) for name in class_names]
    columns = {split: label_values(data, label_column, split, class_names) for split, data in splits.items()}
    training = next(iter(columns.values()))
    for split, column in columns.items():
        if pa.types.is_integer(column.type) and (pa.types.is_string(training.type) or pc.min(training).as_py() >= 0):
            columns[split] = column = pc.if_else(pc.less(column, 0), None, column)
        _refuse_missing(split, label_column, column, splits[split])
        refuse_fractions(split, label_column, column, class_names, splits[split])
    declared = next(iter(splits.values())).features[label_column]
    if isinstance(declared, datasets.ClassLabel):
        names = list(dict.fromkeys(map(composed, declared.names)))
        if len(names) < declared.num_classes:
            logger.warning("Classes whose names differ only in the Unicode form of their accents are one class.")
        for split, data in splits.items():
            if isinstance(feature := data.features[label_column], datasets.ClassLabel):
                align_names(feature.names, names, f"split {split!r}", "the training split", subset=True)
    else:
        names, columns = _names_of(columns, class_names)
    final = _renamed(names, class_names)
    if set(names) <= set(final):
        names = final
    if len(final) < 2:
        raise ValueError(
            f"column {label_column!r} has a single class, {shown(final)}; classification needs at least 2. Is "
            "label_column the column with the labels?"
        )
    feature = datasets.ClassLabel(names=final)
    indices = {split: _indices(split, label_column, column, names, splits[split]) for split, column in columns.items()}
    _warn_of_lookalikes(final)
    _warn_of_untrained(indices, final)
    return datasets.DatasetDict(
        {split: _with_labels(splits[split], label_column, rows, feature) for split, rows in indices.items()}
    )


def _refuse_missing(split: str, label_column: str, column: pa.Array, data: datasets.Dataset) -> None:
    rows = np.flatnonzero(np.asarray(column.is_null()))
    if len(rows) == len(column):
        raise ValueError(
            f"split {split!r} has no labels: column {label_column!r} is empty or negative in each of its {len(rows):,} "
            "rows. Choose another split with --test_split, or hold one out with --test_fraction."
        )
    if len(rows):
        count = quantity(len(rows), "row has", "rows have")
        raise ValueError(
            f"{place(split, rows[0], data)}: column {label_column!r} has no label; {count} none in this split. Correct "
            "the data, or leave such rows out with --skip_broken."
        )


def _names_of(
    columns: Mapping[str, pa.Array], class_names: Sequence[str] | None
) -> tuple[list[str], dict[str, pa.Array]]:
    # Returned integer columns are class indices.
    distinct = {value for column in columns.values() for value in pc.unique(column).to_pylist()}
    if not all(isinstance(value, int) for value in distinct):
        columns = {split: column.cast(pa.string()) for split, column in columns.items()}
        return sorted(set(map(str, distinct))), dict(columns)
    codes = sorted(distinct)
    if class_names is not None and codes[0] >= 0 and codes[-1] < len(class_names):
        return [str(index) for index in range(len(class_names))], dict(columns)
    if codes != list(range(len(codes))):
        logger.warning(
            "The labels are not the numbers from 0 to %d, so they are used as class names (%s).",
            len(codes) - 1,
            shown(codes),
        )
        columns = {split: column.cast(pa.string()) for split, column in columns.items()}
    return [str(code) for code in codes], dict(columns)


def _renamed(names: list[str], class_names: Sequence[str] | None) -> list[str]:
    if class_names is None:
        return names
    if twice := [name for name in dict.fromkeys(class_names) if class_names.count(name) > 1]:
        raise ValueError(f"class_names has {shown(twice)} more than once; expected a different name for every class.")
    if set(names) <= set(class_names):
        return list(class_names)  # aligned by name
    if set(names) & set(class_names):
        align_names(class_names, names, "class_names", "the data")
    if len(class_names) != len(names):
        raise ValueError(f"got {len(class_names)} class_names for {len(names)} classes: {shown(names)}.")
    return list(class_names)


def _indices(
    split: str, label_column: str, column: pa.Array, names: Sequence[str], data: datasets.Dataset
) -> np.ndarray:
    if pa.types.is_integer(column.type):
        indices, known = np.asarray(column), np.asarray(column) < len(names)
    else:
        found = pc.index_in(column, value_set=pa.array(names, pa.string()))
        indices, known = np.asarray(pc.fill_null(found, -1)), np.asarray(found.is_valid())
    if not known.all():
        row = int(np.argmin(known))
        raise ValueError(
            f"{place(split, row, data)}: {brief(repr(str(column[row].as_py())))} of column {label_column!r} is not "
            f"one of the classes {shown(names)}."
        )
    return indices


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) != "Cf"  # such as a zero-width space


def _warn_of_lookalikes(names: Sequence[str]) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join("".join(filter(_is_seen, name)).split()).casefold(), []).append(name)
    if same := [group for group in alike.values() if len(group) > 1]:
        pairs = "; ".join(shown(group) for group in same[:3])
        logger.warning("Classes whose names differ only in spaces or capitals are different classes: %s.", pairs)


def _warn_of_untrained(indices: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
    training, *others = indices
    trained = set(np.unique(indices[training]).tolist())
    for split in others:
        found, counts = np.unique(indices[split], return_counts=True)
        unknown = [int(index) for index in found if int(index) not in trained]
        if unknown:
            count = int(counts[np.isin(found, unknown)].sum())
            logger.warning(
                "Split %r has %s of classes without training examples, which cannot be recognised: %s.",
                split,
                quantity(count, "example", "examples"),
                shown([names[index] for index in unknown]),
            )


def _with_labels(
    data: datasets.Dataset, label_column: str, indices: np.ndarray, feature: datasets.ClassLabel
) -> datasets.Dataset:
    # Only the label column is replaced: a cast would copy the other columns, too.
    whole = indices
    if data._indices is not None:  # rows of the table that are not selected get an arbitrary label
        whole = np.zeros(len(data.data), np.int64)
        whole[data._indices.column(0).to_numpy()] = indices
    table, info = InMemoryTable(pa.table({label_column: pa.array(whole, pa.int64())})), data.info.copy()
    if others := {name: kind for name, kind in data.features.items() if name != label_column}:
        table = concat_tables([data.data.remove_column(data.data.column_names.index(label_column)), table], axis=1)
    info.features = datasets.Features({**others, label_column: feature})
    named = datasets.Dataset(
        table,
        info=info,
        split=data.split,
        indices_table=data._indices,
        fingerprint=Hasher.hash([data._fingerprint, label_column, feature.names, whole]),
    )
    kept = data.format
    return named.with_format(
        kept["type"],
        columns=kept["columns"],
        output_all_columns=kept["output_all_columns"],
        **kept["format_kwargs"],
    )
