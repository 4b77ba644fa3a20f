"""The parts that all recipes share: a recipe makes a trainer from data and model, and this package does the rest."""

import importlib
from typing import Any

# The module that defines each name. It is imported on first use, so that light commands do not import torch.
_HOME = {
    "AdapterArguments": "adapters",
    "DataArguments": "arguments",
    "ImageArguments": "images",
    "LookArguments": "saved",
    "ModelArguments": "arguments",
    "RecipeParser": "parser",
    "RunArguments": "arguments",
    "SavedModel": "saved",
    "TextArguments": "texts",
    "TrainImageArguments": "images",
    "load_splits": "arguments",
    "open_saved": "saved",
    "plan_runs": "planned",
    "prepare_images": "images",
    "prepare_texts": "texts",
    "read_flags": "parser",
    "run_recipe": "boundary",
    "run_side_by_side": "runs",
    "train_images": "images",
    "train_texts": "texts",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
