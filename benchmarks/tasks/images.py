"""Image functions for the tasks: squares of one size on white, and a hash that near-duplicates share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def square(image: Image.Image, size: int) -> Image.Image:
    """Put an image on a white square, without cropping or distorting it.

    Args:
        image: any mode; transparent parts become white.
        size: the edge of the square, in pixels.

    Returns:
        RGB, size × size.
    """
    image = image.convert("RGBA")
    scale = size / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (size, size), "white")
    canvas.paste(image, ((size - width) // 2, (size - height) // 2), image)
    return canvas


def near_duplicate_key(image: Image.Image) -> bytes:
    """Hash an image so that copies with small changes (size, a line's width) mostly get the same value.

    Args:
        image: RGB.

    Returns:
        A difference hash: for each of 16 × 16 grey values, whether it exceeds its left neighbour by more than 4 of 255;
        and the mean colour in steps of 32.
    """
    grey = np.asarray(image.convert("L").resize((17, 16), Image.Resampling.BOX), dtype=np.int16)
    colour = np.asarray(image.resize((1, 1), Image.Resampling.BOX)).ravel() // 32
    return np.packbits(grey[:, 1:] - grey[:, :-1] > 4).tobytes() + colour.tobytes()


def series_of(file: Path) -> str:
    """Return the series that a file belongs to: its folder and the first word of its name.

    Args:
        file: the path of the file.

    Returns:
        A name that the files of one series share.

    Example:
        >>> series_of(Path("animals/rana02_architetto_01.png")) == series_of(Path("animals/rana_other_03.png"))
        True
    """
    word = "".join(c if c.isalpha() else " " for c in file.stem.lower()).split()
    return f"{file.parent}/{word[0] if word else file.stem}"
