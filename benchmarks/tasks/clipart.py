"""Clip art: predict the top folder (animals, food, transportation, …) of a drawing.

Source: Debian package `openclipart-png` (Open Clip Art Library 0.18; public domain by the package's copyright file).
The folders special, unsorted, logos, buttons and shapes/stars are left out, and so are links. One of each set of
near-duplicates is kept, or none if they are in two folders. Files of one series (the same folder and first word) are in
the same part of a split.

18 classes. Of the examples of each class that are not used for test and validation, training takes a sixth, at most 160
and at least 5. Drawings are put on a white square of 96 pixels.
"""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageFile

from tasks.division import divide
from tasks.images import near_duplicate_key, series_of, square
from tasks.packages import cached, debian_files

NAME, VERSION, KIND, BACKBONE = "clipart", 1, "image", "efficientnet-lite0"
EPOCHS = 10
RATES = {"full": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
SIZE = 96
LEFT_OUT = ("special", "unsorted", "logos", "buttons")


@cached(f"{NAME}_{VERSION}")
def prepare(folder: Path) -> datasets.Dataset:
    """Download and read the drawings, as the columns `image`, `label` (18 names) and `group` (the series)."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    root = debian_files("openclipart-png", folder) / "usr/share/openclipart/png"
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name not in LEFT_OUT)
    first: dict[bytes, dict] = {}
    ambiguous: set[bytes] = set()
    for label, name in enumerate(names):
        for file in sorted((root / name).rglob("*.png")):
            relative = file.relative_to(root)
            if file.is_symlink() or "stars" in relative.parts:
                continue
            try:
                with Image.open(file) as opened:
                    image = square(opened, SIZE)
            except (OSError, Image.DecompressionBombError):  # a few files are broken or huge
                continue
            key = near_duplicate_key(image)
            row = first.setdefault(key, {"image": image, "label": label, "group": series_of(relative)})
            if row["label"] != label:
                ambiguous.add(key)
    rows = [row for key, row in first.items() if key not in ambiguous]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names), "group": datasets.Value("string")}
    )
    return datasets.Dataset.from_list(rows, features=features)


def split(data: datasets.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw 8 test and at most 12 validation drawings of every class; train on a sixth of the rest, at most 160."""
    return divide(
        data["label"][:],
        data["group"][:],
        seed,
        test_per_class=8,
        validation_per_class=12,
        training_counts=lambda left: np.minimum(left, np.clip(left // 6, 5, 160)),
    )
