"""Values keep their type: labels and texts in files are text, and names in YAML are text."""

import datetime
import decimal
import gzip
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_sharp import SharpTrainingArguments
from hf_sharp.data.loading import load, prepare_splits
from hf_sharp.recipe.arguments import DataArguments, ModelArguments, RunArguments
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.trainer.preflight import class_importance_of
from tests.recipes.conftest import image_folder  # noqa: F401


def csv_file(tmp_path, labels, name="data.csv"):
    rows = "".join(f"text {i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / name).write_text(f"text,label\n{rows}")
    return str(tmp_path / name)


def classes(splits, **options):
    """Class names and the class name of every training row."""
    train = prepare_splits(splits, test_fraction=0.5, **options)
    feature = train["train"].features["label"]
    return feature.names, sorted(feature.int2str([*train["train"]["label"], *train["test"]["label"]]))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["001", "002", "010"], ["001", "002", "010"]),
        (["true", "false"], ["false", "true"]),
        (["True", "False"], ["False", "True"]),
        (["NA", "ok"], ["NA", "ok"]),
        (["None", "Some"], ["None", "Some"]),
        (["null", "nan", "inf"], ["inf", "nan", "null"]),
        (["1e3", "1e4"], ["1e3", "1e4"]),
        (["+1", "-1"], ["+1", "-1"]),
        (["2024-01-01", "2024-02-01"], ["2024-01-01", "2024-02-01"]),
        (["1_0", "2_0"], ["1_0", "2_0"]),
        (["0x1F", "0x2F"], ["0x1F", "0x2F"]),
        (["1.0", "1e3", "0x1", "nan", "null", "yes"], ["0x1", "1.0", "1e3", "nan", "null", "yes"]),
        (["3.9", "3.10", "x"], ["3.10", "3.9", "x"]),
        ([str(10**25), str(10**25 + 1)], [str(10**25), str(10**25 + 1)]),
        (["10%", "20%"], ["10%", "20%"]),
        (["😀", "👩‍👩‍👧"], ["👩‍👩‍👧", "😀"]),
    ],
    ids=lambda value: ",".join(value),
)
def test_labels_in_a_csv_stay_what_is_written(labels, names, tmp_path):
    found, rows = classes(load(csv_file(tmp_path, labels * 4)))
    assert found == names
    assert rows == sorted(labels * 4)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([401, 4280, 25000], ["401", "4280", "25000"]),
        ([10**12, 7], ["7", "1000000000000"]),
        ([1, 2, 3], ["1", "2", "3"]),
        ([-1, 1], ["-1", "1"]),
        ([0, 1, 2, 10], ["0", "1", "2", "10"]),
        (list(range(12)), [str(index) for index in range(12)]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_integers_are_indices_only_where_they_are_dense_from_0(labels, names, kind, tmp_path):
    if kind == "csv":
        data = load(csv_file(tmp_path, labels * 4))
    else:
        table = datasets.Dataset.from_dict({"text": ["x"] * 4 * len(labels), "label": labels * 4})
        getattr(table, f"to_{kind}")(str(tmp_path / f"data.{kind}"))
        data = load(str(tmp_path / f"data.{kind}"))
    found, rows = classes(data)
    assert found == names
    assert rows == sorted(map(str, labels * 4))


@pytest.mark.parametrize("names", [["3.9", "3.10", "3.11"], ["0.5", "1.0", "1.5"], ["2.0", "1.0", "1.5"]], ids=str)
def test_numbers_with_fractions_are_names_where_they_are_listed(names, tmp_path):
    data = load(csv_file(tmp_path, names * 4))
    with pytest.raises(ValueError, match=r"holds \d\.\d+, not a class.*If such numbers are names.*--class_names"):
        classes(data)
    found, rows = classes(data, class_names=names)
    assert found == names
    assert rows == sorted(names * 4)


def test_numbers_that_are_listed_are_names_also_where_only_whole_ones_occur(tmp_path):
    data = prepare_splits(
        load(csv_file(tmp_path, ["1.0", "2.0"] * 4)), test_fraction=0.5, class_names=["1.0", "1.5", "2.0"]
    )
    assert set(data["train"]["label"]) == {0, 2}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array([2**63 + 5, 3] * 4, pa.uint64()), ["3", str(2**63 + 5)]),
        (pa.array(np.array([1, 2] * 4, np.float16)), ["1", "2"]),
        (pa.array([1e30, 2e30] * 4), ["1e+30", "2e+30"]),
        (pa.array([decimal.Decimal("1.0"), decimal.Decimal("2.0")] * 4), ["1", "2"]),
        (pa.array(["x", "y"] * 4).dictionary_encode(), ["x", "y"]),
        (pa.array(["x", "y"] * 4, pa.large_string()), ["x", "y"]),
        (pa.array([datetime.date(2024, 1, 1), datetime.date(2024, 2, 1)] * 4), ["2024-01-01", "2024-02-01"]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_labels_of_every_type_of_arrow(labels, names, tmp_path):
    pq.write_table(pa.table({"text": ["x"] * 8, "label": labels}), tmp_path / "data.parquet")
    assert sorted(classes(load(str(tmp_path / "data.parquet")))[0]) == sorted(names)


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        (["x", 3], ["x", 3], ["3", "x"]),
        (["1", "x"], [1, 1], ["1", "x"]),
        (["x", True], ["x", 0.5], ["0.5", "true", "x"]),
    ],
    ids=str,
)
def test_labels_of_several_types_in_json_are_names_without_quotes(train, test, names, tmp_path):
    for split, labels in (("train", train), ("test", test)):
        (tmp_path / f"{split}.json").write_text(json.dumps([{"text": "t", "label": label} for label in labels]))
    assert prepare_splits(load(str(tmp_path)))["train"].features["label"].names == names


