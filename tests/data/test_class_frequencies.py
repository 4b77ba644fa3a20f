import sys

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from hf_sharp import ClassFrequencies
from hf_sharp.data.labels import read_labels


def dataset(labels, **columns):
    return datasets.Dataset.from_dict({"label": labels, **columns})


def test_counts_priors_and_groups():
    frequencies = ClassFrequencies.from_counts([150, 101, 100, 20, 19, 1, 0])
    assert frequencies.counts.dtype == np.int64
    assert frequencies.priors.dtype == np.float64
    np.testing.assert_allclose(frequencies.priors, np.array([150, 101, 100, 20, 19, 1, 0]) / 391)
    groups = {name: indices.tolist() for name, indices in frequencies.groups.items()}
    assert groups == {"many": [0, 1], "medium": [2, 3], "few": [4, 5, 6]}


def test_absent_classes_count_zero():
    data = dataset([0, 2, 2])
    assert ClassFrequencies.from_dataset(data, num_classes=5).counts.tolist() == [1, 0, 2, 0, 0]


def test_class_label_feature_gives_the_number_and_the_names():
    data = dataset([0, 1, 1]).cast_column("label", datasets.ClassLabel(names=["cat", "dog", "emu"]))
    frequencies = ClassFrequencies.from_dataset(data)
    assert frequencies.counts.tolist() == [1, 2, 0]
    assert frequencies.names == ("cat", "dog", "emu")


def test_a_shuffled_selected_and_sharded_dataset_counts_its_own_rows():
    data = dataset([0] * 5 + [1] * 3 + [2] * 2)
    assert ClassFrequencies.from_dataset(data.shuffle(seed=0)).counts.tolist() == [5, 3, 2]
    assert ClassFrequencies.from_dataset(data.select([0, 5, 6, 9])).counts.tolist() == [1, 2, 1]
    joined = datasets.concatenate_datasets([data.select([0, 9]), data.select([5])])
    assert read_labels(joined.shuffle(seed=1), "label").tolist().count(0) == 1
    assert read_labels(joined, "label").tolist() == [0, 2, 1]


def test_names_are_encoded_also_through_indices():
    data = dataset(["dog", "cat", "dog", "emu"])
    label2id = {"cat": 0, "dog": 1, "emu": 2}
    assert read_labels(data, "label", label2id=label2id).tolist() == [1, 0, 1, 2]
    assert read_labels(data.select([3, 0]), "label", label2id=label2id).tolist() == [2, 1]


def test_an_image_is_never_decoded_nor_a_transform_run():
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    broken = [{"bytes": b"not an image", "path": None}] * 3
    data = datasets.Dataset.from_dict({"image": broken, "label": [0, 1, 1]}, features=features)
    with pytest.raises(Exception, match="cannot identify image"):
        data[0]

    def transform(batch):
        raise AssertionError("the transform ran")

    assert ClassFrequencies.from_dataset(data).counts.tolist() == [1, 2]
    assert ClassFrequencies.from_dataset(data.with_transform(transform)).counts.tolist() == [1, 2]


def test_torch_datasets_and_streams_cost_one_pass():
    rows = [{"label": torch.tensor(label)} for label in (0, 1, 1)]

    class MapStyle:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return rows[index]

    assert ClassFrequencies.from_dataset(MapStyle()).counts.tolist() == [1, 2]
    assert ClassFrequencies.from_dataset(dataset([0, 1, 1]).to_iterable_dataset()).counts.tolist() == [1, 2]


def test_torchvision_targets_are_used_without_reading_an_example():
    class Targets:
        targets = torch.tensor([0, 1, 1])

        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise AssertionError("an example was read")

    assert ClassFrequencies.from_dataset(Targets()).counts.tolist() == [1, 2]
    assert read_labels(Subset(Targets(), [2, 0]), "label").tolist() == [1, 0]
    assert read_labels(ConcatDataset([Subset(Targets(), [1]), Targets()]), "label").tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1], "row 2 of column 'label' holds label -1; expected a class index >= 0"),
        ([0, 1, -100], "holds label -100; expected a class index >= 0. That stands for no label: leave such rows out"),
        ([0.0, 1.5], "row 1 of column 'label' holds 1.5, not a class index: regression"),
        ([0, None, 1], "row 1 of column 'label' has no label"),
        ([[0, 1], [1]], "several labels per example.*multi-label"),
        ([b"a", b"b"], "holds binary; expected one class index or one class name"),
        (["cat", "yak"], "holds the class name 'yak', which the model does not know .it knows: 'cat'"),
        ([], "the training set is empty"),
        ([1, 1], "at least 2 classes"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        ClassFrequencies.from_dataset(dataset(labels), label2id={"cat": 0})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, "a"], "row 1 of column 'label' holds 'a', and the first label is 0; expected a class index in every row"),
        ([None, "a", 0], "row 2 of column 'label' holds 0, and the first label is 'a'"),
        ([0, 10**30], "row 1 of column 'label' holds 10{30}, and the first label is 0"),
        ([0, float("inf")], "row 1 of column 'label' holds inf, not a class index"),
        ([0, np.float32("inf")], r"holds np.float32\(inf\); expected one class index or one class name"),
        ([0, torch.tensor(float("nan"))], r"holds tensor\(nan\); expected one class index or one class name"),
        ([np.str_("yak")], "holds the class name .*'yak'.*, which the model does not know .it knows: 'cat'"),
    ],
    ids=str,
)
def test_bad_labels_in_a_list(labels, message):
    with pytest.raises(ValueError, match=message):
        read_labels([{"label": label} for label in labels], "label", label2id={"cat": 0})


