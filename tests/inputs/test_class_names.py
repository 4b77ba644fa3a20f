"""Class names of data, model and other data are compared by one function: aligned, a subset, or refused."""

import logging

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_sharp import cli
from hf_sharp.data.class_names import align_names, match_names, real_names
from hf_sharp.data.label_columns import align_dataset, name_classes
from hf_sharp.model.class_rows import class_axes, permute_classes, renew_head
from hf_sharp.recipe.arguments import ModelArguments
from hf_sharp.recipe.models import load_model
from tests.conftest import make_vit
from tests.recipes.conftest import bert_folder, image_folder, vit_folder  # noqa: F401


def labelled(names, labels):
    data = datasets.Dataset.from_dict({"x": list(range(len(labels))), "label": labels})
    return data.cast_column("label", datasets.ClassLabel(names=names))


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    return model


# ---- the decision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["c", "b", "a"], ["b", "a", "c"], ["a", "b", "c"]], ids="".join)
def test_the_same_names_are_aligned(names):
    assert align_names(names, ["a", "b", "c"], "the data", "the model").tolist() == ["abc".index(n) for n in names]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "d"], r"\('a', 'b', 'd'\) are not those of the model \('a', 'b', 'c'\).*has 'd'.*lacks.*has 'c'"),
        (["a", "b", "c", "d"], r"the data has 'd', which the model lacks"),
        (["a", "b"], r"the model has 'c', which the data lacks"),
        (["A", "B", "C"], r"the data has 'A', 'B', 'C', which the model lacks"),
        (["a", "b", "c "], r"the data has 'c ', which the model lacks"),
    ],
)
def test_other_names_are_refused_with_both_lists_and_the_remedy(names, message):
    with pytest.raises(ValueError, match=message + r".*\. Do this\.$"):
        align_names(names, ["a", "b", "c"], "the data", "the model", remedy="Do this.")


@pytest.mark.parametrize("names", [["b"], ["c", "a"], ["a", "b"]], ids="".join)
def test_a_subset_is_allowed_for_evaluation(names):
    assert align_names(names, list("abc"), "it", "that", subset=True).tolist() == ["abc".index(name) for name in names]
    with pytest.raises(ValueError, match="it has 'x', which that lacks"):
        align_names([*names, "x"], list("abc"), "it", "that", subset=True)


def test_numbers_and_generated_names_are_no_names():
    assert match_names(["0", "1"], ["ham", "spam"], "the data", "the model") is None
    assert real_names({0: "LABEL_0", 1: "LABEL_1"}, 2) is None
    assert real_names({"0": "ham", "1": "spam"}, 2) == ["ham", "spam"]
    assert real_names({0: "ham"}, 2) is None
    with pytest.raises(ValueError, match="are not those of"):
        match_names(["1", "2"], ["ham", "spam"], "the data", "the model")


# ---- datasets ----------------------------------------------------------------------------------------------------


def test_a_dataset_is_aligned_by_name_and_keeps_rows_format_and_unlabelled_examples():
    data = labelled(["c", "b", "a"], [0, 1, 2, -1, 2]).select([4, 3, 0]).with_format("numpy", columns=["label"])
    aligned = align_dataset(data, "label", ["a", "b", "c"], "the test set", "the model")
    assert aligned["label"][:].tolist() == [0, -1, 2]
    assert aligned.features["label"].names == ["a", "b", "c"]
    assert aligned.format["columns"] == ["label"]
    assert aligned.with_format(None)["x"][:] == [4, 3, 0]


def test_a_transform_survives_the_alignment():
    data = labelled(["b", "a"], [0, 1]).with_transform(lambda batch: {"label": batch["label"], "seen": batch["label"]})
    assert align_dataset(data, "label", ["a", "b"], "it", "that")[0] == {"label": 1, "seen": 1}


def test_a_dataset_of_fewer_classes_is_aligned_and_the_absent_ones_are_named(caplog):
    aligned = align_dataset(
        labelled(["c", "a"], [0, 1]), "label", list("abc"), "the test set", "the model", subset=True
    )
    assert aligned["label"][:] == [2, 0]
    assert "the test set has no examples of 'b'" in caplog.text


@pytest.mark.parametrize(
    "data", [[{"label": 0}], datasets.Dataset.from_dict({"label": ["a", "b"]})], ids=["list", "text"]
)
def test_data_without_declared_classes_comes_back_unchanged(data):
    assert align_dataset(data, "label", ["b", "a"], "it", "that") is data


def test_names_that_look_alike_and_classes_of_the_test_split_alone_are_told(caplog):
    splits = {
        "train": datasets.Dataset.from_dict({"label": ["ham", "ham ", "spam", "eggs"]}),
        "test": datasets.Dataset.from_dict({"label": ["Spam", "bacon", "ham", "bacon"]}),
    }
    assert len(name_classes(splits, "label")["train"].features["label"].names) == 6
    assert "differ only in spaces or capitals are different classes: 'Spam', 'spam'; 'ham', 'ham '" in caplog.text
    assert "Split 'test' has 3 examples of classes without training examples" in caplog.text
    assert "cannot be recognised: 'Spam', 'bacon'" in caplog.text
    caplog.clear()
    name_classes({"train": splits["train"].select([0, 2, 3]), "test": splits["test"].select([2])}, "label")
    assert caplog.text == ""


