"""The inputs of predictions: rows with a text or an image, read one at a time and in order, each with its error."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import datasets

from hf_sharp.data.columns import other_columns
from hf_sharp.data.csv_files import column_names, quoting_of
from hf_sharp.data.image_folders import picture_suffixes
from hf_sharp.data.labels import holds_text
from hf_sharp.data.loading import EMBEDDED, load, no_split
from hf_sharp.data.local_names import near_here, refuse_model
from hf_sharp.data.text_files import as_separator
from hf_sharp.data.unlabelled import STDIN, pictures_of, refuse_split
from hf_sharp.recipe.boundary import stage
from hf_sharp.registry.words import quantity

_LINES = (".txt", ".text")
_CHUNK = 64  # the number of dataset rows to read at a time


class Row(NamedTuple):
    """One example to predict.

    Attributes:
        name: the file of an image, or the row number, counted from 1 without the header.
        value: a text, or an image as a mapping with `bytes` or `path`; None if there is a fault.
        kept: the cells of the columns to keep, as strings.
        fault: what is wrong with the row, or None.
    """

    name: str
    value: Any
    kept: list[str]
    fault: str | None = None


@dataclass(frozen=True)
class Inputs:
    """The rows of a source, and their number, if it is known before they are read."""

    rows: Iterable[Row]
    total: int | None = None


@dataclass(frozen=True)
class Source:
    """The source of rows, and the columns to read if it is a table.

    Args:
        name: a folder of images, an image, a table (CSV, TSV, JSON, JSON Lines, Parquet), a text file with a text or an
            image path on each line, `-` for such lines from standard input, or anything that
            `hf_sharp.data.loading.load` takes.
        images: whether the rows are images; otherwise they are texts.
        column: the column with the images or texts.
        keep: the columns whose cells are kept.
        split: the split to read, if the dataset has several.
        config: the configuration of a dataset on the Hub.
        separator: the column separator of CSV files.
    """

    name: str
    images: bool
    column: str
    keep: Sequence[str] = ()
    split: str | None = None
    config: str | None = None
    separator: str | None = None

    def open(self) -> Inputs:
        """Open the source.

        Returns:
            The rows; a row that cannot be read has a fault.

        Raises:
            ValueError: there is no such source, split or column, or there are no rows.
        """
        refuse_model(self.name)
        path = Path(self.name).expanduser()
        suffix = path.suffix.lower()
        refuse_split(self.name, self.split, "--split")
        if self.name == STDIN or (path.is_file() and suffix in _LINES):
            return self._of_lines(path)
        if self.images and self.name not in EMBEDDED and (pictures := self._pictures(path)):
            self._keeps_nothing("pictures without a table")
            rows = (Row(name, {"path": str(file), "bytes": None}, []) for name, file in pictures)
            return Inputs(rows, len(pictures))
        if path.is_file() and suffix in (".csv", ".tsv"):
            separator = self.separator or ("\t" if suffix == ".tsv" else ",")
            return self._of_csv(path, as_separator(separator))
        if path.is_file() and suffix == ".jsonl":
            return self._of_json_lines(path)
        return self._loaded()

    def _loaded(self) -> Inputs:
        with stage(f"the data {self.name!r} cannot be loaded", near_here(self.name).strip()):
            loaded = load(self.name, self.config, self.separator)
        return self._of_dataset(loaded)

    def _pictures(self, path: Path) -> list[tuple[str, Path]]:
        """List a single image, or the images in a folder and its subfolders, sorted by name."""
        if path.is_file():
            return [(_in_utf8(path.name), path)] if path.suffix.lower() in picture_suffixes() else []
        with stage(f"the pictures in {self.name!r} cannot be listed"):
            files = pictures_of(path, self.split, "--split") if path.is_dir() else []
        return [(_in_utf8(file.relative_to(path).as_posix()), file) for file in files]

    def _keeps_nothing(self, what: str) -> None:
        if self.keep:
            raise ValueError(f"--keep {self.keep[0]!r}: {what} have no columns to keep.")

    def _check_columns(self, columns: Sequence[str]) -> None:
        flag = "--image_column" if self.images else "--text_column"
        for column, option in ((self.column, flag), *((name, "--keep") for name in self.keep)):
            if column not in columns:
                raise ValueError(f"{self.name!r} has no column {column!r}; {other_columns(column, columns, option)}")

    def _row(self, number: int, cells: Mapping[str, Any], folder: Path) -> Row:
        """Make a row from the cells of a table."""
        name, kept, value = str(number), [_as_text(cells[column]) for column in self.keep], cells[self.column]
        if self.images:
            if isinstance(value, str) and value.strip():
                value = {"path": str(folder / value.strip()), "bytes": None}
            return Row(name, value or None, kept, None if value else "there is no picture")
        if isinstance(value, (list, dict)):
            return Row(name, None, kept, f"the text is a {type(value).__name__}")
        text = "" if value is None else str(value)
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            return Row(name, None, kept, "the text is not UTF-8")
        return Row(name, text, kept) if text.strip() else Row(name, None, kept, "the text is empty")

    def _of_lines(self, path: Path) -> Inputs:
        self._keeps_nothing("lines")
        column = {self.column: None}
        if self.name == STDIN:
            if isinstance(sys.stdin, TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
            lines: Iterable[str] = sys.stdin
            folder, total = Path(), None
        else:
            with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                lines = list(file)
            folder, total = path.parent, len(lines)
        rows = (self._row(n, column | {self.column: line.rstrip("\n")}, folder) for n, line in enumerate(lines, 1))
        return Inputs(rows, total)

    def _of_csv(self, path: Path, separator: str) -> Inputs:
        columns = column_names(str(path), separator, errors="surrogateescape")
        try:
            quoting = quoting_of([str(path)], separator, errors="surrogateescape")
        except ValueError:  # the faults of rows are reported when they are read
            quoting = 0  # csv.QUOTE_MINIMAL
        self._check_columns(columns)

        def make(number: int, cells: list[str] | csv.Error) -> Row:
            if isinstance(cells, csv.Error):
                raise cells
            if len(cells) != len(columns):
                raise ValueError(f"{quantity(len(cells), 'cell', 'cells')}, but the header has {len(columns)}")
            return self._row(number, dict(zip(columns, cells, strict=True)), path.parent)

        def read() -> Iterator[list[str] | csv.Error]:
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
                reader = csv.reader(file, delimiter=separator, strict=True, quoting=quoting)
                next(filter(None, reader))  # the header may follow empty lines
                for cells in _each(reader):
                    if cells or len(columns) == 1:  # otherwise an empty line is not a row
                        yield cells or [""]

        return Inputs(self._sound(read(), make), sum(1 for _ in read()))

    def _of_json_lines(self, path: Path) -> Inputs:
        def read() -> Iterator[str]:
            with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
                yield from filter(str.strip, file)

        def make(number: int, line: str) -> Row:
            cells = json.loads(line)
            if not isinstance(cells, dict) or self.column not in cells:
                raise ValueError(f"there is no {self.column!r}")
            return self._row(number, dict.fromkeys(self.keep) | cells, path.parent)

        first = next(read(), None)
        if first is None:
            raise ValueError(f"{self.name!r} is empty.")
        try:
            found = json.loads(first)
        except ValueError:
            found = None
        if isinstance(found, list):  # one array, in spite of the file's name
            return self._loaded()
        if isinstance(found, dict):  # otherwise the row's fault is reported when it is read
            self._check_columns(list(found))
        return Inputs(self._sound(read(), make), sum(1 for _ in read()))

    def _sound(self, rows: Iterable[Any], make: Callable[[int, Any], Row]) -> Iterator[Row]:
        """Make rows; one that raises an error becomes a row with a fault."""
        for number, cells in enumerate(rows, 1):
            try:
                yield make(number, cells)
            except (ValueError, csv.Error) as error:
                fault = f"not JSON: {error}" if isinstance(error, json.JSONDecodeError) else str(error)
                yield Row(str(number), None, ["" for _ in self.keep], fault)

    def _of_dataset(self, splits: datasets.DatasetDict) -> Inputs:
        if self.split is None and len(splits) > 1:
            raise ValueError(
                f"{self.name!r} has the splits {', '.join(map(repr, splits))}. Name one with --split, or a file."
            )
        split = next(iter(splits)) if self.split is None else self.split
        if split not in splits:
            raise ValueError(f"{no_split(split, splits)} Name one of them with --split.")
        data = splits[split]
        self._check_columns(data.column_names)
        data = data.select_columns(list(dict.fromkeys([self.column, *self.keep]))).with_format(None)
        kind = data.features[self.column]
        if isinstance(kind, datasets.Image):
            data = data.cast_column(self.column, datasets.Image(decode=False))
        fits = self.images and isinstance(kind, datasets.Image)
        if not fits and not holds_text(data.data.schema.field(self.column).type):
            wanted = "pictures" if self.images else "texts"
            raise ValueError(f"the model takes {wanted}, but column {self.column!r} of {self.name!r} has none.")
        path = Path(self.name).expanduser()
        folder = path.parent if path.is_file() else path if path.is_dir() else Path()

        def read() -> Iterator[Row]:
            for start in range(0, len(data), _CHUNK):
                chunk = data[start : start + _CHUNK]
                for i in range(len(chunk[self.column])):
                    yield self._row(start + i + 1, {name: cells[i] for name, cells in chunk.items()}, folder)

        return Inputs(read(), len(data))


def _each(reader: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    """Yield the rows of a CSV file; for a row that cannot be parsed, yield the error."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return _in_utf8(value or "")
    return json.dumps(value, ensure_ascii=False, default=str)


def _in_utf8(text: str) -> str:
    # Bytes that are not UTF-8 as \\xe9, so that the text can be written.
    return text.encode("utf-8", "backslashreplace").decode()
