"""Messages about a column that does not exist: which columns do, and which one may be meant."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hf_sharp.registry.nearest import nearest
from hf_sharp.registry.words import quoted

_WORDS = 4  # a column name with this many words is probably a cell of a missing header line


def other_columns(wanted: str, columns: Sequence[str], option: str) -> str:
    """List the columns that exist, and say what to do about one that does not.

    Args:
        wanted: the column that does not exist, or has the wrong type.
        columns: the columns that exist.
        option: the option that names the column: a flag such as --label_column, or an argument.

    Returns:
        The end of a message: two sentences.

    Example:
        >>> other_columns("label", ["Text", "Label"], "--label_column")
        "the columns are 'Text', 'Label'. Did you mean --label_column Label?"
        >>> other_columns("label", ["where is my parcel", "late"], "--label_column").partition(". ")[2]
        'If these are cells of the first row, the header line is missing: write names such as text,label above it.'
    """
    listed = f"the columns are {quoted(columns)}."
    near = nearest(wanted, [column for column in columns if column != wanted])
    cells = any(len(column.split()) >= _WORDS for column in columns)
    if near and (not cells or near.casefold() == wanted.casefold()):
        return f"{listed} Did you mean {option}{f' {shlex.quote(near)}' if option.startswith('--') else f'={near!r}'}?"
    if cells:
        return (
            f"{listed} If these are cells of the first row, the header line is missing: write names such as text,label "
            "above it."
        )
    return f"{listed} Name the right one with {option}."
