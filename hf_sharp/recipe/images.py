"""Images: how they are named, processed, and which model sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_sharp.recipe.arguments import (
    DataArguments,
    ModelArguments,
    RecipeParser,
    RunArguments,
    load_model,
    load_splits,
)
from hf_sharp.recipe.runs import plan_runs, run_side_by_side
from hf_sharp.trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments


@dataclass
class ImageArguments(DataArguments):
    """Which images."""

    image_column: str = field(default="image", metadata={"help": "The column with the images."})


def load_image_processor(model: ModelArguments) -> Any:
    """Load the pretrained model's image processor, or make one that fits the config."""
    if model.model_name_or_path:
        return AutoImageProcessor.from_pretrained(model.model_name_or_path)
    config = model.make_config()
    size = getattr(config, "image_size", 224)
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError("model_config: num_channels must be 3, as pipeline() gives a model RGB images.")
    from transformers import ViTImageProcessor  # says on import that torchvision is missing, where it is

    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )


def prepare_images(
    splits: datasets.DatasetDict, processor: Any, image_column: str, label_column: str
) -> datasets.DatasetDict:
    """Let the splits give pixel values, decoded when a batch asks for them.

    Args:
        splits: the data.
        processor: the image processor.
        image_column: the column with the images.
        label_column: the column with the labels, which stays.

    Returns:
        The splits with a transform.

    Raises:
        ValueError: the column is not an image column.
    """
    features = next(iter(splits.values())).features
    if not isinstance(features.get(image_column), datasets.Image):
        raise ValueError(f"column {image_column!r} is not an image column; the columns are {features}.")
    return splits.with_transform(_to_pixels(processor, image_column, label_column))


def _to_pixels(processor: Any, image_column: str, label_column: str) -> Callable[[dict], dict]:
    def transform(batch: dict[str, list]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[image_column]]
        return {
            "pixel_values": processor(images, return_tensors="pt")["pixel_values"],
            label_column: batch[label_column],
        }

    return transform


def train_images(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train on images: a config, flags, and every run that it is to be compared with.

    Args:
        argv: the command line without the program's name; None: that of this process.

    Returns:
        Run name to its results, which are saved too.
    """
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
            model=load_model(AutoModelForImageClassification, model, class_names),
            args=args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=processor,
        )

    title = f"{data.dataset}: {len(splits['train']):,} training images, {len(class_names)} classes"
    return run_side_by_side(runs, make_trainer, splits["test"], title, args.output_dir)
