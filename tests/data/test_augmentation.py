"""Augmentation of training pictures, and fixed views for testing: boxes, randomness, and RandAugment's libraries."""

import copy
import pickle
import random
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hf_sharp.data.augmentation import (
    ImageAugmentation,
    check_augmentation,
    random_crop_box,
    suggest_augmentation,
)
from hf_sharp.data.views import TTA, View, check_tta

BICUBIC = Image.Resampling.BICUBIC


def picture(seed=0, size=(48, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def bytes_of(pictures):
    return [p.tobytes() for p in pictures]


def test_boxes_have_the_areas_and_aspect_ratios_of_random_resized_crop():
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(100, 100, 1.0, rng) for _ in range(4000)])
    across, down = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes.max() <= 100 + 1e-9
    area, ratio = across * down / 100**2, across / down
    assert area.min() == pytest.approx(0.08, abs=0.005)
    assert area.max() > 0.95
    fits = area < 0.75  # with every aspect ratio
    assert np.quantile(area[fits], [0.25, 0.5, 0.75]) == pytest.approx([0.2475, 0.415, 0.5825], abs=0.02), "uniform"
    quarter = np.log(4 / 3) / 2
    assert np.quantile(np.log(ratio[fits]), [0.25, 0.5, 0.75]) == pytest.approx([-quarter, 0, quarter], abs=0.015)
    assert 3 / 4 - 1e-9 <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 4 / 3 + 1e-9
    assert boxes[:, 0].mean() == pytest.approx((100 - across).mean() / 2, rel=0.03), "anywhere"


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (500 - 20 / 3, 0, 500 + 20 / 3, 10)), ((10, 1000), (0, 493.33, 10, 506.67))]
)
def test_where_no_box_fits_it_is_the_largest_one_in_the_middle(size, box):
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(*size, 1.0, rng) for _ in range(20)]
    np.testing.assert_allclose(boxes[0], box, atol=0.01)


def test_the_crop_is_what_the_box_shows_and_every_second_picture_is_mirrored():
    # Left half black, right half white: which side is bright tells whether a picture is mirrored.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    augmentation = ImageAugmentation("crop_flip", (8, 8), seed=3)
    found = [np.asarray(p)[:, :, 0].astype(int) for p in augmentation([Image.fromarray(pixels)] * 600)]
    both = [p for p in found if p.min() < 50 and p.max() > 200]
    mirrored = np.mean([p[:, 0].mean() > p[:, -1].mean() for p in both])
    assert len(both) > 300
    assert mirrored == pytest.approx(0.5, abs=0.08)


def test_the_numbers_follow_from_seed_epoch_and_batch():
    batch = [picture(0), picture(1), picture(0)]
    augmentation = ImageAugmentation("crop_flip", (16, 12), seed=5)
    first = bytes_of(augmentation(batch))
    assert first == bytes_of(augmentation(batch)) == bytes_of(ImageAugmentation("crop_flip", (16, 12), 5)(batch))
    assert first[0] != first[2], "an example that is drawn twice looks different"
    assert first != bytes_of(ImageAugmentation("crop_flip", (16, 12), seed=6)(batch))
    assert first[0] != bytes_of(augmentation([picture(0), picture(2)]))[0], "in another batch, too"
    augmentation.set_epoch(1)
    second = bytes_of(augmentation(batch))
    assert not set(first) & set(second)
    augmentation.set_epoch(0)
    assert first == bytes_of(augmentation(batch))


def states():
    return zlib.crc32(torch.get_rng_state().numpy().tobytes()), str(np.random.get_state()), random.getstate()


@pytest.mark.parametrize("name", ["crop_flip", "randaugment"])
def test_no_random_state_changes(name, monkeypatch):
    if name == "randaugment":
        fake_torchvision(monkeypatch)
    augmentation, before = ImageAugmentation(name, (8, 8)), states()
    augmentation([picture()])
    assert states() == before


def test_copies_see_the_epoch():
    augmentation = ImageAugmentation("crop_flip", (8, 8))
    copied, sent = copy.deepcopy(augmentation), pickle.loads(pickle.dumps(augmentation))
    assert bytes_of(sent([picture()])) == bytes_of(augmentation([picture()]))
    augmentation.set_epoch(3)
    assert bytes_of(copied([picture()])) == bytes_of(augmentation([picture()]))


