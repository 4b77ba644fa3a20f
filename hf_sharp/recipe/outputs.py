"""Writes predictions row by row, as CSV, JSON Lines or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from hf_sharp.registry.nearest import check_name

FORMATS = ("csv", "jsonl", "parquet")
KINDS = {"text": pa.string(), "number": pa.float64(), "flag": pa.bool_(), "texts": pa.list_(pa.string())}


class _Writer(Protocol):
    def write(self, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def close(self) -> None: ...


class PredictionFile:
    """A file of predictions, which gets its final name only when it is complete.

    Args:
        folder: the folder of `predictions.FORMAT`; None for standard output.
        file_format: csv, jsonl or parquet.
        columns: column name to kind: text, number, flag or texts.

    Raises:
        ValueError: the format is unknown, or Parquet is to be written to standard output.
    """

    def __init__(self, folder: Path | None, file_format: str, columns: Mapping[str, str]) -> None:
        check_name("format", file_format, FORMATS)
        if folder is None and file_format == "parquet":
            raise ValueError("Parquet cannot be written to standard output: add --output_dir.")
        self.path = None if folder is None else folder / f"predictions.{file_format}"
        self._part = None if self.path is None else self.path.with_name(f"{self.path.name}.part")
        self._format, self._columns = file_format, dict(columns)

    def __enter__(self) -> Self:
        """Open the file under a temporary name."""
        self._writer: _Writer
        if self._format == "parquet":
            self._writer = _Parquet(self._part, self._columns)
        else:
            file = sys.stdout if self._part is None else self._part.open("w", encoding="utf-8", newline="")
            self._writer = (_Csv if self._format == "csv" else _JsonLines)(file, self._columns)
        return self

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, mappings from column to value; None for a missing value."""
        self._writer.write(rows)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file, and rename it to its final name if no exception was raised."""
        self._writer.close()
        if error is None and self.path is not None and self._part is not None:
            self._part.replace(self.path)


class _Lines:
    def __init__(self, file: TextIO, columns: Mapping[str, str]) -> None:
        self.file, self.columns = file, columns

    def close(self) -> None:
        self.file.flush()
        if self.file is not sys.stdout:
            self.file.close()


class _Csv(_Lines):
    def __init__(self, file: TextIO, columns: Mapping[str, str]) -> None:
        super().__init__(file, columns)
        self.writer = csv.writer(file, lineterminator="\n")
        self.writer.writerow(columns)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self.writer.writerow([_cell(row.get(name)) for name in self.columns])


class _JsonLines(_Lines):
    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            cells = {name: row.get(name) for name in self.columns}
            self.file.write(json.dumps(cells, ensure_ascii=False) + "\n")


class _Parquet:
    def __init__(self, file: Path | None, columns: Mapping[str, str]) -> None:
        self.schema = pa.schema([(name, KINDS[kind]) for name, kind in columns.items()])
        self.writer = pq.ParquetWriter(str(file), self.schema)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = {name: [row.get(name) for row in rows] for name in self.schema.names}
        self.writer.write_table(pa.table(columns, schema=self.schema))

    def close(self) -> None:
        self.writer.close()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
