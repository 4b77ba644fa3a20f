"""Fixed views of an image for test-time augmentation: the same for every image, without random numbers."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageOps

from hf_sharp.registry.nearest import check_name

_ZOOM = 248 / 224  # LIFT crops 224 pixels from 248
_CORNERS = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))


@dataclass(frozen=True)
class View:
    """One crop of an image, optionally mirrored.

    The image is resized so that its shorter side is 248 / 224 times that of the result, and the result is cropped from
    it. PIL does both in one operation.

    Args:
        place: the horizontal and vertical position of the crop, from 0 (left or top) to 1 (right or bottom).
        mirrored: whether to swap left and right.

    Example:
        >>> View((0.5, 0.5))(Image.new("RGB", (40, 30)), (8, 8), Image.Resampling.BICUBIC).size
        (8, 8)
    """

    place: tuple[float, float]
    mirrored: bool = False

    def __call__(self, picture: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
        """Crop the view from an image.

        Args:
            picture: an image of any size.
            size: height and width of the result, in pixels.
            resample: PIL's filter for resizing.

        Returns:
            The cropped view.
        """
        height, width = size
        scale = max(width * _ZOOM / picture.width, height * _ZOOM / picture.height)
        across, down = width / scale, height / scale
        left, upper = self.place[0] * (picture.width - across), self.place[1] * (picture.height - down)
        view = picture.resize((width, height), Image.Resampling(resample), (left, upper, left + across, upper + down))
        return ImageOps.mirror(view) if self.mirrored else view


_FIVE = tuple(View(place) for place in _CORNERS)
# The sets of views by name; `five_crop` is LIFT's (arXiv 2309.10019).
TTA: dict[str, tuple[View, ...]] = {
    "none": (),
    "five_crop": _FIVE,
    "ten_crop": (*_FIVE, *(View(place, True) for place in _CORNERS)),
}


def check_tta(name: str) -> None:
    """Raise a ValueError if the set of views is unknown."""
    check_name("tta", name, TTA)
