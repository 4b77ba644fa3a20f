"""What the recipes share. A recipe says how its data and model become a trainer; everything around that is here."""

from hf_sharp.recipe.arguments import (
    DataArguments,
    ModelArguments,
    RecipeParser,
    RunArguments,
    head_options,
    load_splits,
)
from hf_sharp.recipe.runs import plan_runs, run_recipe, run_side_by_side

__all__ = [
    "DataArguments",
    "ModelArguments",
    "RecipeParser",
    "RunArguments",
    "head_options",
    "load_splits",
    "plan_runs",
    "run_recipe",
    "run_side_by_side",
]
