"""The tasks of the evidence: one module each, all with the same interface.

    NAME          what files and commands call it; tables and pictures have its entry in `TITLES`
    VERSION       raised whenever a split changes, so that finished runs of another split do not count
    KIND          "text" or "image"
    BACKBONE      the folder that benchmarks/backbones writes, or None: a small ViT from scratch
    EPOCHS        how long a run trains
    MAX_TOKENS    where texts are cut (text tasks)
    RATES         learning rates by base, five in rising order, of which the middle three are tried first
    prepare(folder)    download, read and cache everything; returns a datasets.Dataset
    split(data, seed)  returns (train, validation, test): rows of the dataset, as integers

Data is downloaded by whoever runs this, into a folder that git ignores. Nothing of it is in the repository.
"""

from importlib import import_module
from types import ModuleType

TITLES = {
    "wordnet": "WordNet",
    "foldoc": "FOLDOC",
    "clipart": "Clip art",
    "solar_cells": "Solar cells",
    "fashion_mnist": "Fashion-MNIST",
}
NAMES = tuple(TITLES)


def load(name: str) -> ModuleType:
    """Import a task's module.

    Args:
        name: one of `NAMES`.

    Returns:
        The module, with the interface above.

    Raises:
        ValueError: there is no such task.
    """
    if name not in NAMES:
        raise ValueError(f"unknown task {name!r}; expected one of {', '.join(NAMES)}.")
    return import_module(f"tasks.{name}")
