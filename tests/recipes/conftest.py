"""Local data and models, as a user has them in place of Hub names."""

import gzip
import struct

import datasets
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from tests.conftest import make_bert, make_vit

TINY_VIT = (
    '{"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 32,'
    ' "num_hidden_layers": 1, "num_attention_heads": 2}'
)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))]
QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--use_cpu", "--save_strategy", "no"]
QUICK += ["--report_to", "none", "--disable_tqdm", "true", "--dataloader_num_workers", "0"]


def pixels(label, rng):
    return np.clip(label * 60 + rng.normal(40, 20, (8, 8)), 0, 255).astype(np.uint8)


@pytest.fixture
def image_folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, per_class in (("train", (12, 6, 3)), ("test", (3, 3, 3))):
        for label, (name, count) in enumerate(zip(("cat", "dog", "emu"), per_class, strict=True)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels(label, rng)).save(folder / f"{i}.png")
    return str(tmp_path / "images")


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "idx"
    folder.mkdir()
    for stem, count in (("train", 30), ("t10k", 9)):
        labels = (np.arange(count) % 3).astype(np.uint8)
        images = np.stack([pixels(label, rng) for label in labels])
        header = b"\0\0\x08\x03" + struct.pack(">3I", *images.shape)
        with gzip.open(folder / f"{stem}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + struct.pack(">I", count) + labels.tobytes()
        )
    return str(folder)


def texts(per_class, seed=0):
    rng = np.random.default_rng(seed)
    rows = [
        (f"w{label} " + " ".join(rng.choice(WORDS[4:], 5)), name)
        for label, (name, count) in enumerate(zip(("alpha", "beta", "gamma"), per_class, strict=True))
        for _ in range(count)
    ]
    return {"text": [text for text, _ in rows], "label": [name for _, name in rows]}


@pytest.fixture
def text_folder(tmp_path):
    """A folder of files for each format: FORMAT/train.FORMAT and FORMAT/test.FORMAT."""
    for split, per_class in (("train", (20, 8, 4)), ("test", (3, 3, 3))):
        data = datasets.Dataset.from_dict(texts(per_class))
        for kind, write in (("csv", data.to_csv), ("json", data.to_json), ("parquet", data.to_parquet)):
            (tmp_path / kind).mkdir(exist_ok=True)
            write(str(tmp_path / kind / f"{split}.{kind}"))
    return tmp_path


@pytest.fixture
def vit_folder(tmp_path):
    folder = tmp_path / "vit"
    make_vit(num_labels=2, num_channels=3).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return str(folder)


def save_bert(root):
    folder = root / "bert"
    make_bert(num_labels=2).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def bert_folder(tmp_path):
    return save_bert(tmp_path)
