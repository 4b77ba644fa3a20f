"""CSV files. All cells are read as text: `001`, `true` and `NA` stay unchanged."""

from __future__ import annotations

import csv
import glob
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import datasets

from hf_sharp.data.text_files import SEPARATORS, as_separator, not_utf8, open_text
from hf_sharp.registry.words import brief, quoted

logger = logging.getLogger(__name__)

_LONGEST_TEXT = 2**31 - 1  # characters per cell; Python's default limit is 131,072, and pandas has no limit
_READABLE = (".csv", ".tsv", ".txt", ".gz")


def load_csv(files: Mapping[str, Sequence[str]], separator: str) -> datasets.DatasetDict:
    """Load CSV files.

    Args:
        files: split name to paths.
        separator: the column separator: one character, or `tab`.

    Returns:
        The splits; all columns are texts.

    Raises:
        ValueError: a file cannot be read, or the files have different columns.
    """
    separator = as_separator(separator)
    columns: dict[str, list[str]] = {}
    for file in (file for of_split in files.values() for file in of_split):
        if file.lower().endswith(_READABLE):
            columns[file] = column_names(file, separator)
    first = next(iter(columns), None)
    for file, names in columns.items():
        if set(names) != set(columns[str(first)]):
            raise ValueError(
                f"{file!r} has the columns {quoted(names)}, but {first!r} has {quoted(columns[str(first)])}; all "
                "files of a dataset need the same columns."
            )
    features = datasets.Features({name: datasets.Value("string") for name in columns[first]}) if first else None
    options: dict[str, Any] = {"sep": separator, "na_filter": False, "keep_default_na": False}
    options["quoting"] = quoting_of([*columns], separator)
    try:
        return datasets.load_dataset("csv", data_files=literal(files), features=features, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(_unreadable(files, error.__cause__ or error)) from error


def literal(files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Escape the names of files, because datasets would read brackets in them as a pattern."""
    return {split: [glob.escape(file) for file in of_split] for split, of_split in files.items()}


def quoting_of(files: Sequence[str], separator: str, errors: str = "strict") -> Literal[0, 3]:
    """Find out whether the quotes in CSV files enclose cells, or are ordinary characters.

    Args:
        files: the paths of the files.
        separator: the column separator, one character.
        errors: as for `column_names`.

    Returns:
        `csv.QUOTE_MINIMAL`; or `csv.QUOTE_NONE` for tab-separated files in which a quote is out of place, as in `"Hi"
        he said`, no cell is in quotes, and without quoting all rows are as wide as the header.

    Raises:
        ValueError: a quote is out of place in other files.
    """
    csv.field_size_limit(_LONGEST_TEXT)
    for file in files:
        if (fault := _quote_out_of_place(file, separator, errors)) is None:
            continue
        if separator != "\t" or not all(_has_plain_quotes(other, errors) for other in files):
            raise ValueError(
                f"{fault}. A text that begins with a quote needs quotes around it, with its own ones doubled: "
                '"""Hi"" he said".'
            )
        logger.warning("%s. Quotes are read as ordinary characters.", fault)
        return csv.QUOTE_NONE
    return csv.QUOTE_MINIMAL


def _quote_out_of_place(file: str, separator: str, errors: str) -> str | None:
    with open_text(file, errors) as text:
        reader = csv.reader(text, delimiter=separator, strict=True)
        try:
            for _ in reader:
                pass
        except (csv.Error, UnicodeError) as error:
            if isinstance(error, UnicodeError) or "NUL" in str(error):
                raise ValueError(_unreadable({"": [file]}, error)) from error
            return f"{file!r}, line {reader.line_num} cannot be read: {error}"
    return None


def _has_plain_quotes(file: str, errors: str) -> bool:
    with open_text(file, errors) as text:
        rows = filter(None, csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE))
        header = next(rows, [])
        in_quotes = (name[:1] == '"' for name in header)
        return not any(in_quotes) and all(len(row) == len(header) and not any(map(_is_quoted, row)) for row in rows)


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def column_names(file: str, separator: str, errors: str = "strict") -> list[str]:
    """Read the column names of a CSV file, as pandas would name them.

    Args:
        file: the path of the file.
        separator: the column separator, one character.
        errors: what to do with bytes that are not UTF-8, as for `open`.

    Returns:
        The column names.

    Raises:
        ValueError: the file has no rows, a different separator or encoding, or more cells in the first row than names.
    """
    # Checked before pandas reads the file: if rows are wider than the header, it uses the first column as an index.
    try:
        with open_text(file, errors) as text:
            rows = filter(None, reader := csv.reader(text, delimiter=separator))  # like pandas, skip empty lines
            csv.field_size_limit(_LONGEST_TEXT)
            header, first = next(rows, None), next(rows, None)
            if header and "\0" in "".join(header):
                raise csv.Error("NUL")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(_unreadable({"": [file]}, error)) from error
    if not header or not first:
        raise ValueError(f"{file!r} {'has a header but no rows' if header else 'is empty'}.")
    if header[0].lower().startswith("sep="):
        raise ValueError(f"remove the first line of {file!r}, {separator.join(header)!r}: only Excel reads it.")
    if len(header) == 1:
        for other, written in SEPARATORS.items():
            if other != separator and other in header[0]:
                raise ValueError(f"the columns of {file!r} are separated by {written}: add --separator {written}.")
    if len(first) > len(header):
        raise ValueError(
            f"{file!r}, line {reader.line_num}: {len(first)} cells, but the header has {len(header)}: "
            f"{brief(separator.join(header))!r}. Put texts with {separator!r} in quotes, and remove any line above the "
            "header."
        )
    seen: Counter[str] = Counter()
    names = []
    for i, name in enumerate(header):  # name empty and repeated columns as pandas does
        name = name or f"Unnamed: {i}"
        names.append(f"{name}.{seen[name]}" if seen[name] else name)
        seen[name] += 1
    if twice := [name for name, count in seen.items() if count > 1]:
        logger.warning("%r has several columns named %r: the first one is used.", file, twice[0])
    return names


def _unreadable(files: Mapping[str, Sequence[str]], error: BaseException) -> str:
    names = [file for of_split in files.values() for file in of_split]
    where = names[0] if len(names) == 1 else f"one of {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    if isinstance(error, UnicodeError) or "NUL" in str(error):
        return not_utf8(where)
    reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ").rstrip(".")
    return f"{where} cannot be read: {reason}. Texts with separators or line breaks need quotes, which must be closed."
