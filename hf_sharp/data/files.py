"""Tables and image folders on disk."""

from __future__ import annotations

import glob
import gzip
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import DatasetCard

from hf_sharp.data.csv_files import literal, load_csv
from hf_sharp.data.image_folders import (
    SPLITS,
    check_all_are_read,
    check_class_folders,
    no_class_folders,
    unread_tables,
    warn_of_unlisted,
)
from hf_sharp.registry.words import quoted

logger = logging.getLogger(__name__)

LOADERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_RULES = {  # which tables of a folder are read, without and with pictures
    False: "All tables need one format and, if one is named after a split, names of splits such as train.csv.",
    True: "Among pictures only metadata.csv is read, in each split's folder.",
}


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
        return load_csv({"train": [str(path)]}, separator or ("\t" if suffix == ".tsv" else ","))
    files = {"train": [str(path)]}
    if LOADERS[suffix] == "json":
        return _load_json(files, lambda: datasets.load_dataset("json", data_files=literal(files)))
    return datasets.load_dataset(LOADERS[suffix], data_files=literal(files))


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
    found = [Path(file) for of_split in files.values() for file in of_split]
    pictures = type(builder.config).__name__ == "ImageFolderConfig"
    if (unread := unread_tables(path, found)) and not _has_configs(path):
        logger.warning("Not read in %r: %s. %s", str(path), quoted(unread), _RULES[pictures])
    if isinstance(getattr(builder.config, "sep", None), str):
        return load_csv(files, separator or builder.config.sep)
    if type(builder.config).__name__ == "JsonConfig":
        return _load_json(files, lambda: datasets.load_dataset(name))
    return _load_images(path, name, files, separator) if pictures else datasets.load_dataset(name)


def _load_images(
    path: Path, name: str, files: Mapping[str, Sequence[str]], separator: str | None
) -> datasets.DatasetDict:
    found = [Path(file) for of_split in files.values() for file in of_split]
    has_metadata = any(file.name in ImageFolder.METADATA_FILENAMES for file in found)
    if not _has_configs(path):
        check_all_are_read(path, found)
        if not has_metadata:
            check_class_folders(path, found)
    metadata = {split: [f for f in of_split if Path(f).name == "metadata.csv"] for split, of_split in files.items()}
    if any(metadata.values()):
        loaded = datasets.DatasetDict(
            {split: _images_with_metadata(of_split, separator) for split, of_split in metadata.items() if of_split}
        )
    else:
        loaded = datasets.load_dataset(name)
    if has_metadata:
        warn_of_unlisted(path, found, loaded)
    elif next(iter(loaded.values())).column_names == ["image"]:
        raise ValueError(no_class_folders(path, found))
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
    times = Counter(file for of_split in files.values() for file in of_split)
    if file := next((file for file, count in times.items() if count > 1), None):
        raise ValueError(
            f"{file!r} would be read twice, because several names in its path look like names of splits (train, test, "
            "validation, …). Rename the file or folder that is not a split."
        )
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
            f"{quoted(capitals)} in {str(path)!r} would not be read as splits, because of capital letters. Rename: "
            f"{', '.join(f'{name} to {name.lower()}' for name in capitals)}."
        )


def _split_of(name: str) -> str | None:
    return SPLITS.get(re.split("[^a-z]", name.lower())[0])


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


def _images_with_metadata(files: Sequence[str], separator: str | None) -> datasets.Dataset:
    tables = []
    for file in files:
        table = load_csv({"train": [file]}, separator or ",")["train"]
        if "file_name" not in table.column_names:
            raise ValueError(f"{file!r} needs a column file_name; it has the columns {quoted(table.column_names)}.")
        images = [str(Path(file).parent / name) for name in table["file_name"]]
        tables.append(table.remove_columns("file_name").add_column("image", images))
    return datasets.concatenate_datasets(tables).cast_column("image", datasets.Image())
