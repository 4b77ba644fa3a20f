"""Image classification on long-tailed data, with SharpTrainer and, if asked, plain training beside it.

accelerate launch recipes/image_classification.py --config recipes/configs/quickstart.yaml
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedModel,
    ViTImageProcessor,
)

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.recipe import (
    DataArguments,
    ModelArguments,
    RecipeParser,
    RunArguments,
    head_options,
    load_splits,
    plan_runs,
    run_recipe,
    run_side_by_side,
)


@dataclass
class ImageArguments(DataArguments):
    """Which images."""

    image_column: str = field(default="image", metadata={"help": "The column with the images."})


def load_processor(model: ModelArguments) -> Any:
    """Load the pretrained model's image processor, or make one that fits the config."""
    if model.model_name_or_path:
        return AutoImageProcessor.from_pretrained(model.model_name_or_path)
    config = model.make_config()
    size = getattr(config, "image_size", 224)
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError("model_config: num_channels must be 3, as pipeline() gives a model RGB images.")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )


def load_model(model: ModelArguments, class_names: list[str]) -> PreTrainedModel:
    """Load the pretrained model with a new head, or make one from its config."""
    head = head_options(class_names)
    if model.model_name_or_path:
        return AutoModelForImageClassification.from_pretrained(
            model.model_name_or_path, ignore_mismatched_sizes=True, **head
        )
    return AutoModelForImageClassification.from_config(model.make_config(**head))


def to_pixels(processor: Any, image_column: str, label_column: str) -> Callable[[dict], dict]:
    """Make the transform that decodes images when a batch asks for them."""

    def transform(batch: dict[str, list]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[image_column]]
        return {
            "pixel_values": processor(images, return_tensors="pt")["pixel_values"],
            label_column: batch[label_column],
        }

    return transform


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Run the recipe; the results of every run are returned and saved."""
    parser = RecipeParser((ImageArguments, ModelArguments, RunArguments, SharpTrainingArguments), argv)
    # The transform needs the image column, which the model's forward does not name.
    parser.set_defaults(remove_unused_columns=False, dataloader_pin_memory=torch.cuda.is_available())
    data, model, _, args = parser.build()
    runs = plan_runs(parser)
    with args.main_process_first(desc="loading the data"):
        splits = load_splits(data, args.label_column)
    if not isinstance(splits["train"].features.get(data.image_column), datasets.Image):
        raise ValueError(
            f"column {data.image_column!r} is not an image column; the columns are {splits['train'].features}."
        )
    processor = load_processor(model)
    class_names = splits["train"].features[args.label_column].names
    splits = splits.with_transform(to_pixels(processor, data.image_column, args.label_column))

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        return SharpTrainer(
            model=load_model(model, class_names),
            args=args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=processor,
        )

    title = f"{data.dataset}: {len(splits['train']):,} training images, {len(class_names)} classes"
    return run_side_by_side(runs, make_trainer, splits["test"], title, args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