def fake_torchvision(monkeypatch):
    """A torchvision whose RandAugment has the parameters of the real one, and inverts at random."""
    made = []

    class RandAugment:
        def __init__(self, num_ops: int = 2, magnitude: int = 9, num_magnitude_bins: int = 31) -> None:
            made.append((num_ops, magnitude))

        def __call__(self, picture: Image.Image) -> Image.Image:
            assert isinstance(picture, Image.Image)
            return Image.eval(picture, lambda value: 255 - value) if torch.rand(()) < 0.5 else picture

    v2 = types.ModuleType("torchvision.transforms.v2")
    v2.RandAugment = RandAugment
    for name in ("torchvision", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", v2)
    return made


def test_randaugment_takes_torchvision_first(monkeypatch):
    made = fake_torchvision(monkeypatch)
    augmentation = ImageAugmentation("randaugment", (8, 8))
    assert made == [(2, 9)]
    assert augmentation.library == "torchvision"
    batch = [picture(i) for i in range(8)]
    plain, changed = ImageAugmentation("crop_flip", (8, 8)), augmentation(batch)
    assert bytes_of(changed) == bytes_of(augmentation(batch))
    assert bytes_of(changed[:1]) != bytes_of(plain(batch)[:1]) or bytes_of(changed) != bytes_of(plain(batch))
    torch.manual_seed(99)
    assert bytes_of(changed) == bytes_of(augmentation(batch)), "the seed of the process does not matter"


def test_randaugment_by_torchvision():
    pytest.importorskip("torchvision.transforms.v2", reason="needs torchvision")
    assert_it_changes_pictures(ImageAugmentation("randaugment", (32, 24)), "torchvision")


def without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)


def test_without_a_library_randaugment_is_refused(monkeypatch):
    without_torchvision(monkeypatch)
    monkeypatch.setitem(sys.modules, "kornia.augmentation.auto", None)
    with pytest.raises(ValueError, match=r"needs torchvision or kornia: pip install 'hf-sharp\[augment\]'"):
        ImageAugmentation("randaugment", (8, 8))


def test_randaugment_by_kornia(monkeypatch):
    without_torchvision(monkeypatch)
    assert_it_changes_pictures(ImageAugmentation("randaugment", (32, 24)), "kornia")


def assert_it_changes_pictures(augmentation, library):
    before = states()
    assert augmentation.library == library
    batch = [picture(i) for i in range(8)]
    changed = augmentation(batch)
    assert {(p.size, p.mode) for p in changed} == {((24, 32), "RGB")}
    assert bytes_of(changed) == bytes_of(augmentation(batch)) == bytes_of(copy.deepcopy(augmentation)(batch))
    plain = ImageAugmentation("crop_flip", (32, 24))(batch)
    assert bytes_of(changed)[0] != bytes_of(plain)[0] or bytes_of(changed)[1] != bytes_of(plain)[1]
    assert states() == before
    augmentation.set_epoch(1)
    assert not set(bytes_of(changed)) & set(bytes_of(augmentation(batch)))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_labels_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=r"one class per example.* Use crop_flip or randaugment"):
        check_augmentation(name)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown augment 'crops'; expected one of auto, none, crop_flip, randaugment"):
        check_augmentation("crops")
    with pytest.raises(ValueError, match="must be crop_flip or randaugment, got 'none'"):
        ImageAugmentation("none", (8, 8))
    with pytest.raises(ValueError, match="unknown tta 'flip'; expected one of none, five_crop, ten_crop"):
        check_tta("flip")


def grey(mode="L"):
    return picture().convert("L").convert(mode)


@pytest.mark.parametrize(
    ("pictures", "name"),
    [
        ([picture()] * 3, "crop_flip"),
        ([picture(size=(32, 32))], "crop_flip"),
        ([picture(size=(64, 31))], "none"),
        ([grey()], "none"),
        ([grey("RGB")], "none"),
        ([Image.new("I;16", (64, 64))], "none"),
        ([picture(), picture(), grey()], "crop_flip"),
        ([picture(), grey(), grey()], "none"),
        ([], "none"),
    ],
)
def test_what_is_suggested(pictures, name):
    assert suggest_augmentation(pictures)[0] == name


def test_a_view_in_the_middle_is_the_picture_without_its_margin():
    wide = picture(size=(62, 31))
    view = View((0.5, 0.5))(wide, (28, 28), BICUBIC)
    expected = wide.crop((17, 1, 45, 30)).crop((0, 0, 28, 29))
    # 31 pixels stand for 28 · 248 / 224, so that one pixel of the picture is one of the view.
    assert np.array_equal(np.asarray(view), np.asarray(wide.resize((28, 28), BICUBIC, (17, 1.5, 45, 29.5))))
    assert np.abs(np.asarray(view, int)[:, :, 0] - np.asarray(expected, int)[:28, :, 0]).mean() < 80


def test_the_views_are_lifts_five_crops_and_their_mirror_images():
    tall = picture(size=(31, 62))
    views = [view(tall, (28, 28), BICUBIC) for view in TTA["ten_crop"]]
    corners = [(0, 0), (3, 0), (0, 34), (3, 34)]
    for view, (left, upper) in zip(views[1:5], corners, strict=True):
        assert bytes_of([view]) == bytes_of([tall.crop((left, upper, left + 28, upper + 28))])
    for view, mirrored in zip(views[:5], views[5:], strict=True):
        assert np.array_equal(np.asarray(view)[:, ::-1], np.asarray(mirrored))
    assert TTA["five_crop"] == TTA["ten_crop"][:5]
    assert len(set(bytes_of(views))) == 10
