import datasets
import numpy as np
import pytest

from hf_sharp.data.long_tail import long_tail_counts
from hf_sharp.datasets import digits, long_tail


def balanced(per_class=500, num_classes=10):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(num_classes), per_class))
    return datasets.Dataset.from_dict({"id": range(len(labels)), "label": labels.tolist()})


def test_exponential_profile_is_the_published_protocol():
    counts = np.bincount(long_tail(balanced(), 100)["label"])
    assert counts.tolist() == [int(500 * 100 ** (-c / 9) + 1e-9) for c in range(10)]
    assert (counts[0], counts[-1]) == (500, 5)


def test_step_profile():
    assert np.bincount(long_tail(balanced(), 10, "step")["label"]).tolist() == [500] * 5 + [50] * 5


def test_cifar_100_lt_has_its_published_size():
    assert long_tail_counts(500, 100, 100).sum() == 10847


def test_factor_one_keeps_everything():
    assert len(long_tail(balanced(), 1)) == 5000


def test_seed_decides_and_only_the_seed():
    data = balanced()
    assert long_tail(data, 50, seed=1)["id"] == long_tail(data, 50, seed=1)["id"]
    assert long_tail(data, 50, seed=1)["id"] != long_tail(data, 50, seed=2)["id"]


def test_examples_are_never_invented_nor_repeated():
    ids = list(long_tail(balanced(), 50)["id"])
    assert len(set(ids)) == len(ids)


def test_orders():
    data = datasets.Dataset.from_dict({"label": [0] * 40 + [1] * 400 + [2] * 100})
    sizes = np.bincount(long_tail(data, 10, order="frequency")["label"])
    assert sizes[1] > sizes[2] > sizes[0]
    shuffled = {
        tuple(np.argsort(np.bincount(long_tail(balanced(), 10, order="shuffled", seed=s)["label"]))) for s in range(4)
    }
    assert len(shuffled) == 4


def test_the_tail_is_as_high_as_the_scarcest_class_allows():
    data = datasets.Dataset.from_dict({"label": [0] * 1000 + [1] * 20 + [2] * 50})
    counts = np.bincount(long_tail(data, 100)["label"])
    assert counts.tolist() == long_tail_counts(int(counts[0]), 3, 100).tolist()
    assert counts[1] == 20
    assert long_tail_counts(int(counts[0]) + 1, 3, 100)[1] == 21, "one more would not fit"


def test_the_digits_are_split_by_class():
    data = digits()
    assert {split: len(rows) for split, rows in data.items()} == {"train": 1257, "test": 540}
    assert np.ptp(np.bincount(data["test"]["label"])) <= 4
    assert data["train"][0]["image"].size == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"imbalance_factor": 0.5}, "imbalance_factor must be a finite number >= 1, got 0.5"),
        ({"imbalance_factor": float("nan")}, "imbalance_factor must be a finite number"),
        ({"imbalance_factor": 600}, "leaves the rarest class without examples.*at most 500"),
        ({"profile": "linear"}, "unknown profile 'linear'; expected one of exponential, step"),
        ({"order": "alphabet"}, "unknown order 'alphabet'; expected one of label, frequency, shuffled"),
        ({"label_column": "class"}, "no label column 'class'"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tail(balanced(), **arguments)


def test_empty_dataset():
    with pytest.raises(ValueError, match="the dataset is empty"):
        long_tail(balanced().select([]))


def test_other_kinds_of_datasets_are_refused_by_name():
    data = datasets.Dataset.from_dict({"label": [0, 1] * 5})
    for other in (data.to_iterable_dataset(), data.to_pandas(), data.to_list(), 10):
        with pytest.raises(ValueError, match=f"got {type(other).__name__} to make long-tailed, expected a datasets"):
            long_tail(other, 2)
