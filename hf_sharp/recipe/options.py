"""All options of the recipes for any data: the keys that a config may contain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_sharp.recipe.adapters import AdapterArguments
from hf_sharp.recipe.arguments import ModelArguments, RunArguments
from hf_sharp.recipe.images import TrainImageArguments
from hf_sharp.recipe.texts import TextArguments
from hf_sharp.training_args import SharpTrainingArguments


@dataclass
class AnyDataArguments(TrainImageArguments, TextArguments):
    """Options of the data, images or texts."""


# For `RecipeParser`, if a config may be for either recipe.
OPTIONS: tuple[Any, ...] = (AnyDataArguments, ModelArguments, RunArguments, AdapterArguments, SharpTrainingArguments)
