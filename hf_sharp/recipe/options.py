"""All options of the recipes, whatever the data: what a config may hold."""

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
    """Which data: images or texts."""


# For `RecipeParser`, where a config may be of either recipe.
OPTIONS: tuple[Any, ...] = (AnyDataArguments, ModelArguments, RunArguments, AdapterArguments, SharpTrainingArguments)
