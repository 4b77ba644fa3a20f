"""Images: how they are named, processed, and which model sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_sharp.recipe.arguments import DataArguments, ModelArguments
from hf_sharp.recipe.training import train_classifier


@dataclass
class ImageArguments(DataArguments):
    """Which images."""

    image_column: str = field(default="image", metadata={"help": "The column with the images."})


def load_image_processor(model: ModelArguments, data: ImageArguments | None = None) -> Any:
    """Load the pretrained model's image processor, or make one that fits the config; the data has no say in it."""
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
    splits: datasets.DatasetDict, processor: Any, data: ImageArguments, label_column: str
) -> datasets.DatasetDict:
    """Let the splits give pixel values, decoded when a batch asks for them.

    Args:
        splits: the data.
        processor: the image processor.
        data: the column with the images.
        label_column: the column with the labels, which stays.

    Returns:
        The splits with a transform.

    Raises:
        ValueError: the column is not an image column.
    """
    features = next(iter(splits.values())).features
    if not isinstance(features.get(data.image_column), datasets.Image):
        raise ValueError(f"column {data.image_column!r} is not an image column; the columns are {features}.")
    return splits.with_transform(_to_pixels(processor, data.image_column, label_column))


def _to_pixels(processor: Any, image_column: str, label_column: str) -> Callable[[dict], dict]:
    def transform(batch: dict[str, list]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in batch[image_column]]
        return {
            "pixel_values": processor(images, return_tensors="pt")["pixel_values"],
            label_column: batch[label_column],
        }

    return transform


def train_images(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train on images, as `train_classifier` does.

    Args:
        argv: the command line without the program's name; None: that of this process.

    Returns:
        Run name to its results, which are saved too.
    """
    return train_classifier(
        argv,
        ImageArguments,
        AutoModelForImageClassification,
        load_image_processor,
        prepare_images,
        "images",
        remove_unused_columns=False,  # the transform needs the image column, which the model's forward does not name
    )
