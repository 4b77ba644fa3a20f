"""Train as a config says, on images or on texts as its model does: what `hf-sharp train` launches."""

import sys

from hf_sharp.recipe.boundary import run_recipe
from hf_sharp.recipe.kind import recipe_for
from hf_sharp.recipe.training import train_classifier


def main() -> None:
    """Look at the model that the config and the flags name, and train."""
    train_classifier(None, recipe_for(None))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
