"""Loads data without labels: images in any folder, a text file, a table, or a dataset."""

from __future__ import annotations

from pathlib import Path

import datasets

from hf_sharp.data.files import split_files
from hf_sharp.data.idx import is_idx_folder
from hf_sharp.data.image_folders import picture_files, refuse_other_formats
from hf_sharp.data.loading import load, no_split
from hf_sharp.data.local_names import refuse_model
from hf_sharp.registry.words import quoted

STDIN = "-"


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
    refuse_model(name)
    path = Path(name).expanduser()
    refuse_split(name, split, "--new_split")
    if path.is_file() and path.suffix.lower() == ".txt":
        with path.open(encoding="utf-8-sig") as file:  # read by lines: other separators may be in texts
            lines = [line.strip() for line in file]
        return _column(datasets.Dataset.from_dict({column: [line for line in lines if line]}), column, name)
    if path.is_dir() and not _is_dataset(path) and (files := pictures_of(path, split, "--new_split")):
        refuse_other_formats(path, files)
        rows = datasets.Dataset.from_dict({column: [str(file) for file in files]})
        return _column(rows.cast_column(column, datasets.Image()), column, name)
    try:
        splits = load(name, config, separator)
    except ValueError as error:
        raise ValueError(str(error).replace("--separator", "--new_separator")) from error
    if split is None and len(splits) > 1:
        raise ValueError(f"{name!r} has the splits {', '.join(map(repr, splits))}. Choose one with --new_split.")
    chosen = split or next(iter(splits))
    if chosen not in splits:
        raise ValueError(f"{name!r}: {no_split(chosen, splits)} Choose with --new_split.")
    return _column(splits[chosen], column, name)


def refuse_split(name: str, split: str | None, flag: str) -> None:
    """Raise a ValueError if a split of a single file or of the standard input, `-`, is named."""
    if split is not None and (name == STDIN or Path(name).expanduser().is_file()):
        what = "the standard input" if name == STDIN else f"the single file {name!r}"
        raise ValueError(f"{flag} {split} has no effect, because {what} has no splits. Leave it out.")


def pictures_of(folder: Path, split: str | None, flag: str) -> list[Path]:
    """List the pictures in a folder and its subfolders by name.

    Args:
        folder: the folder.
        split: the split to take the pictures of; None for all pictures.
        flag: the flag that names the split, for the error message.

    Returns:
        The paths; none if there are no pictures.

    Raises:
        ValueError: there is no such split.
    """
    files = picture_files(folder)
    if split is None or not files:
        return files
    splits = split_files(folder)
    if split not in splits:
        raise ValueError(f"{str(folder)!r}: {no_split(split, splits)} Name one of them with {flag}.")
    top = folder.resolve()  # as datasets does
    of_split = set(map(Path, splits[split]))
    return [file for file in files if top / file.relative_to(folder) in of_split]


def _is_dataset(folder: Path) -> bool:
    return is_idx_folder(folder) or (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _column(rows: datasets.Dataset, column: str, name: str) -> datasets.Dataset:
    if column not in rows.column_names:
        has = quoted(rows.column_names)
        raise ValueError(f"{name!r} has no column {column!r}; it has {has}. Expected the same columns as in training.")
    if len(rows) == 0:
        raise ValueError(f"{name!r} has no examples.")
    return rows.select_columns([column])
