"""Fashion-MNIST with a long tail: predict the kind of clothing on a photo, with a small ViT trained from scratch.

Source: Debian package `dataset-fashion-mnist` (Zalando Research; MIT). The test set is the original one, with 1,000
images per class. Training takes 600, 360, 216, 129, 77, 46, 28, 17, 10 and 6 images (a factor of 100), so that three
classes have fewer than 20. The seed decides which class has how many images, so that results do not depend on whether
the rare classes are easy or hard.

10 classes, 28 × 28 grey pixels.
"""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np

from hf_sharp.datasets import load_idx
from tasks.packages import cached, debian_files

NAME, VERSION, KIND, BACKBONE = "fashion_mnist", 1, "image", None
EPOCHS = 60
RATES = {"scratch": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
SIZE = 28
COUNTS = (600, 360, 216, 129, 77, 46, 28, 17, 10, 6)
CLASSES = (*("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),)


@cached(f"{NAME}_{VERSION}")
def prepare(folder: Path) -> datasets.Dataset:
    """Download and read the images, as the columns `image`, `label` (10 names) and `is_test` (of the original test)."""
    splits = load_idx(debian_files("dataset-fashion-mnist", folder) / "usr/share/datasets/fashion-mnist")
    parts = []
    for name, part in splits.items():
        part = part.cast_column("label", datasets.ClassLabel(names=list(CLASSES)))
        parts.append(part.add_column("is_test", [name == "test"] * len(part)))
    return datasets.concatenate_datasets(parts)


def split(data: datasets.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the long tail and 30 validation images of every class from the original training images."""
    rng = np.random.default_rng(seed)
    labels, is_test = np.asarray(data["label"][:]), np.asarray(data["is_test"][:])
    training, validation = [], []
    for label, count in zip(rng.permutation(len(COUNTS)), COUNTS, strict=True):
        rows = rng.permutation(np.flatnonzero((labels == label) & ~is_test))
        validation.append(rows[:30])
        training.append(rows[30 : 30 + count])
    return np.sort(np.concatenate(training)), np.sort(np.concatenate(validation)), np.flatnonzero(is_test)
