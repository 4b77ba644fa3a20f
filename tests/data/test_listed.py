"""Images named in `path label` lists: what is loaded, and what is refused with file and line."""

import numpy as np
import pytest
from PIL import Image

from hf_sharp.data.listed import load_listed, parse_lists
from hf_sharp.recipe import train_images
from tests.recipes.conftest import QUICK, TINY_VIT


@pytest.fixture
def listed(tmp_path):
    """A folder of images and two lists, with a path that holds a space."""
    lines = {"train": [], "test": []}
    for split, count in (("train", 12), ("test", 6)):
        for i in range(count):
            name = f"{split}/set a/{i}.png"
            (tmp_path / "images" / split / "set a").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / "images" / name)
            lines[split].append(f"{name} {i % 3}")
        (tmp_path / f"{split}.txt").write_text("\n".join(lines[split]) + "\n\n")
    return tmp_path


def load(listed, **lists):
    return load_listed(str(listed / "images"), lists or {s: str(listed / f"{s}.txt") for s in ("train", "test")})


def test_images_come_in_the_order_of_the_list_with_its_labels(listed):
    splits = load(listed)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 12, "test": 6}
    assert splits["train"]["label"][:] == [str(i % 3) for i in range(12)]
    assert np.asarray(splits["test"][4]["image"])[0, 0, 0] == 80


def test_a_recipe_trains_on_lists(listed, tmp_path):
    lists = [f"{split}={listed / split}.txt" for split in ("train", "test")]
    argv = ["--dataset", str(listed / "images"), "--split_lists", *lists, "--model_config", TINY_VIT]
    (results,) = train_images([*argv, "--output_dir", str(tmp_path / "out"), *QUICK]).values()
    assert results["report"]["class_counts"] == [4, 4, 4]
    assert results["report"]["per_class_support"] == [2, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:2], "train/x.png"], r"train\.txt, line 3: expected a path, a space and a label; got"),
        (lambda lines: [lines[0], "no/x.png 1"], r"images do not exist: .*train\.txt, line 2: '.*no/x\.png'"),
        (lambda lines: [f"no/{i} 1" for i in range(9)], "and 6 more"),
        (lambda lines: [], "has no lines"),
    ],
)
def test_faults_are_named_by_file_and_line(listed, change, message):
    file = listed / "train.txt"
    file.write_text("\n".join(change(file.read_text().splitlines())))
    with pytest.raises(ValueError, match=message):
        load(listed)


def test_an_image_in_two_splits_is_refused(listed):
    test = listed / "test.txt"
    test.write_text(test.read_text().strip() + "\n./train/set a/3.png 0\n")
    with pytest.raises(
        ValueError, match=r"test\.txt, line 7: .* is in two splits, 'test' and 'train' \(.*train\.txt, line 4\)"
    ):
        load(listed)


def test_what_is_no_list_is_refused(listed):
    with pytest.raises(ValueError, match=r"the list '.*none\.txt' of split_lists does not exist"):
        load(listed, train=str(listed / "none.txt"))
    (listed / "latin.txt").write_bytes("é.png 1".encode("latin1"))
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        load(listed, train=str(listed / "latin.txt"))
    with pytest.raises(ValueError, match="is not a folder"):
        load_listed("nowhere", {"train": "x"})
    with pytest.raises(ValueError, match=r"expected split=file, such as train=train\.txt; got 'train\.txt'"):
        parse_lists(["train.txt"])
    with pytest.raises(ValueError, match="names the split 'a' twice"):
        parse_lists(["a=1", "a=2"])
