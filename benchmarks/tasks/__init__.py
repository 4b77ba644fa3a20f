"""The tasks of the evidence: one module per task, all with the same interface.

    NAME          the name in files and commands; tables and plots show the entry in `TITLES`
    VERSION       increased whenever a split changes, so that finished runs on another split do not count
    KIND          "text" or "image"
    BACKBONE      the folder that benchmarks/backbones writes, or None for a small ViT from scratch
    EPOCHS        the number of epochs of a run
    MAX_TOKENS    the number of tokens that texts are truncated to (text tasks)
    RATES         five learning rates per base, in ascending order; the middle three are tried first
    prepare(folder)    download, read and cache everything; returns a datasets.Dataset
    split(data, seed)  returns (train, validation, test): rows of the dataset, as integers

The data is downloaded when the benchmarks are run, into a folder that git ignores. The repository contains no data.
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
