"""Datasets that ship with a dependency and need no download."""

from __future__ import annotations

import datasets
import numpy as np
from PIL import Image


def digits(test_fraction: float = 0.3, seed: int = 0) -> datasets.DatasetDict:
    """Load scikit-learn's 1,797 handwritten digits, 8 × 8 pixels, split by class into train and test.

    Args:
        test_fraction: the share of every class that goes to the test split, in (0, 1).
        seed: the seed of the split.

    Returns:
        Splits `train` and `test` with the columns `image` and `label`.

    Example:
        >>> digits()["train"].features["label"].num_classes
        10

    Reference:
        UCI "Optical Recognition of Handwritten Digits", CC BY 4.0, as included in scikit-learn.
    """
    from sklearn.datasets import load_digits  # slow to import, so only when needed
    from sklearn.model_selection import train_test_split

    source = load_digits()
    train, test = train_test_split(
        np.arange(len(source.target)), test_size=test_fraction, stratify=source.target, random_state=seed
    )
    pixels = (source.images * (255 / 16)).astype(np.uint8)
    return datasets.DatasetDict(
        {
            split: image_dataset(pixels[rows], source.target[rows], [str(name) for name in source.target_names])
            for split, rows in (("train", train), ("test", test))
        }
    )


def image_dataset(pixels: np.ndarray, labels: np.ndarray, class_names: list[str]) -> datasets.Dataset:
    """Make a dataset from pixel arrays.

    Args:
        pixels: (N, height, width) or (N, height, width, 3), uint8.
        labels: (N,) integers in [0, K).
        class_names: K names.

    Returns:
        A dataset with the columns `image` and `label`.
    """
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=class_names)})
    return datasets.Dataset.from_dict(
        {"image": [Image.fromarray(image) for image in pixels], "label": labels.tolist()}, features=features
    )
