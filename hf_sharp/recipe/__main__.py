"""Train as a config says, on images or on texts as its model does: what `hf-sharp train` launches."""

import sys
from typing import Any

from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_sharp.recipe.arguments import ModelArguments
from hf_sharp.recipe.boundary import run_recipe
from hf_sharp.recipe.images import train_images
from hf_sharp.recipe.options import OPTIONS
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.texts import train_texts


def main() -> None:
    """Look at the model that the config and the flags name, and train."""
    parser = RecipeParser(OPTIONS)
    named: Any = {name: parser.values.get(name) for name in ("model_name_or_path", "model_config")}
    model = ModelArguments(**named)
    if model.model_name_or_path:
        kind = AutoConfig.from_pretrained(model.model_name_or_path).model_type
    else:
        kind = model.make_config().model_type
    (train_images if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else train_texts)()


if __name__ == "__main__":
    sys.exit(run_recipe(main))
