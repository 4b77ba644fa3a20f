"""Images listed in text files of `path label` lines, the format in which long-tailed benchmarks publish splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

_NAMED = 3


def parse_lists(pairs: Sequence[str]) -> dict[str, str]:
    """Read `split=file` pairs.

    Args:
        pairs: strings such as `train=lists/train.txt`.

    Returns:
        Split name to file.

    Raises:
        ValueError: a pair has no `=`, or a split is named twice.

    Example:
        >>> parse_lists(["train=a.txt", "test=b.txt"])
        {'train': 'a.txt', 'test': 'b.txt'}
    """
    lists: dict[str, str] = {}
    for pair in pairs:
        split, equals, file = str(pair).partition("=")
        if not (split and equals and file):
            raise ValueError(f"split_lists: expected split=file, such as train=train.txt; got {pair!r}.")
        if split in lists:
            raise ValueError(f"split_lists names the split {split!r} twice.")
        lists[split] = file
    return lists


def load_listed(folder: str, lists: Mapping[str, str]) -> datasets.DatasetDict:
    """Load the images that lists name.

    Args:
        folder: the folder that the paths in the lists are relative to.
        lists: split name to text file. A line has a path, white space and a label: a class index, or a name without
            spaces.

    Returns:
        The splits, with the columns `image` and `label`. Images are not opened.

    Raises:
        ValueError: a file does not exist or has no lines, a line has no label, an image does not exist, or an image is
            in two splits; the error names file and line.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"{folder!r} is not a folder. With split_lists, dataset is the folder that their paths are relative to."
        )
    seen: dict[str, tuple[str, str]] = {}  # image to split and place
    splits = {}
    for split, file in lists.items():
        paths, labels = [], []
        for place, path, label in _lines(file):
            image = os.path.normpath(root / path)
            other, where = seen.setdefault(image, (split, place))
            if other != split:
                raise ValueError(f"{place}: {path!r} is in two splits, {split!r} and {other!r} ({where}).")
            paths.append((place, image))
            labels.append(label)
        _refuse_missing(root, paths)
        rows = datasets.Dataset.from_dict({"image": [image for _, image in paths], "label": labels})
        splits[split] = rows.cast_column("image", datasets.Image())
    return datasets.DatasetDict(splits)


def _lines(file: str) -> list[tuple[str, str, str]]:
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"the list {file!r} of split_lists does not exist.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the list {file!r} is not UTF-8 text: {error}.") from error
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.strip().rsplit(maxsplit=1)  # a path may hold spaces
        if len(parts) != 2:
            raise ValueError(f"{file}, line {number}: expected a path, a space and a label; got {line.strip()!r}.")
        lines.append((f"{file}, line {number}", parts[0], parts[1]))
    if not lines:
        raise ValueError(f"the list {file!r} has no lines.")
    return lines


def _refuse_missing(root: Path, paths: Sequence[tuple[str, str]]) -> None:
    missing = [(place, image) for place, image in paths if not os.path.isfile(image)]
    if missing:
        named = "; ".join(f"{place}: {image!r}" for place, image in missing[:_NAMED])
        rest = f"; and {len(missing) - _NAMED:,} more" if len(missing) > _NAMED else ""
        raise ValueError(
            f"images do not exist: {named}{rest}. The paths start from dataset={str(root)!r}: is it right?"
        )
