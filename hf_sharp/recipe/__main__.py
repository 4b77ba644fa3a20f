"""The program that `hf-sharp train` launches: trains on images or texts, depending on the model."""

import sys

from hf_sharp.recipe.boundary import run_recipe
from hf_sharp.recipe.kind import recipe_for
from hf_sharp.recipe.training import train_classifier


def main() -> None:
    """Train the model that the config and the flags name."""
    train_classifier(None, recipe_for(None))


if __name__ == "__main__":
    sys.exit(run_recipe(main))
