"""Loads data without labels: images in any folder, a text file, a table, or a dataset."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
from PIL import Image

from hf_sharp.data.idx import is_idx_folder
from hf_sharp.data.loading import load, no_split


def load_unlabelled(
    name: str, column: str, config: str | None = None, separator: str | None = None, split: str | None = None
) -> datasets.Dataset:
    """Load the images or texts of a dataset, and drop labels if there are any.

    Args:
        name: a folder with images, possibly in subfolders; a text file (`.txt`) with one text per line; or anything
            that `load` takes.
        column: the column with the images or texts.
        config: the configuration of a dataset on the Hub.
        separator: the column separator of CSV files; None for a comma, or a tab in TSV files.
        split: the split to load, if the dataset has several.

    Returns:
        The rows, with only that column. The files of a folder are sorted by name.

    Raises:
        ValueError: the data, the column or the split does not exist, or there are several splits and none is named.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".txt":
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return _column(datasets.Dataset.from_dict({"text": [line for line in lines if line]}), column, name)
    if path.is_dir() and not _is_dataset(path) and (files := picture_files(path)):
        rows = datasets.Dataset.from_dict({"image": [str(file) for file in files]})
        return _column(rows.cast_column("image", datasets.Image()), column, name)
    splits = load(name, config, separator)
    if split is None and len(splits) > 1:
        raise ValueError(f"{name!r} has the splits {', '.join(map(repr, splits))}. Choose one with --new_split.")
    chosen = split or next(iter(splits))
    if chosen not in splits:
        raise ValueError(f"{name!r}: {no_split(chosen, splits)} Choose with --new_split.")
    return _column(splits[chosen], column, name)


def _is_dataset(folder: Path) -> bool:
    return is_idx_folder(folder) or (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def picture_files(folder: Path) -> list[Path]:
    """List all images in a folder and its subfolders by name, except hidden files and files that macOS adds."""
    found = (Path(above, file) for above, _, files in os.walk(folder) for file in files)
    pictures = (file for file in found if file.suffix.lower() in Image.registered_extensions())
    return sorted(file for file in pictures if not any(map(_is_hidden, file.relative_to(folder).parts)))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _column(rows: datasets.Dataset, column: str, name: str) -> datasets.Dataset:
    if column not in rows.column_names:
        has = ", ".join(map(repr, rows.column_names))
        raise ValueError(f"{name!r} has no column {column!r}; it has {has}. Expected the same columns as in training.")
    if len(rows) == 0:
        raise ValueError(f"{name!r} has no examples.")
    return rows.select_columns([column])
