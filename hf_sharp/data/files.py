"""Tables and image folders on disk. All cells of CSV files are read as text: `001`, `true` and `NA` stay unchanged."""

from __future__ import annotations

import csv
import glob
import gzip
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
from huggingface_hub import DatasetCard

from hf_sharp.data.image_folders import SPLITS, check_all_are_read, no_class_folders
from hf_sharp.data.text_files import SEPARATORS, not_utf8, open_text

logger = logging.getLogger(__name__)

LOADERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_LONGEST_TEXT = 2**31 - 1  # characters per cell; Python's default limit is 131,072, and pandas has no limit
_READABLE = (".csv", ".tsv", ".txt", ".gz")


def load_file(path: Path, separator: str | None = None) -> datasets.DatasetDict:
    """Load one CSV, TSV, JSON or Parquet file as the split `train`.

    Args:
        path: the file; its extension, in lower or upper case, gives the format. It may be compressed: .csv.gz.
        separator: the column separator of a CSV file; None for a comma, or a tab in a TSV file.

    Returns:
        The split.

    Raises:
        ValueError: the format is not supported, or the table cannot be read.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in LOADERS:
        raise ValueError(f"cannot read {str(path)!r}: expected one of {', '.join(LOADERS)}. Save it in such a format.")
    if LOADERS[suffix] == "csv":
        return _load_csv({"train": [str(path)]}, separator or ("\t" if suffix == ".tsv" else ","))
    files = {"train": [str(path)]}
    if LOADERS[suffix] == "json":
        return _load_json(files, lambda: datasets.load_dataset("json", data_files=_literal(files)))
    return datasets.load_dataset(LOADERS[suffix], data_files=_literal(files))


def _literal(files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    # datasets would read brackets in a name as a pattern.
    return {split: [glob.escape(file) for file in of_split] for split, of_split in files.items()}


def load_folder(path: Path, separator: str | None = None) -> datasets.DatasetDict:
    """Load a folder of CSV, JSON or Parquet files, or of images in one folder per class.

    Args:
        path: the folder; files and folders named train, validation or test are splits.
        separator: as for `load_file`.

    Returns:
        The splits by name.

    Raises:
        ValueError: a table cannot be read, or the images are not in one folder per class.
    """
    name, builder, files = _opened(path)
    if isinstance(getattr(builder.config, "sep", None), str):
        return _load_csv(files, separator or builder.config.sep)
    if type(builder.config).__name__ == "JsonConfig":
        return _load_json(files, lambda: datasets.load_dataset(name))
    if type(builder.config).__name__ != "ImageFolderConfig":
        return datasets.load_dataset(name)
    if not _has_configs(path):
        check_all_are_read(path, [Path(file) for of_split in files.values() for file in of_split])
    loaded = datasets.load_dataset(name)
    metadata = {split: [f for f in of_split if Path(f).name == "metadata.csv"] for split, of_split in files.items()}
    if any(metadata.values()):
        return datasets.DatasetDict(
            {split: _images_with_metadata(of_split) for split, of_split in metadata.items() if of_split}
        )
    if next(iter(loaded.values())).column_names == ["image"]:
        raise ValueError(no_class_folders(path, [Path(file) for of_split in files.values() for file in of_split]))
    return loaded


def split_files(path: Path) -> dict[str, list[str]]:
    """List the files of each split in a folder, as datasets finds them.

    Args:
        path: the folder; without names of splits, all its files are the split `train`.

    Returns:
        Split name to absolute paths.

    Raises:
        ValueError: the folder's name is a pattern, or a split's name has capital letters.
    """
    return _opened(path)[2]


def _opened(path: Path) -> tuple[str, Any, dict[str, list[str]]]:
    if glob.has_magic(str(path.absolute())):
        raise ValueError(
            f"datasets reads brackets, * and ? in {str(path.absolute())!r} as a pattern. Rename the folder."
        )
    name = str(path) if path.is_absolute() else f"./{path}"  # "csv" would name the loader
    builder = datasets.load_dataset_builder(name)
    files = {str(split): [str(file) for file in files] for split, files in (builder.config.data_files or {}).items()}
    _refuse_capitals(path)
    return name, builder, files


def _has_configs(path: Path) -> bool:
    # A dataset card that names the files of each split, as in a copy of a repository of the Hub.
    card = path / "README.md"
    return card.is_file() and bool(DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs"))


def _refuse_capitals(path: Path) -> None:
    # datasets does not recognize Train and TEST as splits: it would merge them, or leave one out.
    entries = [entry.name for entry in path.iterdir() if _split_of(entry.name)]
    capitals = sorted(name for name in entries if name != name.lower())
    if capitals and len(set(map(_split_of, entries))) > 1:
        raise ValueError(
            f"{_quoted(capitals)} in {str(path)!r} would not be read as splits, because of capital letters. Rename: "
            f"{', '.join(f'{name} to {name.lower()}' for name in capitals)}."
        )


def _split_of(name: str) -> str | None:
    return SPLITS.get(re.split("[^a-z]", name.lower())[0])


def _load_csv(files: Mapping[str, Sequence[str]], separator: str) -> datasets.DatasetDict:
    separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator)
    if len(separator) != 1:
        raise ValueError(f"the separator of columns is one character, got {separator!r}.")
    columns: dict[str, list[str]] = {}
    for file in (file for of_split in files.values() for file in of_split):
        if file.lower().endswith(_READABLE):
            columns[file] = column_names(file, separator)
    first = next(iter(columns), None)
    for file, names in columns.items():
        if set(names) != set(columns[str(first)]):
            raise ValueError(
                f"{file!r} has the columns {_quoted(names)}, but {first!r} has {_quoted(columns[str(first)])}; all "
                "files of a dataset need the same columns."
            )
    features = datasets.Features({name: datasets.Value("string") for name in columns[first]}) if first else None
    options: dict[str, Any] = {"sep": separator, "na_filter": False, "keep_default_na": False}
    options["quoting"] = quoting_of([*columns], separator)
    try:
        return datasets.load_dataset("csv", data_files=_literal(files), features=features, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(_unreadable(files, error.__cause__ or error)) from error


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
        quoted = (name[:1] == '"' for name in header)
        return not any(quoted) and all(len(row) == len(header) and not any(map(_is_quoted, row)) for row in rows)


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
    if len(header) == 1 and separator not in SEPARATORS:
        for other, written in SEPARATORS.items():
            if other in header[0]:
                raise ValueError(f"the columns of {file!r} are separated by {written}: add --separator {written}.")
    if len(first) > len(header):
        raise ValueError(
            f"{file!r}, line {reader.line_num}: {len(first)} cells, but the header has {len(header)}. Put texts with "
            f"{separator!r} in quotes."
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


def _load_json(files: Mapping[str, Sequence[str]], load: Callable[[], datasets.DatasetDict]) -> datasets.DatasetDict:
    try:
        loaded = load()
        for split, data in loaded.items():
            if len(data) == 1 and all(isinstance(kind, dict) for kind in data.features.values()):
                raise ValueError(
                    f"{files[str(split)][0]!r} holds one row of mappings, as pandas writes tables by default. Save it "
                    "with to_json(path, orient='records', lines=True)."
                )
        return _with_dates_as_written(loaded, files)
    except (datasets.exceptions.DatasetGenerationError, ValueError):  # older versions raise the JSON reader's error
        for file in (file for of_split in files.values() for file in of_split):
            _json_rows(Path(file))  # its error names the line of the file; Arrow's counts from the start of a block
        raise


def _with_dates_as_written(loaded: datasets.DatasetDict, files: Mapping[str, Sequence[str]]) -> datasets.DatasetDict:
    # Arrow parses a JSON string that looks like a date as a timestamp.
    for split, data in loaded.items():
        dates = [
            name for name, kind in data.features.items() if str(getattr(kind, "dtype", "")).startswith("timestamp")
        ]
        if dates:
            rows = [row for file in files[str(split)] for row in _json_rows(Path(file))]
            for name in dates:
                data = data.remove_columns(name).add_column(name, [row.get(name) for row in rows])
            loaded[split] = data
    return loaded


def _json_rows(file: Path) -> list[dict[str, Any]]:
    opened: Any = gzip.open if file.name.lower().endswith(".gz") else open
    with opened(file, "rt", encoding="utf-8") as lines:
        text = lines.read()
    whole = text.lstrip().startswith("[") or _is_json(text)
    rows: list[dict[str, Any]] = []
    for number, part in enumerate([text] if whole else text.split("\n")):  # other separators may be in texts
        try:
            found = json.loads(part) if part.strip() else []
        except json.JSONDecodeError as error:
            place = f"{str(file)!r}, line {number + error.lineno}"
            reason = f"{error.msg.removesuffix(' at')} at character {error.colno}"
            raise ValueError(f"{place}: {reason}. Correct or remove the line.") from error
        rows += found if isinstance(found, list) else [found]
    return rows


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _images_with_metadata(files: Sequence[str]) -> datasets.Dataset:
    tables = []
    for file in files:
        table = _load_csv({"train": [file]}, ",")["train"]
        if "file_name" not in table.column_names:
            raise ValueError(f"{file!r} needs a column file_name; it has the columns {_quoted(table.column_names)}.")
        images = [str(Path(file).parent / name) for name in table["file_name"]]
        tables.append(table.remove_columns("file_name").add_column("image", images))
    return datasets.concatenate_datasets(tables).cast_column("image", datasets.Image())


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
