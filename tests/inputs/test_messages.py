"""A message names the cause, the place (split, file, row) and what to type."""

import gzip
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from hf_sharp import ClassFrequencies
from hf_sharp.data.checking import check_transform
from hf_sharp.data.loading import load, prepare_splits
from hf_sharp.data.split import drop_repeats
from hf_sharp.few_shot.domain import make_domain
from tests.inputs.commands import command, no_traceback  # noqa: F401
from tests.recipes.conftest import image_folder  # noqa: F401


def write(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize(("separator", "written"), [(";", "';'"), ("\t", "'\\t'"), ("|", "'|'")])
def test_another_separator_is_named_with_the_flag(separator, written, tmp_path, capsys, no_traceback):  # noqa: F811
    text = f"text{separator}label\na, b{separator}x\nc{separator}y\n"
    said = command(capsys, "counts", write(tmp_path, "data.csv", text))
    assert f"are separated by {written}: add --separator {written}" in said
    data = load(str(tmp_path / "data.csv"), separator=written.strip("'"))
    assert data["train"]["text"][:] == ["a, b", "c"]


@pytest.mark.parametrize("name", ["MAILS.CSV", "mails.Csv", "mails.TSV", "mails.JSONL", "mails.Parquet"])
def test_endings_may_be_in_upper_case(name, tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    kind = Path(name).suffix.lower()
    if kind in (".csv", ".tsv"):
        table.to_csv(str(tmp_path / name), sep="\t" if kind == ".tsv" else ",")
    else:
        getattr(table, "to_json" if kind == ".jsonl" else "to_parquet")(str(tmp_path / name))
    assert load(str(tmp_path / name))["train"]["label"][:] == ["x", "y"]


@pytest.mark.parametrize("name", ["mails.jsonl", "mails.json", "mails.jsonl.gz", "mails/train.jsonl"])
def test_a_line_that_is_not_json_is_named(name, tmp_path):
    rows = ['{"text": "a", "label": "x"}', '{"text": "b" "label": "y"}']
    text = "[" + ",\n".join(rows) + "]" if name.endswith(".json") else "\n".join(rows)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    file = tmp_path / name
    with pytest.raises(ValueError, match=rf"{file.name}', line 2: Expecting ',' delimiter at character 14\. Correct"):
        load(str(file.parent if "/" in name else file))


def test_a_line_separator_inside_a_text_ends_no_line_of_json(tmp_path):
    rows = '{"text": "a\u2028b", "label": "2020-01-01"}\n{"text": "c", "label": "2020-01-02"}\n'
    (tmp_path / "mails.jsonl").write_text(rows, encoding="utf-8")
    data = load(str(tmp_path / "mails.jsonl"))["train"]
    assert data["label"][:] == ["2020-01-01", "2020-01-02"]
    assert data["text"][0] == "a\u2028b"


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("TRAIN", "test"), ("training", "Testing"), ("train", "Val")], ids=str
)
@pytest.mark.parametrize("kind", ["tables", "pictures"])
def test_splits_in_capitals_are_not_mixed(names, kind, image_folder, tmp_path):  # noqa: F811
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in names:
        if kind == "tables":
            write(folder, f"{name}.csv", "text,label\na,x\nb,y\n")
        else:
            shutil.copytree(Path(image_folder, "test"), folder / name)
    capital = next(name for name in names if name != name.lower())
    with pytest.raises(ValueError, match=f"'{capital}.* would not be read as splits.*{capital}.* to {capital.lower()}"):
        load(str(folder))


def test_classes_may_be_called_as_splits_are(image_folder, tmp_path):  # noqa: F811
    for name in ("Train", "Bus"):
        shutil.copytree(Path(image_folder, "test/cat"), tmp_path / "vehicles" / name)
    assert load(str(tmp_path / "vehicles"))["train"].features["label"].names == ["Bus", "Train"]


def test_two_columns_of_one_name_are_told(tmp_path, caplog):
    data = load(str(write(tmp_path, "data.csv", "text,label,label\na,x,z\nb,y,z\n")))
    assert data["train"]["label"][:] == ["x", "y"]
    assert "has several columns named 'label': the first one is used" in caplog.text


@pytest.mark.parametrize("text", ["text,label\n\na,x\n\n\nb,y\n\n", "\n\ntext,label\na,x\nb,y\n"], ids=repr)
def test_empty_lines_in_a_table_are_no_rows(text, tmp_path):
    assert load(str(write(tmp_path, "data.csv", text)))["train"]["label"][:] == ["x", "y"]


@pytest.mark.parametrize("place", ["train/stray.png", "train/cat/deep/stray.png"])
def test_a_picture_beside_the_class_folders_is_named(place, image_folder, capsys, no_traceback):  # noqa: F811
    stray = Path(image_folder, place)
    stray.parent.mkdir(exist_ok=True)
    shutil.copy(Path(image_folder, "train/cat/0.png"), stray)
    said = command(capsys, "counts", image_folder)
    assert "not all of them are in one folder per class" in said
    assert str(stray) in said
    assert "(1 such file)" in said


def test_pictures_without_class_folders(image_folder, tmp_path, capsys, no_traceback):  # noqa: F811
    shutil.copytree(Path(image_folder, "train/cat"), tmp_path / "flat")
    said = command(capsys, "counts", tmp_path / "flat")
    assert "Put them in one folder per class, flat/CLASS/IMAGE, or add a metadata.csv" in said


