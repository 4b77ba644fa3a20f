"""IDX files, the format of MNIST and similar datasets."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import datasets
import numpy as np

from hf_sharp.data.embedded import image_dataset

_SPLITS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTES = 0x08


def is_idx_folder(folder: str | Path) -> bool:
    """Tell whether a folder contains the four IDX files of a dataset."""
    try:
        return all(_find(Path(folder), stem, kind) for stem in _SPLITS.values() for kind in ("images", "labels"))
    except FileNotFoundError:
        return False


def load_idx(folder: str | Path) -> datasets.DatasetDict:
    """Load a folder of IDX files: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` and so on, gzipped or plain.

    Args:
        folder: the folder with the four files.

    Returns:
        Splits `train` and `test` with the columns `image` and `label`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not IDX of unsigned bytes, is truncated, or the numbers of images and labels differ.
    """
    splits = {}
    for split, stem in _SPLITS.items():
        images = read_idx(_find(Path(folder), stem, "images"))
        labels = read_idx(_find(Path(folder), stem, "labels"))
        if len(images) != len(labels):
            raise ValueError(f"{folder}: {split} has {len(images)} images and {len(labels)} labels.")
        splits[split] = (images, labels)
    num_classes = int(max(labels.max() for _, labels in splits.values())) + 1
    names = [str(label) for label in range(num_classes)]
    return datasets.DatasetDict({split: image_dataset(*arrays, names) for split, arrays in splits.items()})


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes into an array with the shape in its header."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(4)
        if len(header) < 4 or header[:2] != b"\0\0" or header[2] != _UNSIGNED_BYTES:
            raise ValueError(f"{path} is not an IDX file of unsigned bytes: its first bytes are {header!r}.")
        shape = struct.unpack(f">{header[3]}I", file.read(4 * header[3]))
        values = np.frombuffer(file.read(), np.uint8)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} is truncated: expected {np.prod(shape)} bytes by its header, got {values.size}.")
    return values.reshape(shape)


def _find(folder: Path, stem: str, kind: str) -> Path:
    pattern = f"{stem}-{kind}-idx?-ubyte*"
    files = [path for path in sorted(folder.glob(pattern)) if path.suffix in ("", ".gz")]
    if not files:
        raise FileNotFoundError(f"{folder} has no file {pattern}.")
    return files[0]
