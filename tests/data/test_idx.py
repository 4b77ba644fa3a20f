import struct

import numpy as np
import pytest

from hf_sharp.data.idx import is_idx_folder, read_idx
from hf_sharp.datasets import load_idx


def write(folder, stem, images, labels):
    header = b"\0\0\x08\x03" + struct.pack(">3I", *images.shape)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
        b"\0\0\x08\x01" + struct.pack(">I", len(labels)) + labels.tobytes()
    )


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for stem, count in (("train", 7), ("t10k", 3)):
        write(
            tmp_path, stem, rng.integers(0, 256, (count, 5, 4), dtype=np.uint8), (np.arange(count) % 3).astype(np.uint8)
        )
    return tmp_path


def test_pixels_and_labels_survive(folder):
    data = load_idx(folder)
    assert {split: len(rows) for split, rows in data.items()} == {"train": 7, "test": 3}
    assert data["train"].features["label"].names == ["0", "1", "2"]
    assert data["train"]["label"][:] == [0, 1, 2, 0, 1, 2, 0]
    pixels = read_idx(folder / "train-images-idx3-ubyte")
    assert all(np.array_equal(np.array(image), pixels[i]) for i, image in enumerate(data["train"]["image"]))


def test_a_truncated_file(folder):
    file = folder / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="is truncated: expected 60 bytes by its header, got 57"):
        load_idx(folder)


def test_a_file_that_is_not_idx(folder):
    (folder / "t10k-images-idx3-ubyte").write_bytes(b"hello there")
    with pytest.raises(ValueError, match="is not an IDX file of unsigned bytes"):
        load_idx(folder)


def test_images_and_labels_that_differ_in_number(folder):
    write(folder, "t10k", np.zeros((3, 5, 4), np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="test has 3 images and 2 labels"):
        load_idx(folder)


def test_a_missing_file(folder):
    assert is_idx_folder(folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert not is_idx_folder(folder)
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx"):
        load_idx(folder)
