"""Characters rendered from the installed fonts, an Omniglot-like set: once, then read from a cache."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

# Scripts first, then signs: (first, last) code points.
_RANGES = (
    (0x21, 0x7E),  # Latin
    (0x391, 0x3C9),  # Greek
    (0x410, 0x44F),  # Cyrillic
    (0x531, 0x586),  # Armenian
    (0x10D0, 0x10F0),  # Georgian
    (0x5D0, 0x5EA),  # Hebrew
    (0x13A0, 0x13F4),  # Cherokee
    (0x1401, 0x1676),  # Canadian syllabics
    (0x2D30, 0x2D67),  # Tifinagh
    (0x1680, 0x169A),  # Ogham
    (0x904, 0x939),  # Devanagari
    (0xE01, 0xE2E),  # Thai
    (0x3041, 0x30FF),  # Kana
    (0x2190, 0x22FF),  # arrows, mathematics
    (0x20A0, 0x20BF),  # currencies
    (0x2600, 0x26FF),  # signs
)
_ENOUGH_FONTS = 3  # an alphabet that fewer fonts have makes examples that differ by jitter only
_ALIKE = 0.1  # the squared difference of two characters' ink, over the ink's square, below which they are one
_VERSION = 3  # of the pictures: another number makes them anew


def render_characters(
    cache: Path, characters: int, renderings: int, size: int, seed: int, fonts: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Render characters, or read what was rendered before.

    Args:
        cache: the folder of what was rendered.
        characters: how many.
        renderings: of each.
        size: of the images, in pixels.
        seed: of fonts and jitter.
        fonts: files; None: all that are installed.

    Returns:
        Pixels (N, size, size) uint8, dark on white; labels (N,); the characters.

    Raises:
        LookupError: there are no fonts, or they do not have so many characters.
    """
    files = installed_fonts() if fonts is None else sorted(fonts)
    if not files:
        raise LookupError("there are no fonts to render characters from.")
    installed = [f"{Path(file).name} {os.path.getsize(file)}" for file in files]
    what = "|".join(map(str, [_VERSION, characters, renderings, size, seed, *installed]))
    file = cache / f"font_characters-{hashlib.sha256(what.encode()).hexdigest()[:12]}.npz"
    if file.is_file():
        with np.load(file) as saved:
            return saved["pixels"], saved["labels"], saved["names"].tolist()
    chosen = choose_characters(files, characters, size)
    rng = np.random.default_rng(seed)
    pixels = np.empty((characters, renderings, size, size), np.uint8)
    for c, (character, its_fonts) in enumerate(tqdm(chosen.items(), desc="rendering characters", leave=False)):
        order = rng.permutation(len(its_fonts))
        for i in range(renderings):  # every font once before one comes again
            pixels[c, i] = _render(character, its_fonts[order[i % len(order)]], size, rng)
    names = list(chosen)
    labels = np.repeat(np.arange(characters), renderings)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.stem}.{os.getpid()}.part")  # pictures are there whole, or not at all
    with unfinished.open("wb") as out:
        np.savez_compressed(out, pixels=pixels.reshape(-1, size, size), labels=labels, names=np.array(names))
    unfinished.replace(file)
    return pixels.reshape(-1, size, size), labels, names


def installed_fonts() -> list[str]:
    """List the font files that are installed, in an order of their own."""
    from matplotlib.font_manager import findSystemFonts

    return sorted(findSystemFonts())


def choose_characters(files: Iterable[str], count: int, size: int) -> Mapping[str, list[str]]:
    """Choose characters that look different from one another, those in most fonts first.

    Args:
        files: the fonts.
        count: how many characters.
        size: at which they must look different, in pixels.

    Returns:
        Every character with the fonts that have it.

    Raises:
        LookupError: there are not so many.
    """
    from matplotlib.ft2font import FT2Font

    having: dict[int, list[str]] = {code: [] for first, last in _RANGES for code in range(first, last + 1)}
    usable = 0
    for file in files:
        try:
            ImageFont.truetype(file, size)
            codes = FT2Font(file).get_charmap()
        except (OSError, RuntimeError):  # bitmap fonts, and those of other kinds
            continue
        usable += 1
        for code in having.keys() & codes.keys():
            if unicodedata.category(chr(code))[0] in "LNS":
                having[code].append(file)
    ranked = sorted(having, key=lambda code: -len(having[code]))  # stable: in the order of the ranges among equals
    chosen: dict[str, list[str]] = {}
    taken: dict[str, list[np.ndarray]] = {}
    for code in ranked:
        if len(having[code]) < max(min(_ENOUGH_FONTS, usable), 1) or len(chosen) == count:
            break
        inks = {file: 255 - np.asarray(_draw(chr(code), file, size), np.int32) for file in having[code]}
        if all(ink.any() and not _is_among(ink, taken.get(file, [])) for file, ink in inks.items()):
            chosen[chr(code)] = having[code]
            for file, ink in inks.items():
                taken.setdefault(file, []).append(ink)
    if len(chosen) < count:
        raise LookupError(f"{usable} usable fonts have {len(chosen)} characters of the {count} that are wanted.")
    return chosen


def _is_among(ink: np.ndarray, others: Iterable[np.ndarray]) -> bool:
    # A of Latin, Greek and Cyrillic is one picture, but for the font's hints, and a class of its own only once.
    least = _ALIKE * np.square(ink).sum()
    return any(np.square(other - ink).sum() < least for other in others)


def _draw(character: str, file: str, size: int) -> Image.Image:
    picture = Image.new("L", (size, size), 255)
    place, font = (size / 2, size / 2), _open_font(file, round(0.75 * size))
    ImageDraw.Draw(picture).text(place, character, fill=0, font=font, anchor="mm")
    return picture


@lru_cache(maxsize=256)
def _open_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def _render(character: str, file: str, size: int, rng: np.random.Generator) -> np.ndarray:
    turn, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    scale, shift = rng.uniform(0.8, 1.2, 2), rng.uniform(-0.08, 0.08, 2)
    cosine, sine = np.cos(turn), np.sin(turn)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[1, shear], [0, 1]]) / scale
    large = _draw(character, file, 2 * size)
    offset = size - matrix @ (size + 2 * size * shift)  # about the middle of the picture
    numbers = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    moved = large.transform(large.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=255)
    return np.asarray(moved.resize((size, size), Image.Resampling.BOX))
