"""Faults of the data are found before training, by split and row, and can be left out."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_sharp.data.checking import Checks, check_splits
from hf_sharp.data.pictures import fault_of
from hf_sharp.recipe import runs
from hf_sharp.recipe.images import train_images
from hf_sharp.recipe.texts import _OFFSET_POSITIONS, TextArguments, fit_tokenizer, train_texts
from tests.inputs.commands import no_traceback, recipe  # noqa: F401
from tests.recipes.conftest import QUICK, TINY_VIT, bert_folder, image_folder, texts  # noqa: F401


def encoded(kind, size=600):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


def fault(content, full=False):
    return fault_of({"bytes": content, "path": None}, full)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("size", [60, 600])
def test_truncated_pictures_of_every_format_are_found_without_decoding_the_sound_ones(kind, size):
    content = encoded(kind, size)
    assert fault(content)[0] is None
    assert fault(content, full=True) == (None, True)
    assert fault(content[: len(content) * 2 // 3])[0], "two thirds of the file"
    if kind in ("JPEG", "PNG") and size == 600:
        assert not fault(content)[1], "header and end only"


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"], ids=repr)
def test_files_that_are_no_pictures(content):
    assert fault(content)[0]


def test_a_picture_damaged_in_the_middle_is_found_by_the_full_check_alone():
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 0xFF
    assert fault(bytes(content))[0] is None
    assert fault(bytes(content), full=True)[0]


def test_missing_files_and_missing_pictures(tmp_path):
    assert fault_of({"bytes": None, "path": str(tmp_path / "gone.png")}, False)[0] == "the file does not exist"
    assert fault_of(None, False)[0] == "there is no picture"


# ---- rows of texts and labels ------------------------------------------------------------------------------------


def rows(**columns):
    return {"train": datasets.Dataset.from_dict(columns)}


@pytest.mark.parametrize("empty", ["", "   ", "\n\t", None], ids=repr)
def test_an_empty_text_is_named_by_row_and_can_be_left_out(empty):
    splits = rows(text=["a", "b", empty, "d"], label=[0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"split 'train', row 3.*: the text is empty.*--skip_broken"):
        check_splits(splits, "label", Checks(), text_column="text")
    sound, left_out = check_splits(splits, "label", Checks(skip_broken=True), text_column="text")
    assert sound["train"]["text"][:] == ["a", "b", "d"]
    assert left_out == {"train": 1}
    assert check_splits(splits, "label", Checks("off"), text_column="text")[1] == {}


@pytest.mark.parametrize(
    "labels", [["a", "", "b"], ["a", "  ", "b"], ["a", None, "b"], [0, None, 1], [0.0, float("nan"), 1.0]], ids=str
)
def test_a_missing_label_is_named_by_row_and_can_be_left_out(labels):
    splits = rows(text=["x", "y", "z"], label=labels)
    with pytest.raises(ValueError, match=r"split 'train', row 2.*: there is no label"):
        check_splits(splits, "label", Checks())
    sound, left_out = check_splits(splits, "label", Checks(skip_broken=True))
    assert sound["train"]["text"][:] == ["x", "z"]
    assert left_out == {"train": 1}


def test_of_many_faults_three_are_named():
    splits = rows(text=["", *["x"] * 10, *[""] * 9], label=[0, 1] * 10)
    with pytest.raises(ValueError, match=r"row 1.*row 12.*row 13.*; and 7 more in this split"):
        check_splits(splits, "label", Checks(), text_column="text")


# ---- recipes -----------------------------------------------------------------------------------------------------


def truncate(image_folder, name):  # noqa: F811
    from pathlib import Path

    file = Path(image_folder, name)
    file.write_bytes(file.read_bytes()[:-30])
    return file


@pytest.fixture
def argv(image_folder, tmp_path):  # noqa: F811
    return ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("name", ["test/dog/1.png", "train/emu/2.png"])
def test_a_truncated_picture_in_any_split_stops_before_training(name, image_folder, argv, tmp_path, capsys):  # noqa: F811
    truncate(image_folder, name)
    said = recipe(capsys, train_images, *argv)
    assert name in said
    assert f"split {name.split('/')[0]!r}, row " in said
    assert "--skip_broken true" in said
    assert not (tmp_path / "out").exists()


def test_broken_pictures_are_left_out_and_counted(image_folder, argv, tmp_path):  # noqa: F811
    truncate(image_folder, "test/dog/1.png")
    truncate(image_folder, "train/cat/4.png")
    report = train_images([*argv, "--skip_broken", "true"])["logit_adjusted"]["report"]
    assert report["class_counts"] == [11, 6, 3]
    assert report["per_class_support"] == [3, 2, 3]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["data"]["left_out"] == {"train": 1, "test": 1}


def test_the_model_is_saved_before_the_test_split_is_read(argv, tmp_path, monkeypatch):
    def fail(self, dataset):
        raise OSError("image file is truncated")

    monkeypatch.setattr("hf_sharp.trainer.sharp_trainer.SharpTrainer.predict", fail)
    with pytest.raises(
        ValueError, match=r"the model is saved in .*, but the test split cannot be evaluated: image file"
    ):
        train_images(argv)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert (tmp_path / "out" / "trainer_state.json").exists()


def test_every_trainer_is_made_before_the_first_training(argv, tmp_path, monkeypatch):
    made, trained = [], []
    monkeypatch.setattr(runs, "_train_and_evaluate", lambda *a: trained.append(a))
    with pytest.raises(ValueError, match="needs cosine logits"):
        train_images([*argv, "--loss", "ldam", "--compare_with", "baseline"])
    assert (made, trained) == ([], [])


# ---- tokenizers --------------------------------------------------------------------------------------------------


class Words:
    """As much of a tokenizer as is looked at."""

    def __init__(self, size=100, special=4, pad_token="[PAD]", eos_token="</s>"):
        self.size, self.all_special_tokens = size, [f"<{i}>" for i in range(special)]
        self.pad_token, self.eos_token = pad_token, eos_token

    def __len__(self):
        return self.size


class Config:
    def __init__(self, **values):
        vars(self).update({"model_type": "bert", "vocab_size": 100, "max_position_embeddings": 64} | values)


def test_texts_are_truncated_to_the_positions_of_the_model(caplog):
    for config, positions in ((Config(), 64), (Config(model_type="roberta", pad_token_id=1), 62)):
        data = TextArguments()
        fit_tokenizer(Words(), config, "t", data)
        assert data.max_length == positions
    assert "truncated to 62 tokens" in caplog.text
    data = TextArguments(max_length=20)
    fit_tokenizer(Words(), Config(), "t", data)
    assert data.max_length == 20


SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SMALL |= {"vocab_size": 100, "max_position_embeddings": 16, "pad_token_id": 1, "position_embedding_type": "absolute"}
OWN = {
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "esm": {"mask_token_id": 3},
}


@pytest.mark.parametrize(
    ("kind", "pad"), [(kind, pad) for kind in _OFFSET_POSITIONS for pad in (1, 3) if (kind, pad) != ("mpnet", 3)]
)  # MPNet counts from 2, whatever its padding token
def test_texts_of_the_largest_length_run_and_longer_ones_do_not(kind, pad):
    config = AutoConfig.for_model(kind, **SMALL | OWN.get(kind, {}) | {"pad_token_id": pad})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    data = TextArguments()
    fit_tokenizer(Words(), config, "t", data)
    for length in (data.max_length, data.max_length - 3):
        with torch.no_grad():
            assert model(input_ids=torch.full((2, length), 5)).logits.isfinite().all()
    with torch.no_grad(), pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((2, data.max_length + 1), 5))


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token(caplog):
    tokenizer = Words(pad_token=None)
    fit_tokenizer(tokenizer, Config(), "t", TextArguments())
    assert tokenizer.pad_token == "</s>"
    with pytest.raises(ValueError, match="no padding token"):
        fit_tokenizer(Words(pad_token=None, eos_token=None), Config(), "t", TextArguments())


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [(Words(101), "101 tokens, but the model has embeddings for 100"), (Words(5, 5), "has only 5 special tokens")],
    ids=["too large", "no words"],
)
def test_a_tokenizer_of_another_model(tokenizer, message):
    with pytest.raises(ValueError, match=message + ".*--tokenizer_name"):
        fit_tokenizer(tokenizer, Config(), "t", TextArguments())


def test_gpt2_trains_without_a_pad_token_and_texts_longer_than_its_positions(bert_folder, tmp_path):  # noqa: F811
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt2")
    data = datasets.Dataset.from_dict(texts((20, 8, 4)))
    data = data.map(lambda row: {"text": f"{row['text']} " * 20})
    data.to_csv(str(tmp_path / "data.csv"))
    argv = ["--dataset", str(tmp_path / "data.csv"), "--test_fraction", "0.25", *QUICK]
    argv += ["--model_name_or_path", str(tmp_path / "gpt2"), "--output_dir", str(tmp_path / "out")]
    assert sum(train_texts(argv)["logit_adjusted"]["report"]["per_class_support"]) == 8
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] is not None
