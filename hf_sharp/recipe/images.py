"""Images in the recipes: the options, the processor, and the transform from images to pixel values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_sharp.data.augmentation import AUGMENTATIONS, ImageAugmentation, check_augmentation, suggest_augmentation
from hf_sharp.data.columns import other_columns
from hf_sharp.data.pictures import WIDE_MODES, open_picture, raw_pictures, to_rgb, value_range
from hf_sharp.data.views import TTA, View, check_tta
from hf_sharp.recipe.arguments import DataArguments, ModelArguments
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.models import class_for, loading
from hf_sharp.recipe.training import Extras, Recipe, train_classifier
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)

_LOOKED_AT = 100  # the number of images that `augment: auto` looks at


@dataclass
class ImageArguments(DataArguments):
    """Options of image data."""

    image_column: str = field(default="image", metadata={"help": "The column with the images."})
    picture_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Images of more than 8 bits per pixel: the grey values to map to black and white. Default: the "
            "range of the training split."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.picture_range is not None and (
            len(self.picture_range) != 2 or not self.picture_range[0] < self.picture_range[1]
        ):
            raise ValueError(f"picture_range must be a lower and a higher value, got {self.picture_range}.")


@dataclass
class TrainImageArguments(ImageArguments):
    """Options of image data, with augmentation for training and views for the final report."""

    augment: str = field(
        default="auto",
        metadata={
            "help": f"Augmentation of training images: {', '.join(AUGMENTATIONS)}; or auto: crop_flip for colour "
            "images of at least 32 pixels, none for others."
        },
    )
    tta: str = field(
        default="none",
        metadata={
            "help": f"Test-time augmentation: the final report averages the logits of several crops: {', '.join(TTA)}."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_augmentation(self.augment)
        check_tta(self.tta)


def load_image_processor(model: ModelArguments, data: ImageArguments | None = None) -> Any:
    """Load the image processor of a pretrained model, or make one that fits the config; `data` is not used."""
    if name := model.model_name_or_path:
        with loading(name):
            class_for(AutoModelForImageClassification, name, model.trust_remote_code)
        with stage(f"the image processor of {name!r} cannot be loaded"):
            trusted = {"trust_remote_code": True} if model.trust_remote_code else {}
            return AutoImageProcessor.from_pretrained(name, **trusted)
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
    """Make the splits return pixel values; images are decoded only when a batch needs them.

    Args:
        splits: the data.
        processor: the image processor.
        data: the column with the images; its `picture_range` is set if images have more than 8 bits per pixel.
        label_column: the column with the labels, which is kept.

    Returns:
        The splits with a transform.

    Raises:
        ValueError: the column is not an image column.
    """
    features = next(iter(splits.values())).features
    if not isinstance(features.get(data.image_column), datasets.Image):
        raise ValueError(
            f"column {data.image_column!r} is not an image column; "
            f"{other_columns(data.image_column, list(features), '--image_column')} A table of paths is read if it is "
            "called metadata.csv, has the columns file_name and label, and is beside the images; lists of paths and "
            "labels with --split_lists. Texts are for recipes/text_classification.py."
        )
    if data.picture_range is None and "train" in splits and (limits := _range_of(splits["train"], data.image_column)):
        data.picture_range = list(limits)
        logger.warning(
            "The pictures have more than 8 bits: grey values from %g to %g are scaled to 0 to 255. Do the same before "
            "you give pictures to pipeline(), which would cut off values above 255.",
            *limits,
        )
    return splits.with_transform(ToPixels(processor, data, label_column))


def _range_of(train: datasets.Dataset, image_column: str) -> tuple[float, float] | None:
    batches = raw_pictures(train, image_column).iter(batch_size=64)
    pictures = (open_picture(value) for batch in batches for value in batch[image_column] if value)
    return value_range(picture for picture in pictures if picture.mode in WIDE_MODES)


class ToPixels:
    """The transform from images to pixel values.

    Args:
        processor: the image processor.
        data: the column with the images, and the range of their grey values.
        label_column: the column with the labels, which is kept.
        change: transforms the images of a batch to the size that the model takes; None to let the processor resize.
    """

    def __init__(
        self,
        processor: Any,
        data: ImageArguments,
        label_column: str,
        change: Callable[[list[Image.Image]], list[Image.Image]] | None = None,
    ) -> None:
        self.processor, self.image_column, self.label_column = processor, data.image_column, label_column
        self.limits = None if data.picture_range is None else (data.picture_range[0], data.picture_range[1])
        self.change = change
        if isinstance(change, ImageAugmentation):
            self.set_epoch = change.set_epoch

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        """Convert the images of a batch to `pixel_values`."""
        images = [to_rgb(image, self.limits) for image in batch[self.image_column]]
        if self.change is None:
            inputs = self.processor(images, return_tensors="pt")
        else:
            inputs = self.processor(self.change(images), do_resize=False, return_tensors="pt")
        return {"pixel_values": inputs["pixel_values"], self.label_column: batch[self.label_column]}


class _Cut:
    # Cuts the same view out of each image of a batch.
    def __init__(self, view: View, size: tuple[int, int], resample: int) -> None:
        self.view, self.size, self.resample = view, size, resample

    def __call__(self, pictures: list[Image.Image]) -> list[Image.Image]:
        return [self.view(picture, self.size, self.resample) for picture in pictures]


def input_size(processor: Any) -> tuple[int, int]:
    """Find the size of the images that a processor makes.

    Args:
        processor: the image processor.

    Returns:
        Height and width in pixels.

    Raises:
        ValueError: the size depends on the image, or the processor resizes even if told not to.
    """
    sizes = set()
    try:
        for picture in (Image.new("RGB", (64, 64)), Image.new("RGB", (96, 64))):
            sizes.add(tuple(processor(picture, return_tensors="pt")["pixel_values"].shape[-2:]))
        height, width = next(iter(sizes))
        picture = Image.new("RGB", (width, height))
        sizes.add(tuple(processor(picture, do_resize=False, return_tensors="pt")["pixel_values"].shape[-2:]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(processor).__name__} cannot take images that are already cropped: {error}. Leave augment and tta "
            "at none."
        ) from error
    if len(sizes) > 1:
        raise ValueError(
            f"{type(processor).__name__} makes images of several sizes, {sorted(sizes)}, but crops need one size. "
            "Leave augment and tta at none."
        )
    return height, width


def views_of(
    rows: datasets.Dataset, processor: Any, data: ImageArguments, label_column: str, tta: str
) -> tuple[datasets.Dataset, ...]:
    """Make the views of a split for test-time augmentation.

    Args:
        rows: a split, as `prepare_images` returns it.
        processor: the image processor.
        data: the column with the images.
        label_column: the column with the labels.
        tta: the name of the views, one of `hf_sharp.data.views.TTA`.

    Returns:
        The split once per view, each with the transform of that view.
    """
    if not TTA[tta]:
        return ()
    size, resample = input_size(processor), _resample(processor)
    changes = [_Cut(view, size, resample) for view in TTA[tta]]
    return tuple(rows.with_transform(ToPixels(processor, data, label_column, change)) for change in changes)


def _resample(processor: Any) -> int:
    filter_ = getattr(processor, "resample", None)
    return int(Image.Resampling.BICUBIC if filter_ is None else filter_)


def image_extras(
    splits: datasets.DatasetDict, processor: Any, data: TrainImageArguments, args: SharpTrainingArguments
) -> Extras:
    """Make the extras of image data: the augmentation, and the views of the test images.

    Args:
        splits: from `prepare_images`.
        processor: the image processor.
        data: `augment` and `tta`.
        args: the label column, and whether this process logs.

    Returns:
        The extras.

    Raises:
        ValueError: the library of the augmentation is missing, or the processor makes images of no fixed size.
    """
    name, why = _chosen_augmentation(splits["train"], processor, data)
    if args.process_index == 0:
        logger.warning("Augmentation of training images: %s%s.", name, why)
    record = {"augmentation": name}
    make = None
    if name != "none":
        size, resample = input_size(processor), _resample(processor)
        library = ImageAugmentation(name, size, 0, resample).library
        record |= {"augmentation_library": library} if library else {}

        def make(args: SharpTrainingArguments) -> ToPixels:
            augmentation = ImageAugmentation(name, size, args.seed_of_data, resample)
            return ToPixels(processor, data, args.label_column, augmentation)

    test = splits.get("test")
    views = () if test is None else views_of(test, processor, data, args.label_column, data.tta)
    return Extras(make, data.tta, views, record)


def _chosen_augmentation(train: datasets.Dataset, processor: Any, data: TrainImageArguments) -> tuple[str, str]:
    if data.augment != "auto":
        return data.augment, ""
    rows = np.unique(np.linspace(0, len(train) - 1, _LOOKED_AT).astype(int))
    pictures = raw_pictures(train.select(rows), data.image_column)[:][data.image_column]
    name, why = suggest_augmentation(open_picture(picture) for picture in pictures)
    if name != "none":
        try:
            input_size(processor)
        except ValueError as error:
            return "none", f", because {error}"
    return name, f", because {why}; --augment {'none turns it off' if name != 'none' else 'crop_flip turns it on'}"


IMAGES = Recipe(
    TrainImageArguments,
    AutoModelForImageClassification,
    load_image_processor,
    prepare_images,
    "images",
    image_extras,
    {"remove_unused_columns": False},  # else the image column would be removed before the transform
)


def train_images(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Train on images with `train_classifier`.

    Args:
        argv: the command line without the program's name; None for that of this process.

    Returns:
        Run name to its results, which are also saved.
    """
    return train_classifier(argv, IMAGES)
