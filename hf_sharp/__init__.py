"""Sharpness-aware fine-tuning on long-tailed data: a drop-in Hugging Face Trainer."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_sharp.data.class_frequencies import ClassFrequencies as ClassFrequencies
    from hf_sharp.data.split import split_validation as split_validation
    from hf_sharp.recipe.tune import tune as tune
    from hf_sharp.trainer.sharp_trainer import SharpTrainer as SharpTrainer
    from hf_sharp.training_args import SharpTrainingArguments as SharpTrainingArguments

__version__ = "0.1.0"
__all__ = ["ClassFrequencies", "SharpTrainer", "SharpTrainingArguments", "split_validation", "tune"]

_HOME = {
    "ClassFrequencies": "hf_sharp.data.class_frequencies",
    "SharpTrainer": "hf_sharp.trainer.sharp_trainer",
    "SharpTrainingArguments": "hf_sharp.training_args",
    "split_validation": "hf_sharp.data.split",
    "tune": "hf_sharp.recipe.tune",
}


def __getattr__(name: str) -> Any:
    # Imported lazily, so that importing only `hf_sharp.losses` or `hf_sharp.metrics` does not import the Trainer.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
