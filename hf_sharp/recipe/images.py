"""Images: the options, the processor, and the transform from pictures to pixel values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_sharp.data.pictures import WIDE_MODES, open_picture, raw_pictures, to_rgb, value_range
from hf_sharp.recipe.arguments import DataArguments, ModelArguments
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.training import Recipe, train_classifier

logger = logging.getLogger(__name__)


@dataclass
class ImageArguments(DataArguments):
    """Which images."""

    image_column: str = field(default="image", metadata={"help": "The column with the images."})
    picture_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Grey values of more than 8 bits: the two values to show as black and white; found in the training "
            "split if not given."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.picture_range is not None and (
            len(self.picture_range) != 2 or not self.picture_range[0] < self.picture_range[1]
        ):
            raise ValueError(f"picture_range is a lower and a higher value, got {self.picture_range}.")


def load_image_processor(model: ModelArguments, data: ImageArguments | None = None) -> Any:
    """Load the pretrained model's image processor, or make one that fits the config; `data` is not used."""
    if model.model_name_or_path:
        with stage(f"the image processor of {model.model_name_or_path!r} cannot be loaded"):
            return AutoImageProcessor.from_pretrained(model.model_name_or_path)
    config = model.make_config()
    size = getattr(config, "image_size", 224)
    if getattr(config, "num_channels", 3) != 3:
        raise ValueError("model_config: num_channels must be 3, because pipeline() gives a model RGB images.")
    from transformers import ViTImageProcessor  # importing it warns about a missing torchvision

    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )


def prepare_images(
    splits: datasets.DatasetDict, processor: Any, data: ImageArguments, label_column: str
) -> datasets.DatasetDict:
    """Make the splits return pixel values; pictures are decoded when a batch needs them.

    Args:
        splits: the data.
        processor: the image processor.
        data: the column with the images; its `picture_range` is set where pictures have more than 8 bits.
        label_column: the column with the labels, which stays.

    Returns:
        The splits with a transform.

    Raises:
        ValueError: the column is not an image column.
    """
    features = next(iter(splits.values())).features
    if not isinstance(features.get(data.image_column), datasets.Image):
        raise ValueError(f"column {data.image_column!r} is not an image column; the columns are {', '.join(features)}.")
    if data.picture_range is None and "train" in splits and (limits := _range_of(splits["train"], data.image_column)):
        data.picture_range = list(limits)
        logger.warning(
            "The pictures have more than 8 bits: grey values from %g to %g are scaled to 0 to 255. Do the same before "
            "you give pictures to pipeline(), which would cut off values above 255.",
            *limits,
        )
    return splits.with_transform(_to_pixels(processor, data, label_column))


def _range_of(train: datasets.Dataset, image_column: str) -> tuple[float, float] | None:
    pictures = (open_picture(row[image_column]) for row in raw_pictures(train, image_column) if row[image_column])
    return value_range(picture for picture in pictures if picture.mode in WIDE_MODES)


def _to_pixels(processor: Any, data: ImageArguments, label_column: str) -> Callable[[dict], dict]:
    image_column = data.image_column
    limits = None if data.picture_range is None else (data.picture_range[0], data.picture_range[1])

    def transform(batch: dict[str, list]) -> dict[str, Any]:
        images = [to_rgb(image, limits) for image in batch[image_column]]
        return {
            "pixel_values": processor(images, return_tensors="pt")["pixel_values"],
            label_column: batch[label_column],
        }

    return transform


IMAGES = Recipe(
    ImageArguments,
    AutoModelForImageClassification,
    load_image_processor,
    prepare_images,
    "images",
    {"remove_unused_columns": False},  # the transform needs the image column, which the model's forward does not name
)


def train_images(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train on images with `train_classifier`.

    Args:
        argv: the command line without the program's name; None: that of this process.

    Returns:
        Run name to its results, which are also saved.
    """
    return train_classifier(argv, IMAGES)