COMPOSED, APART = "café", "cafe\u0301"  # the same to a reader


def test_accents_are_the_same_however_they_are_stored(caplog):
    assert align_names([APART, "a"], ["a", COMPOSED], "the data", "the model").tolist() == [1, 0]
    assert align_dataset(labelled([APART, "a"], [0, 1]), "label", ["a", COMPOSED], "it", "that")["label"][:] == [1, 0]
    text = {split: datasets.Dataset.from_dict({"label": [APART, COMPOSED, "a"]}) for split in ("train", "test")}
    assert name_classes(text, "label")["test"].features["label"].names == ["a", COMPOSED]
    assert name_classes(text, "label", [APART, "a"])["train"]["label"][:] == [0, 0, 1]
    assert "one class" not in caplog.text
    declared = {split: labelled([COMPOSED, APART, "a"], [0, 1, 2]) for split in ("train", "test")}
    named = name_classes(declared, "label")["train"]
    assert (named.features["label"].names, named["label"][:]) == ([COMPOSED, "a"], [0, 0, 1])
    assert "differ only in the Unicode form of their accents are one class" in caplog.text


@pytest.mark.parametrize("pair", [["ham", "ham\u200b"], ["ham", "ham\u00a0"], ["STRASSE", "Straße"]], ids=ascii)
def test_names_that_a_reader_cannot_tell_apart_are_told(pair, caplog):
    name_classes({"train": datasets.Dataset.from_dict({"label": pair})}, "label")
    assert "are different classes" in caplog.text


# ---- heads -------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "num_labels": 3}
TEXT = SMALL | {"vocab_size": 20, "max_position_embeddings": 16, "pad_token_id": 0}
HEADS = {
    "a linear layer": lambda: BertForSequenceClassification(BertConfig(**TEXT)),
    "two layers": lambda: RobertaForSequenceClassification(RobertaConfig(**TEXT)),
    "two heads": lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(image_size=8, patch_size=4, **SMALL)),
    "as many classes as features": lambda: BertForSequenceClassification(BertConfig(**TEXT | {"num_labels": 8})),
    "a head in a sequence": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3)
    ),
}


def logits_of(model):
    model.eval()
    torch.manual_seed(0)
    text = "vocab_size" in model.config.to_dict()
    size = getattr(model.config, "image_size", 32)
    inputs = {"input_ids": torch.arange(2, 8)[None]} if text else {"pixel_values": torch.randn(1, 3, size, size)}
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("head", HEADS)
def test_permuted_rows_permute_the_logits(head):
    torch.manual_seed(0)
    model = HEADS[head]()
    before = logits_of(model)
    order = np.random.default_rng(0).permutation(model.config.num_labels).tolist()
    permute_classes(model, order)
    torch.testing.assert_close(logits_of(model), before[:, order])


@pytest.mark.parametrize("head", HEADS)
def test_a_renewed_head_has_other_rows_and_the_rest_stays(head):
    torch.manual_seed(0)
    model = HEADS[head]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    renew_head(model)
    axes = class_axes(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= axes.keys()
    assert changed, "the weights; a bias of zeros stays"


# ---- fine-tuning a checkpoint --------------------------------------------------------------------------------------


@pytest.fixture
def spam_ham(tmp_path):
    torch.manual_seed(0)
    model = named(BertForSequenceClassification(BertConfig(**TEXT | {"num_labels": 2})), ["spam", "ham"])
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def loaded(folder, names, **options):
    return load_model(AutoModelForSequenceClassification, ModelArguments(model_name_or_path=folder, **options), names)


def test_the_rows_of_a_checkpoint_follow_the_names(spam_ham, caplog):
    before = logits_of(AutoModelForSequenceClassification.from_pretrained(spam_ham))
    model = loaded(spam_ham, ["ham", "spam"])
    torch.testing.assert_close(logits_of(model), before[:, [1, 0]])
    assert model.config.id2label == {0: "ham", 1: "spam"}
    assert "the head's rows were put into the order of the data's classes" in caplog.text
    torch.testing.assert_close(logits_of(loaded(spam_ham, ["spam", "ham"])), before)


@pytest.mark.parametrize("names", [["ham", "scam"], ["a", "b"], ["ham", "spam", "scam"], ["HAM", "SPAM"]], ids=",".join)
def test_a_checkpoint_of_other_classes_is_refused_unless_the_head_is_to_be_new(names, spam_ham):
    with pytest.raises(ValueError, match=r"'spam', 'ham'.*--new_head true.*--class_names"):
        loaded(spam_ham, names)
    model = loaded(spam_ham, names, new_head=True)
    assert list(model.config.id2label.values()) == names
    old = AutoModelForSequenceClassification.from_pretrained(spam_ham)
    assert model.classifier.weight.shape[0] == len(names)
    assert not torch.equal(model.classifier.weight[:2], old.classifier.weight)
    assert torch.equal(model.bert.pooler.dense.weight, old.bert.pooler.dense.weight)


def test_classes_that_are_numbers_take_the_names_of_the_checkpoint(spam_ham):
    before = logits_of(AutoModelForSequenceClassification.from_pretrained(spam_ham))
    model = loaded(spam_ham, ["0", "1"])
    torch.testing.assert_close(logits_of(model), before)
    assert model.config.id2label == {0: "spam", 1: "ham"}


@pytest.mark.parametrize(
    "task",
    [
        {"num_labels": 1},
        {"problem_type": "regression", "num_labels": 2},
        {"problem_type": "multi_label_classification"},
    ],
    ids=str,
)
def test_a_model_of_another_task_gets_a_new_head_with_a_warning(task, tmp_path, caplog):
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**TEXT | task)).save_pretrained(tmp_path / "model")
    names = ["a", "b", "c"][: task.get("num_labels", 3)] if task.get("num_labels") != 1 else ["a", "b"]
    model = loaded(str(tmp_path / "model"), names)
    assert model.config.problem_type == "single_label_classification"
    assert model.config.num_labels == len(names)
    assert f"the head is new, for {len(names)} classes" in caplog.text
    old = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert not torch.equal(model.classifier.weight[:1], old.classifier.weight[:1])