def test_names_of_numpy_are_names():
    rows = [{"label": np.str_(name)} for name in ("dog", "cat", "dog")]
    assert read_labels(rows, "label", label2id={"cat": 0, "dog": 1}).tolist() == [1, 0, 1]


def test_label_beyond_the_classes():
    with pytest.raises(ValueError, match=r"row 1 of column 'label' holds label 3; expected a class index from 0 to 2"):
        ClassFrequencies.from_dataset(dataset([0, 3]), num_classes=3)


def test_a_missing_column_in_a_stream_names_the_columns():
    with pytest.raises(ValueError, match=r"no label column 'label'; the columns are 'x', 'y'"):
        ClassFrequencies.from_dataset([{"x": 1, "y": 2}])


@pytest.mark.parametrize("labels", [[401, 4280, 25000], [10**12, 0], [0, 2, 2]], ids=["codes", "a huge code", "a gap"])
def test_integers_with_gaps_need_the_number_of_classes(labels):
    with pytest.raises(ValueError, match=r"distinct labels up to \d+: are they codes.*pass num_classes"):
        ClassFrequencies.from_dataset(dataset(labels))


def test_whole_numbers_stored_as_floats_are_labels():
    assert read_labels(dataset([0.0, 2.0]), "label").tolist() == [0, 2]


@pytest.mark.parametrize("counts", [[3, -1], [3, 1.5], [3, float("nan")], [[1, 2]], [5], [5, 0], [0, 0], ["a", "b"]])
def test_bad_counts(counts):
    with pytest.raises(ValueError, match=r"class counts must be|at least 2 classes"):
        ClassFrequencies.from_counts(counts)


def test_names_must_be_one_per_class():
    with pytest.raises(ValueError, match="got 1 class names for 2 class counts"):
        ClassFrequencies.from_counts([1, 2], names=("cat",))


def test_thresholds_that_overlap():
    with pytest.raises(ValueError, match=r"both few and many.*rare_threshold=50 and common_threshold=10"):
        ClassFrequencies.from_counts([1, 2], rare_threshold=50, common_threshold=10)


def test_counts_cannot_be_changed_by_accident():
    frequencies = ClassFrequencies.from_counts([1, 2])
    with pytest.raises(ValueError, match="read-only"):
        frequencies.counts[0] = 5


def test_the_number_of_calls_does_not_grow_with_the_number_of_rows():
    # Row by row, or with Arrow's take through the indices of a shuffled dataset, ten million rows cost 40 seconds.
    def calls(rows):
        table = pa.table({"label": np.random.default_rng(0).integers(0, 10, rows)})
        indices = pa.table({"indices": np.arange(rows, dtype=np.uint64)[::-1].copy()})
        data, names = datasets.Dataset(table, indices_table=indices), []
        sys.setprofile(lambda frame, event, argument: names.append(getattr(argument, "__name__", event)))
        try:
            frequencies = ClassFrequencies.from_dataset(data)
        finally:
            sys.setprofile(None)
        assert frequencies.counts.sum() == rows
        return names

    assert len(calls(100_000)) < len(calls(1000)) + 100
    assert "take" not in calls(1000)


def test_a_table_of_pandas_is_refused():
    with pytest.raises(ValueError, match="the examples are of type str"):
        ClassFrequencies.from_dataset(pd.DataFrame({"text": ["a"], "label": [0]}))


def test_a_series_counts_in_the_order_of_the_classes():
    labels = pd.Series([1, 1, 1, 0, 2, 2])
    with pytest.raises(ValueError, match=r"a Series with the index '1', '2', '0'.*counts.sort_index\(\)"):
        ClassFrequencies.from_counts(labels.value_counts())
    assert ClassFrequencies.from_counts(labels.value_counts().sort_index()).counts.tolist() == [1, 3, 2]
    named = pd.Series({"b": 4, "a": 2})
    assert ClassFrequencies.from_counts(named, names=("b", "a")).counts.tolist() == [4, 2]
