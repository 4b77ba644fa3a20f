"""What the recipes share. A recipe says how its data and model become a trainer; everything around that is here."""

from hf_sharp.recipe.arguments import (
    DataArguments,
    ModelArguments,
    RecipeParser,
    RunArguments,
    load_splits,
    read_flags,
)
from hf_sharp.recipe.images import ImageArguments, prepare_images, train_images
from hf_sharp.recipe.runs import plan_runs, run_recipe, run_side_by_side
from hf_sharp.recipe.saved import LookArguments, SavedModel, name_dataset, open_saved
from hf_sharp.recipe.texts import TextArguments, prepare_texts, train_texts

__all__ = [
    "DataArguments",
    "ImageArguments",
    "LookArguments",
    "ModelArguments",
    "RecipeParser",
    "RunArguments",
    "SavedModel",
    "TextArguments",
    "load_splits",
    "name_dataset",
    "open_saved",
    "plan_runs",
    "prepare_images",
    "prepare_texts",
    "read_flags",
    "run_recipe",
    "run_side_by_side",
    "train_images",
    "train_texts",
]
