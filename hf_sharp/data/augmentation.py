"""Random augmentation of training images: crops, flips and RandAugment, determined only by seed, epoch and batch.

No global random state is read or changed. So the results do not depend on the number of workers and processes, dropout
draws the same numbers with and without augmentation, and a resumed training sees the same images.
"""

from __future__ import annotations

import importlib
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from hf_sharp.registry.nearest import check_name

AUGMENTATIONS = ("none", "crop_flip", "randaugment")
_MIXES = ("mixup", "cutmix")
_AREA = (0.08, 1.0)  # as a share of the image
_ASPECT = (3 / 4, 4 / 3)
_TRIES = 10
_OPERATIONS, _MAGNITUDE = 2, 9  # RandAugment's parameters; the largest magnitude is 30
_SMALLEST = 32  # pixels per side
_GREY = 8  # the largest difference, of 255, between the channels of a grey image

Box = tuple[float, float, float, float]


def check_augmentation(name: str) -> None:
    """Raise a ValueError if an augmentation is unknown or needs soft labels."""
    if name in _MIXES:
        raise ValueError(
            f"augment={name!r} is not supported: it mixes the labels of two examples, and the losses take one class "
            "per example, whose count they correct for. Use crop_flip or randaugment."
        )
    check_name("augment", name, ("auto", *AUGMENTATIONS))


def suggest_augmentation(pictures: Iterable[Image.Image]) -> tuple[str, str]:
    """Choose an augmentation that suits a sample of images.

    Args:
        pictures: a sample of the training images.

    Returns:
        `crop_flip` if most images are in colour and at least 32 pixels wide and high, else `none`; and the reason.

    Example:
        >>> suggest_augmentation([Image.new("L", (64, 64))])
        ('none', 'the images are grey')
    """
    small, grey, total = 0, 0, 0
    for picture in pictures:
        total += 1
        small += min(picture.size) < _SMALLEST
        grey += not _has_colour(picture)
    if 2 * small > total:
        return "none", f"the images have fewer than {_SMALLEST} pixels a side"
    if 2 * grey > total or total == 0:
        return "none", "the images are grey"
    return "crop_flip", f"the images are in colour, with at least {_SMALLEST} pixels a side"


def _has_colour(picture: Image.Image) -> bool:
    if picture.mode in ("1", "L", "LA", "I", "F") or picture.mode.startswith("I;"):
        return False
    picture.draft("RGB", (_SMALLEST, _SMALLEST))  # a JPEG need not be decoded at full size
    values = np.asarray(picture.convert("RGB").resize((_SMALLEST, _SMALLEST)), np.int16)
    return int((values.max(-1) - values.min(-1)).max()) > _GREY


def random_crop_box(width: int, height: int, aspect: float, rng: np.random.Generator) -> Box:
    """Draw the box of a random crop, as torchvision's RandomResizedCrop does.

    Area and aspect ratio are drawn until the box fits, at most ten times: the area uniformly from 0.08 to 1 times that
    of the image, the aspect ratio log-uniformly from 3/4 to 4/3 times `aspect`. If no box fits, the box is the largest
    centred one with the nearest allowed aspect ratio.

    Returns:
        Left, upper, right and lower edge, in pixels.

    Reference:
        Szegedy et al., *Going Deeper with Convolutions*, CVPR 2015.
    """
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_AREA)
        ratio = aspect * math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        across, down = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if across <= width and down <= height:
            left, upper = rng.uniform(0, width - across), rng.uniform(0, height - down)
            return left, upper, left + across, upper + down
    ratio = min(max(width / height, aspect * _ASPECT[0]), aspect * _ASPECT[1])
    across, down = min(width, height * ratio), min(height, width / ratio)
    left, upper = (width - across) / 2, (height - down) / 2
    return left, upper, left + across, upper + down


class ImageAugmentation:
    """Augments the images of a batch at random: `crop_flip`, or `crop_flip` followed by `randaugment`.

    The random numbers depend on the seed, the epoch and the images of the batch, so that an example that a sampler
    repeats looks different each time. All copies of the object, including those in workers, share the epoch.

    Args:
        name: crop_flip (a random crop, resized, and mirrored with probability ½) or randaugment (the same, followed by
            two random operations of RandAugment at magnitude 9 of 30).
        size: height and width of the results, in pixels.
        seed: an integer >= 0.
        resample: PIL's filter for resizing.

    Raises:
        ValueError: the name is unknown, or RandAugment is chosen and neither torchvision nor kornia is installed.

    Example:
        >>> augmentation = ImageAugmentation("crop_flip", (8, 8))
        >>> [picture.size for picture in augmentation([Image.new("RGB", (40, 30))] * 2)]
        [(8, 8), (8, 8)]

    Reference:
        Cubuk et al., *RandAugment*, arXiv 1909.13719.
    """

    def __init__(
        self, name: str, size: tuple[int, int], seed: int = 0, resample: int = Image.Resampling.BICUBIC
    ) -> None:
        if name not in AUGMENTATIONS[1:]:
            raise ValueError(f"an ImageAugmentation must be {' or '.join(AUGMENTATIONS[1:])}, got {name!r}.")
        self.name, self.size, self.seed, self.resample = name, size, seed, Image.Resampling(resample)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._operations: Callable[[Image.Image], Image.Image] | None = None
        self.library: str | None = None
        if name == "randaugment":
            self._operations, self.library = _randaugment()

    def __deepcopy__(self, memo: dict) -> ImageAugmentation:
        return self  # datasets copies transforms, but all copies must share the epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, on which the random numbers depend."""
        self._epoch.fill_(epoch)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """Augment the images of a batch.

        Args:
            pictures: the images, in mode RGB and of any size.

        Returns:
            The augmented images, in mode RGB and all of the same size.
        """
        prints = [zlib.crc32(p.resize((16, 16), Image.Resampling.NEAREST).tobytes()) for p in pictures]
        rng = np.random.default_rng([self.seed, int(self._epoch), *prints])
        return [self._changed(picture, rng) for picture in pictures]

    def _changed(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        height, width = self.size
        box = random_crop_box(*picture.size, width / height, rng)
        picture = picture.resize((width, height), self.resample, box)
        if rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        if self._operations is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed also seeds GPUs
                picture = self._operations(picture)
        return picture


def _randaugment() -> tuple[Callable[[Image.Image], Image.Image], str]:
    try:
        v2: Any = importlib.import_module("torchvision.transforms.v2")
        return v2.RandAugment(num_ops=_OPERATIONS, magnitude=_MAGNITUDE), "torchvision"
    except (ImportError, RuntimeError):  # not installed, or built for another version of torch
        pass
    try:
        auto: Any = importlib.import_module("kornia.augmentation.auto")
    except ImportError as error:
        raise ValueError(
            "augment='randaugment' needs torchvision or kornia: pip install 'hf-sharp[augment]'. crop_flip needs "
            "neither."
        ) from error
    return _OnTensors(auto.RandAugment(n=_OPERATIONS, m=_MAGNITUDE)), "kornia"


class _OnTensors:
    # Adapter: kornia takes tensors (1, 3, height, width) with values from 0 to 1.
    def __init__(self, operations: Any) -> None:
        self.operations = operations

    def __call__(self, picture: Image.Image) -> Image.Image:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        changed = self.operations(pixels)[0].permute(1, 2, 0)
        return Image.fromarray((changed * 255).round().clamp(0, 255).byte().numpy())
