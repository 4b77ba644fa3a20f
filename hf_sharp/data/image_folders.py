"""The files in a folder: which would be left out, and whether the folders of the pictures can be their classes."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image

from hf_sharp.data.pictures import raw_pictures
from hf_sharp.registry.words import quantity, quoted

logger = logging.getLogger(__name__)

# The words in names of files and folders that datasets takes for a split, and that split.
SPLITS = dict.fromkeys(("train", "training"), "train")
SPLITS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".feather", ".xls", ".xlsx", ".ods")
_OF_DATASETS = {"dataset_info.json", "dataset_infos.json"}  # which datasets writes beside the data
_OTHER_PICTURES = {".heic", ".heif", ".avif", ".jxl", ".svg"} | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"}


def picture_suffixes() -> set[str]:
    """Return the suffixes of pictures, in lower case, also of formats that are not read."""
    return {*Image.registered_extensions(), *_OTHER_PICTURES}


def picture_files(folder: Path) -> list[Path]:
    """List all pictures in a folder and its subfolders by name, except hidden files and files that macOS adds."""
    return visible_files(folder, picture_suffixes())


def visible_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """List all files with some suffixes, in lower case, as `picture_files` does."""
    found = (Path(above, file) for above, _, files in os.walk(folder) for file in files)
    some = (file for file in found if file.suffix.lower() in suffixes)
    return sorted(file for file in some if not any(map(_is_hidden, file.relative_to(folder).parts)))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def check_all_are_read(path: Path, files: Sequence[Path]) -> None:
    """Raise a ValueError if pictures of a folder would be left out.

    Args:
        path: the folder.
        files: the files that datasets found in it.

    Raises:
        ValueError: there are pictures in a format that datasets does not read; or some are in no split, because the
            name of another file or folder looks like a split.
    """
    path = path.resolve()  # as datasets does
    pictures = visible_files(path, {*ImageFolder.EXTENSIONS, *_OTHER_PICTURES})
    refuse_other_formats(path, pictures)
    found = {file.absolute() for file in files}
    dropped = [file for file in pictures if file.absolute() not in found]
    if not dropped:
        return
    kept, lost = ([file.relative_to(path) for file in some] for some in (sorted({*pictures} - {*dropped}), dropped))
    beside = sorted({file.parts[0] for file in lost})
    splits = {file.parts[0] for file in kept if _is_split(file.parts[0]) and len(file.parts) > 2}
    if splits >= {file.parts[0] for file in kept} and splits.isdisjoint(beside):
        logger.warning("Not read, because they are beside the splits: %s.", ", ".join(beside))
        return
    named = next((part for file in kept for part in file.parts if _is_split(part)), None)
    why = f"{named!r} looks like the name of a split" if named else "datasets does not read such names"
    raise ValueError(
        f"{len(lost):,} of the {len(pictures):,} pictures in {str(path)!r} would be left out, such as {str(lost[0])!r}"
        f": {why}. Rename it."
    )


def unread_tables(path: Path, files: Sequence[Path]) -> list[str]:
    """List the tables in a folder that are not among the files that datasets found in it, relative to the folder."""
    path = path.resolve()  # as datasets does
    tables = [file for file in visible_files(path, {*_TABLES, ".gz"}) if _is_table(file.name)]
    return [str(file.relative_to(path)) for file in sorted({*tables} - {*files})]


def _is_table(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(_TABLES) and name not in _OF_DATASETS


def warn_of_unlisted(path: Path, files: Sequence[Path], splits: Mapping[str, datasets.Dataset]) -> None:
    """Log how many pictures of a folder are in no metadata file, and so left out.

    Args:
        path: the folder.
        files: the files that datasets found in it.
        splits: the rows of the metadata files, with images by their paths.
    """
    listed = {
        os.path.normpath(value["path"])
        for rows in splits.values()
        for column, kind in rows.features.items()
        if isinstance(kind, datasets.Image)
        for value in raw_pictures(rows, column)[column]
        if value and value["path"]
    }
    pictures = [file for file in files if file.suffix.lower() in ImageFolder.EXTENSIONS]
    if lost := [file for file in pictures if str(file) not in listed]:
        logger.warning(
            "%s of the %s pictures in %r are not listed in a metadata file, so they are left out, such as %r.",
            f"{len(lost):,}",
            f"{len(pictures):,}",
            str(path),
            str(lost[0].relative_to(path.resolve())),
        )


def refuse_other_formats(path: Path, pictures: Sequence[Path]) -> None:
    """Raise a ValueError if some of a folder's pictures have a format that is not read."""
    if unreadable := [file for file in pictures if file.suffix.lower() in _OTHER_PICTURES]:
        raise ValueError(
            f"{len(unreadable):,} of the {len(pictures):,} pictures in {str(path)!r} have a format that is not read, "
            f"such as {str(unreadable[0].relative_to(path))!r}. Convert them to JPEG or PNG, or remove them."
        )


def _is_split(name: str) -> bool:
    return not SPLITS.keys().isdisjoint(re.split("[^A-Za-z]+", name))


def check_class_folders(path: Path, files: Sequence[Path]) -> None:
    """Check that the folders that hold the pictures can be the classes.

    Args:
        path: the folder of the dataset, with one folder per class, possibly within folders of splits.
        files: the pictures.

    Raises:
        ValueError: a folder of pictures is that of a split; or folders of the same name are in several folders, as in
            CLASS/SITE/IMAGE.
    """
    if len({len(file.parts) for file in files}) > 1:
        return  # datasets gives no labels then, see no_class_folders
    expected = f"Expected one folder per class, {path.name}/CLASS/IMAGE"
    remedy = "or a metadata.csv beside the pictures, with the columns file_name and label"
    places: dict[str, dict[tuple[str, ...], Path]] = defaultdict(dict)
    for folder in sorted({file.relative_to(path.resolve()).parent for file in files}):
        above = tuple(part for part in folder.parts[:-1] if not _is_split(part))
        if _is_split(folder.name) and len(above) == len(folder.parts) - 1:
            raise ValueError(
                f"the pictures in {str(path / folder)!r} have no labels: this folder is a split, not a class. "
                f"{expected} or {path.name}/{folder.name}/CLASS/IMAGE, {remedy}."
            )
        places[folder.name].setdefault(above, folder)
    for name, folders in places.items():
        if len(folders) > 1:
            raise ValueError(
                f"the folders {name!r} would be one class, but they are in several folders: "
                f"{quoted(map(str, [*folders.values()][:2]))}. {expected}, {remedy}."
            )


def no_class_folders(path: Path, files: Sequence[Path]) -> str:
    """Say why the images of a folder have no labels.

    Args:
        path: the folder.
        files: the images.

    Returns:
        The reason, and what to do.
    """
    depths = Counter(len(file.parts) for file in files)
    if len(depths) > 1:
        usual = depths.most_common(1)[0][0]
        stray = [file for file in files if len(file.parts) != usual]
        count = quantity(len(stray), "such file", "such files")
        return (
            f"the images in {str(path)!r} have no labels, because not all of them are in one folder per class: "
            f"{str(stray[0])!r} is not ({count}). Move or remove such files."
        )
    return (
        f"the images in {str(path)!r} have no labels. Put them in one folder per class, {path.name}/CLASS/IMAGE, or "
        "add a metadata.csv with the columns file_name and label."
    )