@pytest.mark.parametrize("labels", [["a", "a"], ["0", "0"], ["same", "same"]], ids=str)
def test_data_of_one_class_is_called_that(labels, tmp_path, capsys, no_traceback):  # noqa: F811
    rows = "".join(f"text,{label}\n" for label in labels)
    said = command(capsys, "counts", write(tmp_path, "data.csv", f"text,label\n{rows}"))
    assert f"column 'label' has a single class, {labels[0]!r}" in said


def test_labels_that_are_all_different_are_no_labels(tmp_path):
    rows = "".join(f"text,id {i}\n" for i in range(8))
    data = load(str(write(tmp_path, "data.csv", f"text,label\n{rows}")))
    with pytest.raises(ValueError, match=r"the largest class has 1\. Is 'label' the column with the labels\?"):
        prepare_splits(data, test_fraction=0.5)


def test_messages_are_short_whatever_the_data_holds():
    wide = datasets.Dataset.from_dict({"label": [{str(i): "x" for i in range(3000)}] * 2, "text": ["a", "b"]})
    long = datasets.Dataset.from_dict({"label": ["x" * 50_000, "y" * 50_000]})
    columns = datasets.Dataset.from_dict({f"column {i}": [0, 1] for i in range(3000)})
    known = datasets.DatasetDict(train=datasets.Dataset.from_dict({"label": ["a", "b"]}))
    fails = [
        lambda: prepare_splits(datasets.DatasetDict(train=wide), test_fraction=0.5),
        lambda: ClassFrequencies.from_dataset(wide),
        lambda: drop_repeats(wide, "label"),
        lambda: prepare_splits(datasets.DatasetDict(train=long), test_fraction=0.5, class_names=["a"]),
        lambda: prepare_splits(datasets.DatasetDict(train=known["train"], test=long), class_names=["a", "b"]),
        lambda: ClassFrequencies.from_dataset(long),
        lambda: ClassFrequencies.from_dataset(columns),
        lambda: make_domain(columns.add_column("label", ["a", "b"]), "d"),
    ]
    for fail in fails:
        with pytest.raises(ValueError, match=r"(?s)^.{1,1000}$"):
            fail()


def test_a_text_of_any_length_is_read(tmp_path):
    rows = "".join(f"{'word ' * 40_000},{name}\n" for name in "ab")
    data = load(str(write(tmp_path, "data.csv", f"text,label\n{rows}")))["train"]
    assert [len(text) for text in data["text"]] == [200_000, 200_000]


@pytest.mark.parametrize("empty", [["", ""], [None, None], [-1, -1], [-100, -100]], ids=str)
def test_an_unlabelled_test_split_is_named(empty):
    train = ["a", "b"] if empty[0] in ("", None) else [0, 1]
    column = datasets.Value("string") if empty[0] in ("", None) else datasets.Value("int64")
    features = datasets.Features({"text": datasets.Value("string"), "label": column})
    data = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"text": ["x", "y"], "label": labels}, features=features)
            for split, labels in (("train", train), ("test", empty))
        }
    )
    with pytest.raises(ValueError, match=r"split 'test' has no labels: .*--test_split.*--test_fraction"):
        prepare_splits(data)


def test_one_row_without_a_label_is_named_as_a_person_counts_it(tmp_path):
    data = {split: datasets.Dataset.from_dict({"x": [1, 2], "label": ["a", "b"]}) for split in ("train", "test")}
    data["test"] = datasets.Dataset.from_dict({"x": [1, 2, 3], "label": ["a", "b", ""]})
    with pytest.raises(ValueError, match=r"split 'test', row 3: column 'label' has no label"):
        prepare_splits(datasets.DatasetDict(data))
    data["test"].to_csv(str(tmp_path / "test.csv"))
    data["test"] = load(str(tmp_path / "test.csv"))["train"]
    with pytest.raises(ValueError, match=r"split 'test', row 3 \(without the header\): column 'label' has no label"):
        prepare_splits(datasets.DatasetDict(data))


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1])),
        Subset(TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 1])), [0, 1]),
        [(np.zeros(2), 0), (np.zeros(2), 1)],
    ],
    ids=["TensorDataset", "Subset", "tuples"],
)
def test_examples_without_columns_point_to_class_frequencies(data):
    with pytest.raises(ValueError, match=r"of type tuple.*class_frequencies=ClassFrequencies.from_counts"):
        ClassFrequencies.from_dataset(data)


def test_a_transform_that_reads_a_removed_column_is_told_what_to_set():
    data = datasets.Dataset.from_dict({"image": [1, 2], "label": [0, 1]})
    with_pixels = data.with_transform(lambda batch: {"pixel_values": batch["image"], "label": batch["label"]})
    with pytest.raises(ValueError, match=r"the training set reads the column 'image'.*remove_unused_columns=False"):
        check_transform(with_pixels, ["pixel_values", "label"], "the training set")
    check_transform(with_pixels, ["image", "label"], "the training set")
    check_transform(data.with_transform(lambda batch: {"label": batch["label"]}), ["label"], "the training set")
    check_transform(data, ["label"], "the training set")


def test_a_subset_of_examples_with_columns_is_read():
    data = Subset([{"label": 0}, {"label": 1}, {"label": 1}], [0, 2])
    assert ClassFrequencies.from_dataset(data).counts.tolist() == [1, 1]
