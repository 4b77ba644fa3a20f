import datasets
import pytest

from hf_sharp.datasets import load, prepare_splits


def split(labels, names=None):
    data = datasets.Dataset.from_dict({"x": list(range(len(labels))), "label": labels})
    return data.cast_column("label", datasets.ClassLabel(names=names)) if names else data


def prepared(train, test, **options):
    return prepare_splits(datasets.DatasetDict(train=train, test=test), **options)


def test_integers_and_names_become_class_labels():
    assert prepared(split([0, 2, 1]), split([1]))["test"].features["label"].names == ["0", "1", "2"]
    named = prepared(split(["b", "a"]), split(["c"]))
    assert named["train"].features["label"].names == ["a", "b", "c"]
    assert named["train"]["label"][:] == [1, 0]


def test_class_names_rename_whatever_there_was():
    for train, test in ((split([0, 1]), split([1])), (split([0, 1], ["x", "y"]), split([1], ["x", "y"]))):
        data = prepared(train, test, class_names=["cat", "dog"])
        assert data["test"].features["label"].names == ["cat", "dog"]
        assert data["train"]["label"][:] == [0, 1]
    with pytest.raises(ValueError, match="got 2 class_names for 3 classes"):
        prepared(split([0, 1], ["x", "y", "z"]), split([1], ["x", "y", "z"]), class_names=["cat", "dog"])


def test_a_test_split_whose_classes_are_in_another_order_is_brought_into_the_training_sets():
    data = prepared(split([0, 1], ["a", "b"]), split([0, 1, 1], ["b", "a"]))
    assert data["test"].features["label"].names == ["a", "b"]
    assert data["test"]["label"][:] == [1, 0, 0]


@pytest.mark.parametrize(
    ("test", "options", "message"),
    [
        (split([0, -1]), {}, "split 'test', row 2.*: column 'label' has no label"),
        (
            datasets.Dataset.from_dict({"label": [0, -100, 1]}),
            {},
            "split 'test', row 2.*: column 'label' has no label",
        ),
        (
            datasets.Dataset.from_dict({"label": ["0", "-100"]}),
            {},
            "split 'test', row 2.*: column 'label' has no label",
        ),
        (split([0], ["a"]).remove_columns("label"), {}, "split 'test': there is no label column 'label'"),
        (split([0, 1]).select([]), {}, "split 'test' is empty"),
        (split([0, 1], ["a", "c"]), {}, "split 'test' .*'a', 'c'.* are not those of the training split .*'a', 'b'"),
        (
            split([0, 1], ["a", "b"]),
            {"test_split": "train"},
            "both 'train': the model would be tested on its training data",
        ),
        (split([0, 1], ["a", "b"]), {"test_split": "dev"}, "there is no split 'dev'; the splits are 'train', 'test'"),
        (split([0, 1], ["a", "b"]), {"test_fraction": 0.2}, "but there is a split 'test'"),
    ],
)
def test_a_bad_test_split_is_found_before_training(test, options, message):
    with pytest.raises(ValueError, match=message):
        prepared(split([0, 1, 1], ["a", "b"]), test, **options)


def test_a_snapshot_of_the_hub_with_its_data_in_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        split([0, 1, 1]).to_parquet(str(tmp_path / "data" / f"{name}-00000-of-00001.parquet"))
    assert {name: len(rows) for name, rows in load(str(tmp_path)).items()} == {"train": 3, "test": 3}


def test_a_dataset_saved_on_disk_and_a_tsv_file(tmp_path):
    split([0, 1]).save_to_disk(str(tmp_path / "saved"))
    assert list(load(str(tmp_path / "saved"))) == ["train"]
    (tmp_path / "rows.tsv").write_text("x\tlabel\n1\ta\n2\tb\n")
    assert load(str(tmp_path / "rows.tsv"))["train"].column_names == ["x", "label"]


@pytest.mark.parametrize("name", ["./nowhere", "/no/where/at/all", "a/b/c"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"'{name}' does not exist"):
        load(name)


def test_an_empty_folder_and_an_unreadable_file(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is empty"):
        load(str(tmp_path / "empty"))
    (tmp_path / "data.xml").write_text("<x/>")
    with pytest.raises(ValueError, match=r"cannot read .*data.xml.*expected one of .csv"):
        load(str(tmp_path / "data.xml"))


@pytest.mark.parametrize("declared", [False, True], ids=["text", "ClassLabel"])
def test_class_names_in_another_order_reorder_the_classes_and_keep_every_label(declared):
    train = split(["bad", "good", "bad"])
    train = train.cast_column("label", datasets.ClassLabel(names=["bad", "good"])) if declared else train
    data = prepared(train, train, class_names=["good", "bad"])["train"]
    assert data.features["label"].names == ["good", "bad"]
    assert data["label"][:] == [1, 0, 1]
