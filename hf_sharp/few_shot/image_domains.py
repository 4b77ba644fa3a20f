"""Image domains from public packages: one function per domain, with its licence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from hf_sharp.data import embedded, idx
from hf_sharp.data.embedded import image_dataset
from hf_sharp.data.idx import is_idx_folder
from hf_sharp.few_shot.domain import Domain, load_domain, make_domain
from hf_sharp.few_shot.rendering import render_characters

FASHION_MNIST_FOLDER = "/usr/share/datasets/fashion-mnist"
EMOJI_PACKAGE = "emoji-datasource-twitter"
_EMOJI_SIZE = 64


class DomainNotInstalled(ValueError):  # noqa: N818 - the name is clear without "Error"
    """Raised if the package with a domain's data is not installed; the message says how to install it."""


def cache_folder() -> Path:
    """Return the folder in which domains cache data: `HF_SHARP_CACHE`, or `hf_sharp` in the user's cache folder."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_SHARP_CACHE") or users / "hf_sharp")


def digits() -> Domain:
    """Load scikit-learn's 1,797 handwritten digits, 8 × 8 pixels, 10 classes.

    Returns:
        The domain. Licence: CC BY 4.0 (UCI "Optical Recognition of Handwritten Digits").

    Example:
        >>> len(digits()), len(digits().class_names)
        (1797, 10)
    """
    return make_domain(_whole(embedded.digits()), "digits", licence="CC BY 4.0")


def fashion_mnist(folder: str | Path = FASHION_MNIST_FOLDER) -> Domain:
    """Load Fashion-MNIST's 70,000 pictures of clothes, 28 × 28 pixels, 10 classes.

    Args:
        folder: the folder with the four IDX files; the default is the folder of Debian's package.

    Returns:
        The domain. Licence: MIT (Zalando SE).

    Raises:
        DomainNotInstalled: the files do not exist.
    """
    if not is_idx_folder(folder):
        raise DomainNotInstalled(
            f"Fashion-MNIST is not in {str(folder)!r}. Install it with: apt-get install dataset-fashion-mnist"
        )
    return make_domain(_whole(idx.load_idx(folder)), "fashion_mnist", licence="MIT")


def font_characters(characters: int = 200, renderings: int = 20, size: int = 32, seed: int = 0) -> Domain:
    """Render characters from the installed fonts: a class is a character, an example a font with some jitter.

    Args:
        characters: the number of classes.
        renderings: the number of examples per class.
        size: the width and height of the images, in pixels.
        seed: the seed of fonts and jitter.

    Returns:
        The domain; images that were rendered before are read from the cache. Licence: that of the fonts, which allow
        images of their letters; this package does not contain the images.

    Raises:
        DomainNotInstalled: no fonts are installed, or they have too few characters.
    """
    try:
        pixels, labels, names = render_characters(cache_folder(), characters, renderings, size, seed)
    except LookupError as error:
        raise DomainNotInstalled(f"{error} Install some with: apt-get install fonts-dejavu fonts-noto-core") from error
    return make_domain(image_dataset(pixels, labels, names), "font_characters", licence="the installed fonts' own")


def emoji(folder: str | Path | None = None) -> Domain:
    """Load Twitter's 1,900 emoji, 64 × 64 pixels, on white; the classes are Unicode's subcategories.

    Args:
        folder: the folder of the npm package `emoji-datasource-twitter`; None to look for it in `node_modules` of the
            working folder and of the cache folder.

    Returns:
        The domain, without subcategories that have a single emoji. Licence: images CC BY 4.0 (Twitter and jdecked),
        names MIT (Cal Henderson).

    Raises:
        DomainNotInstalled: the package is not installed.
    """
    places = [Path("node_modules"), cache_folder() / "node_modules"]
    tried = [place / EMOJI_PACKAGE for place in places] if folder is None else [Path(folder)]
    found = next((place for place in tried if (place / "emoji.json").is_file()), None)
    if found is None:
        raise DomainNotInstalled(
            f"the emoji are not in {' or '.join(repr(str(place)) for place in tried)}. Install them with: "
            f"npm install --prefix {cache_folder()} {EMOJI_PACKAGE}"
        )
    described = [entry for entry in json.loads((found / "emoji.json").read_text("utf-8")) if entry["has_img_twitter"]]
    of_each, counts = np.unique([entry["subcategory"] for entry in described], return_counts=True)
    names = of_each[counts > 1].tolist()
    index = {name: number for number, name in enumerate(names)}
    kept = [entry for entry in described if entry["subcategory"] in index]
    sheet_file = found / "img" / "twitter" / "sheets" / f"{_EMOJI_SIZE}.png"
    with Image.open(sheet_file) as sheet:
        coloured = sheet.convert("RGBA")
    on_white = np.asarray(Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured))[..., :3]
    cell = _EMOJI_SIZE + 2  # every image has a border of one pixel
    pixels = np.stack(
        [
            on_white[y + 1 : y + 1 + _EMOJI_SIZE, x + 1 : x + 1 + _EMOJI_SIZE]
            for x, y in ((entry["sheet_x"] * cell, entry["sheet_y"] * cell) for entry in kept)
        ]
    )
    labels = np.array([index[entry["subcategory"]] for entry in kept])
    return make_domain(image_dataset(pixels, labels, names), "emoji", licence="CC BY 4.0")


DOMAINS: Mapping[str, Callable[[], Domain]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "font_characters": font_characters,
    "emoji": emoji,
}


def open_domain(name: str) -> Domain:
    """Open one of `DOMAINS`, or the user's own domain by its Hub name, folder or file.

    Args:
        name: the name of the domain.

    Returns:
        The domain.
    """
    return DOMAINS[name]() if name in DOMAINS else load_domain(name)


def _whole(splits: datasets.DatasetDict) -> datasets.Dataset:
    return datasets.concatenate_datasets(list(splits.values()))
