import datasets
import numpy as np
import pytest
import torch

from hf_sharp import split_validation
from hf_sharp.data.split import drop_repeats


def data(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    return datasets.Dataset.from_dict({"id": range(len(labels)), "label": labels.tolist()})


def test_every_class_is_split_by_the_fraction():
    train, validation = split_validation(data([100, 50, 10]), 0.2)
    assert np.bincount(train["label"]).tolist() == [80, 40, 8]
    assert np.bincount(validation["label"]).tolist() == [20, 10, 2]
    assert sorted([*train["id"], *validation["id"]]) == list(range(160))


def test_every_class_keeps_a_training_example_and_the_small_ones_are_named(caplog):
    source = data([40, 2, 1]).cast_column("label", datasets.ClassLabel(names=["cat", "dog", "emu"]))
    train, validation = split_validation(source, 0.1)
    assert np.bincount(train["label"]).tolist() == [36, 2, 1]
    assert np.bincount(validation["label"]).tolist() == [4]
    assert "2 classes are too small for a validation example: 'dog', 'emu'" in caplog.text
    train, validation = split_validation(source, 0.5)
    assert np.bincount(train["label"]).tolist() == [20, 1, 1]


def test_the_seed_decides():
    first, second, other = (split_validation(data([50, 50]), 0.2, seed)[1]["id"][:] for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize("fraction", [0.0, -0.1, 0.6, float("nan")])
def test_bad_fractions(fraction):
    with pytest.raises(ValueError, match=r"must be a number > 0 and <= 0.5, got"):
        split_validation(data([10, 10]), fraction)


def test_nothing_left_to_validate_on():
    with pytest.raises(ValueError, match=r"0.1 holds out no example: the largest class has 3"):
        split_validation(data([3, 2]), 0.1)


def test_an_empty_dataset():
    with pytest.raises(ValueError, match="the dataset is empty"):
        split_validation(data([3, 2]).select([]), 0.1)


def test_labels_that_are_names():
    train, validation = split_validation(datasets.Dataset.from_dict({"label": ["b"] * 20 + ["a"] * 10}), 0.2)
    assert (train["label"].count("b"), validation["label"].count("a")) == (16, 2)


def test_a_group_is_not_divided():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [120, 60, 3])
    patients = [f"{label}-{rng.integers(len(labels) // 6)}" for label in labels[:-3]] + ["2-a"] * 3
    source = datasets.Dataset.from_dict({"id": range(183), "label": labels, "patient": patients})
    source = source.select(rng.permutation(183))
    train, validation = split_validation(source, 0.25, group_column="patient")
    assert not set(train["patient"]) & set(validation["patient"])
    assert sorted([*train["id"], *validation["id"]]) == list(range(183))
    for label in (0, 1):
        of_class = {name for name in patients if name.startswith(f"{label}-")}
        held = {name for name in validation["patient"] if name.startswith(f"{label}-")}
        assert len(held) == int(len(of_class) / 4 + 0.5)
    assert "2-a" in train["patient"][:]  # the only patient of its class


def test_the_first_of_repeated_rows_stays(caplog):
    rows = datasets.Dataset.from_dict({"id": ["b", "a", "b", "c", "a"], "row": range(5)})
    assert drop_repeats(rows, "id")["row"][:] == [0, 1, 3]
    assert "Left out: 2 rows that repeat a value of 'id'." in caplog.text


def test_columns_that_cannot_group():
    with pytest.raises(ValueError, match=r"there is no column 'patient'; the columns are 'id', 'label'"):
        split_validation(data([10, 10]), 0.2, group_column="patient")
    rows = data([10, 10]).add_column("patient", ["x", None, *"abcdefghijklmnopqr"])
    with pytest.raises(ValueError, match=r"row 1 has no value in column 'patient'"):
        split_validation(rows, 0.2, group_column="patient")


@pytest.mark.parametrize("data", [[{"label": 0}], torch.utils.data.Subset([{"label": 0}], [0]), "photos"])
def test_other_kinds_of_datasets_are_refused_by_name(data):
    with pytest.raises(ValueError, match=f"got {type(data).__name__} to split, expected a datasets.Dataset"):
        split_validation(data)
