"""The pictures in a folder, and which of them would be left out, because of their format or a name like a split's."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image

from hf_sharp.registry.words import quantity

logger = logging.getLogger(__name__)

# The words in names of files and folders that datasets takes for a split, and that split.
SPLITS = dict.fromkeys(("train", "training"), "train")
SPLITS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "validation")
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


def refuse_other_formats(path: Path, pictures: Sequence[Path]) -> None:
    """Raise a ValueError if some of a folder's pictures have a format that is not read."""
    if unreadable := [file for file in pictures if file.suffix.lower() in _OTHER_PICTURES]:
        raise ValueError(
            f"{len(unreadable):,} of the {len(pictures):,} pictures in {str(path)!r} have a format that is not read, "
            f"such as {str(unreadable[0].relative_to(path))!r}. Convert them to JPEG or PNG, or remove them."
        )


def _is_split(name: str) -> bool:
    return not SPLITS.keys().isdisjoint(re.split("[^a-z]+", name.lower()))


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
