"""Tells from the model whether a config trains on images or on texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_sharp.recipe.arguments import ModelArguments
from hf_sharp.recipe.images import IMAGES
from hf_sharp.recipe.models import class_for, loading
from hf_sharp.recipe.options import OPTIONS
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.texts import TEXTS
from hf_sharp.recipe.training import Recipe


def recipe_for(argv: Sequence[str] | None) -> Recipe:
    """Find the recipe for the model that a command line names.

    Args:
        argv: the arguments, with `--config` or flags; None for those of this process.

    Returns:
        The recipe for images or for texts.

    Raises:
        ValueError: no model is named, the model cannot be loaded, or an option does not exist.
    """
    parser = RecipeParser(OPTIONS, argv)
    known = ("model_name_or_path", "model_config", "trust_remote_code")
    named: Any = {name: parser.values[name] for name in known if name in parser.values}
    model = ModelArguments(**named)
    if name := model.model_name_or_path:
        with loading(name):
            config = class_for(None, name, model.trust_remote_code)[1]
    else:
        config = model.make_config()
    kind = config.model_type.removeprefix("cosine-")
    return IMAGES if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else TEXTS
