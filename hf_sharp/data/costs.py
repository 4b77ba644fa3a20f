"""The costs of mistakes: a K × K matrix from numbers, class names or a CSV file. Works without torch."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_sharp.data.class_names import indices_of_classes
from hf_sharp.data.text_files import SEPARATORS, not_utf8, open_text
from hf_sharp.registry.arrays import as_array, holds_bool
from hf_sharp.registry.json_text import parse_json

_TABLES = (".csv", ".tsv")
_FORMS = (
    'Expected a CSV file with a row per true class and a column per predicted class, or JSON such as {"fraud": 5} '
    '(a mistake on fraud costs 5, others 1) or {"fraud": {"ham": 10}} (fraud predicted as ham costs 10).'
)


def read_costs(costs: Any, names: Sequence[str], what: str = "cost_matrix") -> np.ndarray:
    """Read the costs of predicting one class for an example of another.

    Args:
        costs: one of: K lists of K numbers, one list per true class; K numbers, the cost of any mistake on each true
            class; a mapping from true class to such a number, or to a mapping from predicted class to cost; a pandas
            DataFrame or Series, read as such a mapping; JSON text of one of these; or the path of a CSV file. Mistakes
            that a mapping does not name cost 1, and correct predictions 0. A CSV file has the predicted classes in its
            header and the true class in the first cell of each row; or two columns, a class and its cost.
        names: K class names, in the order of the class indices.
        what: the name of the option, for error messages.

    Returns:
        (K, K) float64, a row per true class and a column per predicted class.

    Raises:
        ValueError: the file cannot be read, a class is unknown or missing, or the costs are not finite numbers >= 0
            with at least one above 0.

    Example:
        >>> read_costs({"fraud": 5}, ["ham", "spam", "fraud"])
        array([[0., 1., 1.],
               [1., 0., 1.],
               [5., 5., 0.]])
    """
    names = [str(name) for name in names]
    if isinstance(costs, (str, Path)):
        file = Path(costs)
        if file.suffix.lower() in _TABLES:
            return _checked(_from_table(file, names, what), names, what)
        try:
            costs = parse_json(str(costs), what)
        except json.JSONDecodeError as error:
            raise ValueError(f"{what}: {str(costs)!r} is neither a CSV file nor JSON ({error}). {_FORMS}") from error
    if hasattr(costs, "to_dict"):  # a DataFrame or Series: its labels count, not the order of its rows
        costs = costs.T.to_dict()
    if isinstance(costs, Mapping):
        return _checked(_from_names(costs, names, what), names, what)
    try:
        if holds_bool(costs):
            raise TypeError("a truth value is no number")
        given = as_array(costs, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {costs!r} are not numbers. {_FORMS}") from error
    return _checked(_of_true_class(given) if given.shape == (len(names),) else given, names, what)


def _of_true_class(costs: np.ndarray) -> np.ndarray:
    return costs[:, None] * (1 - np.eye(len(costs)))


def _from_names(costs: Mapping[Any, Any], names: Sequence[str], what: str) -> np.ndarray:
    matrix = _of_true_class(np.ones(len(names)))
    for row, (true, value) in zip(indices_of_classes(costs, names, what), costs.items(), strict=True):
        if isinstance(value, Mapping):
            for column, (predicted, cost) in zip(indices_of_classes(value, names, what), value.items(), strict=True):
                matrix[row, column] = _number(cost, f"{what}: {true!r}, {predicted!r}")
        else:
            matrix[row] = _number(value, f"{what}: {true!r}")
            matrix[row, row] = 0
    return matrix


def _from_table(file: Path, names: Sequence[str], what: str) -> np.ndarray:
    rows, separator = _cells(file, what)
    if len(rows) < 2:
        raise ValueError(f"{what}: {str(file)!r} has no rows. {_FORMS}")
    width = len(rows[0])
    if width < 2:
        raise ValueError(f"{what}: {str(file)!r} has only one column, {rows[0][0]!r}. {_FORMS}")
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise ValueError(f"{what}: {str(file)!r}, row {number}: {len(row)} cells, the header has {width}. {_FORMS}")
    if width == 2 and _is_number(rows[0][1]):
        raise ValueError(
            f"{what}: the first line of {str(file)!r}, {separator.join(rows[0])!r}, must be a header, such as "
            "class,cost. Add one above it."
        )
    where = f"{what}: {str(file)!r}"
    of_rows = indices_of_classes((row[0] for row in rows[1:]), names, where)
    if width == 2:
        return _from_names({row[0]: row[1] for row in rows[1:]}, names, where)
    columns = indices_of_classes(rows[0][1:], names, where)
    matrix = np.full((len(names), len(names)), np.nan)
    for true, row in zip(of_rows, rows[1:], strict=True):
        for column, cell in zip(columns, row[1:], strict=True):
            matrix[true, column] = _number(cell, f"{where}: row {row[0]!r}, column {names[column]!r}")
    for i, kind in ((0, "row"), (1, "column")):
        missing = [names[c] for c in np.flatnonzero(np.isnan(matrix).all(axis=1 - i)).tolist()]
        if missing:
            raise ValueError(f"{where} has no {kind} for the class {missing[0]!r}; it needs one for each class.")
    return matrix


def _cells(file: Path, what: str) -> tuple[list[list[str]], str]:
    # The rows that are not empty, and the separator of columns: a comma, unless the header then has one cell only.
    try:
        with open_text(str(file)) as opened:
            text = opened.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what}: {not_utf8(repr(str(file)))}") from error
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise ValueError(f"{what}: {str(file)!r} {reason}. {_FORMS}") from error
    if "\0" in text:  # UTF-16 without a mark
        raise ValueError(f"{what}: {not_utf8(repr(str(file)))}")
    rows: list[list[str]] = []
    for separator in ("\t" if file.suffix.lower() == ".tsv" else ",", *SEPARATORS):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        rows = [row for row in reader if any(cell.strip() for cell in row)]
        if not rows or len(rows[0]) > 1:
            return rows, separator
    return rows, ","


def _number(value: Any, where: str) -> float:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError("a truth value is no number")
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {value!r} is not a number. Expected a cost, a finite number >= 0.") from error


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _checked(matrix: np.ndarray, names: Sequence[str], what: str) -> np.ndarray:
    if matrix.shape != (square := (len(names), len(names))):
        raise ValueError(f"{what} must be {square}, one row per true class; got {matrix.shape}. {_FORMS}")
    bad = np.argwhere(~(np.isfinite(matrix) & (matrix >= 0)))
    if len(bad):
        true, predicted = bad[0]
        raise ValueError(
            f"{what}: predicting {names[predicted]!r} for {names[true]!r} costs {matrix[true, predicted]:g}; expected "
            "finite numbers >= 0."
        )
    if not matrix.any():
        raise ValueError(f"{what}: every cost is 0, so that no prediction is better than another. {_FORMS}")
    return matrix