def test_a_generated_head_of_another_size_is_replaced_without_a_question(vit_folder, monkeypatch):  # noqa: F811
    told = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    for _ in range(2):
        model = load_model(AutoModelForImageClassification, ModelArguments(model_name_or_path=vit_folder), list("abc"))
        assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert sum("LOAD REPORT" in text for text in told) == 1, "runs side by side load the same model again"


def test_what_is_done_to_a_head_is_told_once(spam_ham, caplog):
    for _ in range(2):
        assert loaded(spam_ham, ["ham", "scam"], new_head=True).config.num_labels == 2
    assert [record.levelname for record in caplog.records if "the head is new" in record.message] == ["WARNING"]


# ---- evaluating a model --------------------------------------------------------------------------------------------


@pytest.fixture
def perfect(image_folder, tmp_path):  # noqa: F811
    """A model that knows cat, dog and emu by the mean of the pixels, with classes in the order emu, cat, dog."""
    from transformers import ViTImageProcessor

    model = named(make_vit(num_labels=3, num_channels=3), ["emu", "cat", "dog"])
    model.save_pretrained(tmp_path / "perfect")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "perfect")
    return str(tmp_path / "perfect")


def report_of(model, data, tmp_path, *flags):
    import json

    out = tmp_path / f"report{len(list(tmp_path.glob('report*')))}"
    assert cli.main(["evaluate", model, str(data), "--output_dir", str(out), *flags]) == 0
    return json.loads((out / "report.json").read_text())


def test_a_report_does_not_depend_on_the_order_of_the_classes(perfect, image_folder, tmp_path):  # noqa: F811
    by_name = report_of(perfect, image_folder, tmp_path)
    data = datasets.load_dataset("imagefolder", data_dir=image_folder)
    names = ["dog", "emu", "cat"]
    order = {index: names.index(name) for index, name in enumerate(data["train"].features["label"].names)}
    other = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"image": rows["image"], "label": [order[label] for label in rows["label"]]},
                features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}),
            )
            for split, rows in data.items()
        }
    )
    other.save_to_disk(str(tmp_path / "other"))
    again = report_of(perfect, tmp_path / "other", tmp_path)
    assert again["per_class_recall"] == by_name["per_class_recall"]
    assert again["class_counts"] == by_name["class_counts"] == [3, 12, 6]


def test_data_of_fewer_classes_is_evaluated(perfect, image_folder, tmp_path):  # noqa: F811
    import shutil

    for split in ("train", "test"):
        shutil.rmtree(f"{image_folder}/{split}/dog")
    report = report_of(perfect, image_folder, tmp_path)
    assert report["class_counts"] == [3, 12, 0]
    assert report["per_class_support"] == [3, 3, 0]


@pytest.mark.parametrize("command", ["evaluate", "adjust", "sharpness"])
def test_data_of_other_classes_is_refused(command, perfect, image_folder, tmp_path):  # noqa: F811
    from pathlib import Path

    for split in ("train", "test"):
        Path(f"{image_folder}/{split}/dog").rename(f"{image_folder}/{split}/fox")
    more = ["--strength", "1"] if command == "adjust" else []
    said = cli.main([command, perfect, image_folder, "--output_dir", str(tmp_path / "out"), *more])
    assert "'fox'" in said
    assert "'dog'" in said
    assert "--class_names" in said
