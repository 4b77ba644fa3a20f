"""Grey values of more than 8 bits are scaled, with one range for the whole dataset: contrast survives."""

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_sharp.data.pictures import to_rgb, value_range
from hf_sharp.recipe.images import ImageArguments, prepare_images, train_images
from tests.recipes.conftest import QUICK, TINY_VIT

KINDS = {
    "16 bits": (np.uint16, 65535, (0, 65535)),
    "12 bits in 16": (np.uint16, 4000, (0, 4095)),
    "10 bits in 16": (np.uint16, 1000, (0, 1023)),
    "8 bits in 16": (np.uint16, 250, (0, 255)),
    "32-bit integers": (np.int32, 3_000_000, None),
    "negative integers": (np.int32, 1000, None),
    "fractions": (np.float32, 0.9, (0, 1)),
    "floats": (np.float32, 7000.0, None),
}


def ramp(kind, scale=1.0):
    dtype, largest, _ = KINDS[kind]
    low = -largest if kind == "negative integers" else 0
    return np.linspace(low, low + (largest - low) * scale, 64).reshape(8, 8).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_contrast_survives(kind):
    limits = value_range([Image.fromarray(ramp(kind)), Image.fromarray(ramp(kind, 0.5))])
    assert KINDS[kind][2] in (None, limits)
    rgb = to_rgb(Image.fromarray(ramp(kind)), limits)
    assert rgb.mode == "RGB"
    grey = np.array(rgb)[..., 0].ravel().astype(int)
    assert (np.diff(grey) >= 0).all()
    assert len(set(grey)) > 50, "of 64 grey values"
    assert grey.max() - grey.min() > 225
    bright = np.array(to_rgb(Image.fromarray(ramp(kind, 0.5)), limits))[..., 0]
    assert bright.max() < 0.6 * grey.max() + 10, "a darker picture stays darker: one range for all"


def test_pictures_of_8_bits_are_as_pillow_converts_them():
    for mode in ("L", "RGB", "RGBA", "P", "1", "LA", "CMYK"):
        picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).convert(
            "RGBA" if mode == "LA" else mode
        )
        picture = picture.convert(mode)
        assert value_range([picture]) is None
        assert to_rgb(picture, None).tobytes() == picture.convert("RGB").tobytes()


def test_values_that_are_not_numbers_do_not_spoil_the_range():
    values = ramp("fractions")
    values[0, 0], values[0, 1] = np.nan, np.inf
    assert value_range([Image.fromarray(values)]) == (0.0, 1.0)
    assert np.array(to_rgb(Image.fromarray(values), (0.0, 1.0))).max() == 255


@pytest.fixture
def scans(tmp_path):
    """Two classes that 16 bits tell apart, and 8 do not."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 10)):
        for name, brightness in (("dense", 3000), ("thin", 1000)):
            folder = tmp_path / "scans" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                values = np.clip(rng.normal(brightness, 100, (8, 8)), 0, 4095).astype(np.uint16)
                Image.fromarray(values).save(folder / f"{i}.png")
    return str(tmp_path / "scans")


def test_classes_that_differ_above_8_bits_are_learned_and_evaluated_with_the_same_range(scans, tmp_path, caplog):
    from hf_sharp import cli

    quick = [*QUICK, "--max_steps", "40", "--learning_rate", "1e-2"]
    argv = ["--dataset", scans, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *quick]
    report = train_images(argv)["logit_adjusted"]["report"]
    assert report["accuracy"] == 1.0
    assert "have more than 8 bits: grey values from 0 to 4095" in caplog.text
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["data"]["picture_range"] == [0.0, 4095.0]
    out = str(tmp_path / "report")
    assert cli.main(["evaluate", str(tmp_path / "out"), "--picture_range", "0", "60000", "--output_dir", out]) == 0
    assert "picture_range [0.0, 60000.0] (trained with [0.0, 4095.0])" in caplog.text


def test_the_range_comes_from_the_training_split_alone(scans):
    data = datasets.load_dataset("imagefolder", data_dir=scans)
    options = ImageArguments()
    data["test"] = data["test"].select([0])
    prepare_images(data, lambda images, **_: {"pixel_values": [np.array(image) for image in images]}, options, "label")
    assert options.picture_range == [0.0, 4095.0]
