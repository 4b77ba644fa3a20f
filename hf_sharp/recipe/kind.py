"""Whether a config trains on images or on texts: as its model does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_sharp.recipe.adapters import AdapterArguments
from hf_sharp.recipe.arguments import ModelArguments, RunArguments
from hf_sharp.recipe.images import IMAGES
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.saved import LookArguments
from hf_sharp.recipe.texts import TEXTS
from hf_sharp.recipe.training import Recipe
from hf_sharp.training_args import SharpTrainingArguments


def recipe_for(argv: Sequence[str] | None) -> Recipe:
    """Look at the model that a command line names.

    Args:
        argv: the words, with `--config` or flags; None: those of this process.

    Returns:
        The recipe for images or for texts.

    Raises:
        ValueError: no model is named, or options that do not exist.
    """
    parser = RecipeParser((LookArguments, ModelArguments, RunArguments, AdapterArguments, SharpTrainingArguments), argv)
    named: Any = {name: parser.values.get(name) for name in ("model_name_or_path", "model_config")}
    model = ModelArguments(**named)
    if model.model_name_or_path:
        kind = AutoConfig.from_pretrained(model.model_name_or_path).model_type
    else:
        kind = model.make_config().model_type
    return IMAGES if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else TEXTS
