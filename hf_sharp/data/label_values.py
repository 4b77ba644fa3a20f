"""Interprets the cells of a label column as names, whole numbers, or missing labels."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_sharp.data.class_names import composed, shown
from hf_sharp.data.labels import IGNORED_LABEL, arrow_column
from hf_sharp.registry.words import brief

_INTEGER = re.compile(r"0|-?[1-9]\d*")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)\.\d+|0|-?[1-9]\d*")
_LONGEST = 18  # digits that fit into 64 bits


def label_values(
    data: datasets.Dataset, label_column: str, split: str, class_names: Sequence[str] | None = None
) -> pa.Array:
    """Read the labels as names or integers, with null for a row without a label.

    Args:
        data: the split.
        label_column: the column with one label per example.
        split: the name of the split, for error messages.
        class_names: K names; labels that are all among them are kept as written.

    Returns:
        (N,) Arrow strings, with accents as `composed` normalizes them; or int64 if every label, also one written as
        text, is a whole number of at most 18 digits. As in transformers, the label -100 means no label.

    Raises:
        ValueError: there are several labels per example, or a class index is out of range.
    """
    column = _as_meant(data, label_column, split, class_names)
    if pa.types.is_integer(column.type):
        column = pc.if_else(pc.equal(column, IGNORED_LABEL), None, column)
    return column


def _as_meant(
    data: datasets.Dataset, label_column: str, split: str, class_names: Sequence[str] | None = None
) -> pa.Array:
    column = arrow_column(data, label_column)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise ValueError(
            f"split {split!r}: column {label_column!r} holds {brief(column.type)}; expected one class index or class "
            "name per example. Multi-label and token classification are not supported."
        )
    feature = data.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        column = pc.if_else(pc.less(column, 0), None, column)  # -1: unlabelled, on the Hub
        if (pc.max(column).as_py() or 0) >= feature.num_classes:
            row = int(np.argmax(np.asarray(pc.fill_null(column, 0)) >= feature.num_classes))
            raise ValueError(
                f"{place(split, row, data)}: label {column[row]} of column {label_column!r} is not an index of the "
                f"{feature.num_classes} classes {shown(feature.names)}."
            )
        return pa.array(map(composed, feature.names), pa.string()).take(column)
    if pa.types.is_integer(column.type):
        return column.cast(pa.string() if _is_too_long(pc.max(column)) else pa.int64())
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        return _whole(column.cast(pa.float64()))
    column = column.cast(pa.string())  # text; true and false; dates
    if type(feature).__name__ == "Json":  # a JSON file with labels of several types
        column = pa.array([None if cell is None else _written(json.loads(cell)) for cell in column.to_pylist()])
    column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), None, column)
    distinct = [name for name in pc.unique(column).to_pylist() if name is not None]
    if any(name != composed(name) for name in distinct):
        column = pa.array([name and composed(name) for name in column.to_pylist()], pa.string())
    if not distinct or set(distinct) <= set(class_names or ()):
        return column
    if all(_INTEGER.fullmatch(name) for name in distinct):
        return column if max(map(len, distinct)) > _LONGEST else column.cast(pa.int64())
    return _whole(column.cast(pa.float64()), column) if all(map(_NUMBER.fullmatch, distinct)) else column


def refuse_fractions(
    split: str, label_column: str, column: pa.Array, class_names: Sequence[str] | None, data: datasets.Dataset
) -> None:
    """Raise a ValueError if labels are fractions, unless `class_names` contains them.

    Args:
        split: the name of the split.
        label_column: the column with the labels.
        column: the labels, as `label_values` returns them.
        class_names: K names, or None.
        data: the rows of the split.
    """
    if not pa.types.is_string(column.type):
        return
    distinct = [name for name in pc.unique(column).to_pylist() if name is not None]
    if set(distinct) <= set(class_names or ()) or not all(map(_NUMBER.fullmatch, distinct)):
        return
    fractions = [name for name in distinct if float(name) != int(float(name))]
    if fractions:
        row = column.to_pylist().index(fractions[0])
        raise ValueError(
            f"{place(split, row, data)}: column {label_column!r} holds {fractions[0]}, not a class: regression targets "
            f"are not supported. If such numbers are names of classes, list them all: --class_names {fractions[0]} ..."
        )


def place(split: str, row: int, data: datasets.Dataset) -> str:
    """Describe a row by split and number, counted from 1 and without the header of a CSV file."""
    return f"split {split!r}, row {row + 1}{' (without the header)' if data.info.builder_name == 'csv' else ''}"


def _is_too_long(value: pa.Scalar) -> bool:
    return value.is_valid and value.as_py() > np.iinfo(np.int64).max


def _written(value: object) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value)


def _whole(numbers: pa.Array, written: pa.Array | None = None) -> pa.Array:
    # Converts whole numbers to integers; if there are fractions, every number is kept as written.
    numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
    largest = pc.max(pc.abs(numbers)).as_py() or 0
    if largest < 10**_LONGEST and pc.all(pc.equal(numbers, pc.floor(numbers))).as_py() is not False:
        return numbers.cast(pa.int64())
    return numbers.cast(pa.string()) if written is None else written
