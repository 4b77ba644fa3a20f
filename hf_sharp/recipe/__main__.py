"""Train as a config says, on images or on texts as its model does: what `hf-sharp train` launches."""

import sys
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_sharp.recipe.arguments import ModelArguments
from hf_sharp.recipe.boundary import run_recipe, stage
from hf_sharp.recipe.images import train_images
from hf_sharp.recipe.models import class_for
from hf_sharp.recipe.options import OPTIONS
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.texts import train_texts


def main() -> None:
    """Look at the model that the config and the flags name, and train."""
    parser = RecipeParser(OPTIONS)
    known = ("model_name_or_path", "model_config", "trust_remote_code")
    named: Any = {name: parser.values[name] for name in known if name in parser.values}
    model = ModelArguments(**named)
    if name := model.model_name_or_path:
        with stage(f"the model {name!r} cannot be loaded", "Expected a folder with its files, or a name on the Hub."):
            config = class_for(None, name, model.trust_remote_code)[1]
    else:
        config = model.make_config()
    kind = config.model_type.removeprefix("cosine-")
    (train_images if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else train_texts)()


if __name__ == "__main__":
    sys.exit(run_recipe(main))