@pytest.mark.parametrize("name", ["data.csv.gz", "DATA.CSV.GZ", "data.tsv.gz", "data.jsonl.gz"])
def test_compressed_files_are_read(name, tmp_path):
    rows = [("2024-01-01", "a"), ("2024-01-02", "b")] * 4
    cell = "," if "csv" in name.lower() else "\t"
    lines = [f"label{cell}text", *(f"{label}{cell}{text}" for label, text in rows)]
    if "json" in name:
        lines = [json.dumps({"text": text, "label": label}) for label, text in rows]
    (tmp_path / name).write_bytes(gzip.compress("\n".join(lines).encode()))
    assert classes(load(str(tmp_path / name)))[0] == ["2024-01-01", "2024-01-02"]


def test_integers_that_are_named_are_indices_also_with_gaps(tmp_path):
    data = prepare_splits(load(csv_file(tmp_path, [0, 2] * 4)), test_fraction=0.5, class_names=["a", "b", "c"])
    assert data["train"].features["label"].names == ["a", "b", "c"]
    assert set(data["train"]["label"]) == {0, 2}


def test_truth_values_are_names_in_parquet_and_json(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["x"] * 8, "label": [True, False] * 4})
    table.to_parquet(str(tmp_path / "data.parquet"))
    table.to_json(str(tmp_path / "data.json"))
    for kind in ("parquet", "json"):
        assert classes(load(str(tmp_path / f"data.{kind}")))[0] == ["false", "true"]


def test_texts_that_look_like_numbers_or_like_nothing_stay_texts(tmp_path):
    (tmp_path / "data.csv").write_text("text,label\n007,a\nNA,b\n1e5,a\ntrue,b\n")
    assert load(str(tmp_path / "data.csv"))["train"]["text"][:] == ["007", "NA", "1e5", "true"]


@pytest.mark.parametrize(
    "names", [["2024-01-01", "2024-02-01"], ["2024-01-01T00:00:00", "2024-01-01 10:00:00"]], ids=str
)
@pytest.mark.parametrize("lines", [True, False], ids=["lines", "array"])
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "file"])
def test_labels_in_json_that_look_like_dates_stay_what_is_written(names, lines, folder, tmp_path):
    rows = [{"text": f"text {i}", "label": name} for i, name in enumerate(names * 4)]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    (tmp_path / "train.json").write_text(text)
    found, labels = classes(load(str(tmp_path if folder else tmp_path / "train.json")))
    assert found == sorted(names)
    assert labels == sorted(names * 4)


def test_every_split_of_a_folder_is_read_alike(tmp_path):
    csv_file(tmp_path, ["01", "02"], "train.csv")
    csv_file(tmp_path, ["1", "2"], "test.csv")  # would be the numbers 1 and 2 in both
    data = prepare_splits(load(str(tmp_path)))
    assert data["train"].features["label"].names == ["01", "02", "1", "2"]


def test_labels_beside_images_stay_what_is_written(image_folder, tmp_path):  # noqa: F811
    from PIL import Image

    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(8):
        Image.new("L", (8, 8), i).save(folder / f"{i}.png")
    rows = "".join(f"{i}.png,{('001', 'NA')[i % 2]}\n" for i in range(8))
    (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")
    data = load(str(folder))
    assert isinstance(data["train"].features["image"], datasets.Image)
    assert classes(data)[0] == ["001", "NA"]
    assert np.array(data["train"][3]["image"])[0, 0] == 3


@pytest.fixture
def config(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        argument_classes = (DataArguments, ModelArguments, RunArguments, SharpTrainingArguments)
        argv = ["--config", str(tmp_path / "config.yaml"), "--model_name_or_path", "m", "--use_cpu"]
        return RecipeParser(argument_classes, argv).build()

    return write


@pytest.mark.parametrize(
    "names", [["no", "yes"], ["on", "off"], ["001", "1"], ["null", "~"], ["1.0", "1e3"], ["2024-01-01", "0o7"]], ids=str
)
def test_names_in_yaml_are_text(names, config):
    assert config(f"class_names: [{', '.join(names)}]\n")[0].class_names == names
    assert config("class_names:\n" + "".join(f"  - {name}\n" for name in names))[0].class_names == names


@pytest.mark.parametrize("name", ["no", "on", "010", "1.0", "null"])
def test_the_importance_of_a_class_named_like_a_truth_value(name, config):
    from hf_sharp import ClassFrequencies

    importance = config(f"class_importance: {{{name}: 2}}\n")[3].class_importance
    frequencies = ClassFrequencies.from_counts([3, 2], names=("other", name))
    assert class_importance_of(importance, frequencies) == [1, 2]


@pytest.mark.parametrize("option", ["dataset", "run_name", "text_column"])
def test_other_words_in_yaml_are_text_too(option, tmp_path):
    from hf_sharp.recipe.texts import TextArguments

    (tmp_path / "config.yaml").write_text(f"{option}: 007\nmodel_name_or_path: no\nuse_cpu: true\n")
    parser = RecipeParser(
        (TextArguments, ModelArguments, RunArguments, SharpTrainingArguments),
        ["--config", str(tmp_path / "config.yaml")],
    )
    assert parser.values[option] == "007"
    assert parser.values["model_name_or_path"] == "no"
    assert parser.values["use_cpu"] is True
