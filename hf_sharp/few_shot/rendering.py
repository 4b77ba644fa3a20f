"""Renders characters from the installed fonts as an Omniglot-like dataset, which is cached."""

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

# Ranges of code points (first, last): scripts first, then symbols.
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
_ENOUGH_FONTS = 3  # with fewer fonts, the examples of a character would differ almost only by jitter
_ALIKE = 0.1  # characters count as the same if their squared difference is below this share of the squared ink
_VERSION = 3  # the version of the rendered images; a change invalidates the cache


def render_characters(
    cache: Path, characters: int, renderings: int, size: int, seed: int, fonts: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Render characters, or read them from the cache.

    Args:
        cache: the folder of the cache.
        characters: the number of characters.
        renderings: the number of renderings per character.
        size: the width and height of the images, in pixels.
        seed: the seed of fonts and jitter.
        fonts: font files; None for all installed fonts.

    Returns:
        Pixels (N, size, size) uint8, dark on white; labels (N,); and the characters.

    Raises:
        LookupError: there are no fonts, or they have too few characters.
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
        for i in range(renderings):  # use every font once before repeating one
            pixels[c, i] = _render(character, its_fonts[order[i % len(order)]], size, rng)
    names = list(chosen)
    labels = np.repeat(np.arange(characters), renderings)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.stem}.{os.getpid()}.part")  # the file is renamed when it is complete
    with unfinished.open("wb") as out:
        np.savez_compressed(out, pixels=pixels.reshape(-1, size, size), labels=labels, names=np.array(names))
    unfinished.replace(file)
    return pixels.reshape(-1, size, size), labels, names


def installed_fonts() -> list[str]:
    """List the installed font files, in a fixed order."""
    from matplotlib.font_manager import findSystemFonts

    return sorted(findSystemFonts())


def choose_characters(files: Iterable[str], count: int, size: int) -> Mapping[str, list[str]]:
    """Choose characters that look different from one another, those in the most fonts first.

    Args:
        files: the font files.
        count: the number of characters.
        size: the size at which they must look different, in pixels.

    Returns:
        Character to the fonts that have it.

    Raises:
        LookupError: there are fewer such characters.
    """
    from matplotlib.ft2font import FT2Font

    having: dict[int, list[str]] = {code: [] for first, last in _RANGES for code in range(first, last + 1)}
    usable = 0
    for file in files:
        try:
            ImageFont.truetype(file, size)
            codes = FT2Font(file).get_charmap()
        except (OSError, RuntimeError):  # bitmap fonts and other unsupported formats
            continue
        usable += 1
        for code in having.keys() & codes.keys():
            if unicodedata.category(chr(code))[0] in "LNS":
                having[code].append(file)
    ranked = sorted(having, key=lambda code: -len(having[code]))  # stable: ties stay in the order of the ranges
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
        raise LookupError(f"{usable} usable fonts have only {len(chosen)} of the {count} characters that are needed.")
    return chosen


def _is_among(ink: np.ndarray, others: Iterable[np.ndarray]) -> bool:
    # Latin, Greek and Cyrillic A look the same except for hinting, so they must be only one class.
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
    offset = size - matrix @ (size + 2 * size * shift)  # relative to the centre of the image
    numbers = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    moved = large.transform(large.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR, fillcolor=255)
    return np.asarray(moved.resize((size, size), Image.Resampling.BOX))
