"""Image files: check that they can be read, and scale grey values of more than 8 bits to 8.

`Image.convert("RGB")` clips values above 255, so that a 16-bit image becomes white. Here values are scaled instead,
with the same range for all images of a dataset:

    value ↦ 255 · (value − low) / (high − low), clipped to [0, 255]
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

import datasets
import numpy as np
from PIL import Image

WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_BITS = (8, 10, 12, 14, 16)
_CHEAP = 256 * 256  # the number of pixels that can be decoded in about a millisecond
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def raw_pictures(data: datasets.Dataset, image_column: str) -> datasets.Dataset:
    """Return the image column of a dataset undecoded: mappings with `bytes` or `path`."""
    return data.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False)).with_format(None)


def open_picture(value: Mapping[str, Any]) -> Image.Image:
    """Open an image given as a mapping with `bytes` or `path`; only its header is read."""
    return Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]))


def fault_of(value: Mapping[str, Any] | None, full: bool, cheap: bool = True) -> tuple[str | None, bool]:
    """Check whether an image can be read.

    Args:
        value: a mapping with `bytes` or `path`.
        full: whether to decode every image. If False, only header and last bytes of JPEG and PNG files are checked.
        cheap: whether to decode small images even if `full` is False.

    Returns:
        What is wrong with the image, or None; and whether it was decoded.
    """
    if value is None:
        return "there is no picture", False
    try:
        with closing(open_picture(value)) as picture:
            small = cheap and picture.width * picture.height <= _CHEAP
            if decode := full or small or not _is_whole(picture):
                picture.load()
            return None, decode
    except FileNotFoundError:
        return "the file does not exist", False
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
        return " ".join(str(error).split()).rstrip(".")[:160] or type(error).__name__, False


def _is_whole(picture: Image.Image) -> bool:
    end, file = _ENDS.get(str(picture.format)), getattr(picture, "fp", None)
    if end is None or file is None:
        return False
    here = file.tell()
    file.seek(0, io.SEEK_END)
    file.seek(max(file.tell() - 64, 0))
    tail = file.read()
    file.seek(here)
    return end in tail


def value_range(pictures: Iterable[Image.Image]) -> tuple[float, float] | None:
    """Find the range that grey values of more than 8 bits are scaled from.

    Args:
        pictures: the images of the training set; those of 8 bits are ignored.

    Returns:
        (low, high): 0 and the largest value of the smallest bit depth (8, 10, 12, 14 or 16) that can hold all values;
        0 and 1 for fractions in this range; else the smallest and the largest value. None if all images have 8 bits.

    Example:
        >>> value_range([Image.fromarray(np.array([[0, 4000]], np.uint16))])
        (0.0, 4095.0)
    """
    low, high, whole = math.inf, -math.inf, True
    for picture in pictures:
        if picture.mode in WIDE_MODES:
            values = np.asarray(picture)
            whole = whole and picture.mode != "F"
            values = values[np.isfinite(values)] if picture.mode == "F" else values
            if values.size:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
    if high < low:
        return None
    if whole and low >= 0 and high < 2 ** _BITS[-1]:
        return 0.0, float(next(2**bits for bits in _BITS if high < 2**bits) - 1)
    if not whole and low >= 0 and high <= 1:
        return 0.0, 1.0
    return low, high


def to_rgb(picture: Image.Image, limits: tuple[float, float] | None) -> Image.Image:
    """Convert an image to RGB.

    Args:
        picture: an image of any mode.
        limits: the range that `value_range` found, for grey values of more than 8 bits.

    Returns:
        The image in mode RGB.
    """
    if picture.mode in WIDE_MODES and limits is not None:
        low, high = limits
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64), nan=low, posinf=high, neginf=low)
        scaled = (values - low) * (255 / max(high - low, 1e-12))
        picture = Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))
    return picture.convert("RGB")
