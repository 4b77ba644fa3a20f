"""Image classification on long-tailed data, with SharpTrainer and, if asked, plain training beside it.

accelerate launch recipes/image_classification.py --config recipes/configs/quickstart.yaml
"""

import sys
from typing import Any

import torch

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.recipe import (
    ImageArguments,
    ModelArguments,
    RecipeParser,
    RunArguments,
    load_image_model,
    load_image_processor,
    load_splits,
    plan_runs,
    prepare_images,
    run_recipe,
    run_side_by_side,
)


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Run the recipe; the results of every run are returned and saved."""
    parser = RecipeParser((ImageArguments, ModelArguments, RunArguments, SharpTrainingArguments), argv)
    # The transform needs the image column, which the model's forward does not name.
    parser.set_defaults(remove_unused_columns=False, dataloader_pin_memory=torch.cuda.is_available())
    data, model, _, args = parser.build()
    runs = plan_runs(parser)
    with args.main_process_first(desc="loading the data"):
        splits = load_splits(data, args.label_column)
    processor = load_image_processor(model)
    class_names = splits["train"].features[args.label_column].names
    splits = prepare_images(splits, processor, data.image_column, args.label_column)

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        return SharpTrainer(
            model=load_image_model(model, class_names),
            args=args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=processor,
        )

    title = f"{data.dataset}: {len(splits['train']):,} training images, {len(class_names)} classes"
    return run_side_by_side(runs, make_trainer, splits["test"], title, args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
