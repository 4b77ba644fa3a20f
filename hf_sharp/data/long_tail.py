"""Make a balanced dataset long-tailed, following the published CIFAR-LT protocol."""

from __future__ import annotations

import logging

import datasets
import numpy as np

from hf_sharp.data.labels import find_label_column, read_labels
from hf_sharp.data.split import check_is_dataset
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.nearest import check_name

logger = logging.getLogger(__name__)

PROFILES = ("exponential", "step")
ORDERS = ("label", "frequency", "shuffled")
_ROUNDING = 1e-6  # 500 · 100^(−4/4) is 5, not 4


def long_tail_counts(n_max: int, num_classes: int, imbalance_factor: float, profile: str = "exponential") -> np.ndarray:
    """Compute the class counts of a long tail, from the largest class to the smallest.

        exponential: n_c = ⌊n_max · IF^(−c / (K − 1))⌋        step: n_max for the first half, ⌊n_max / IF⌋ for the rest

    Args:
        n_max: the number of examples in the largest class.
        num_classes: K >= 2.
        imbalance_factor: IF >= 1, the largest count divided by the smallest.
        profile: `exponential` or `step`.

    Returns:
        (K,) int64, in non-increasing order.

    Raises:
        ValueError: the profile is unknown, K < 2, IF < 1, or the rarest class would have no examples.

    Example:
        >>> long_tail_counts(500, 5, 100).tolist()
        [500, 158, 50, 15, 5]
        >>> long_tail_counts(500, 4, 10, "step").tolist()
        [500, 500, 50, 50]
    """
    counts = np.floor(n_max * _tail(num_classes, imbalance_factor, profile) + _ROUNDING).astype(np.int64)
    if counts[-1] < 1:
        raise ValueError(
            f"imbalance_factor={imbalance_factor} leaves the rarest class without examples, as the largest has "
            f"only {n_max}. Use a factor of at most {n_max}."
        )
    return counts


def long_tail(
    dataset: datasets.Dataset,
    imbalance_factor: float = 100,
    profile: str = "exponential",
    seed: int = 0,
    *,
    label_column: str = "label",
    order: str = "label",
) -> datasets.Dataset:
    """Subsample a training set so that its classes follow a long tail. The test split should stay balanced.

    Args:
        dataset: the training split, with ClassLabel or integer labels.
        imbalance_factor: IF >= 1, the largest class count divided by the smallest (the paper uses 10 to 200).
        profile: `exponential`, or `step` (the second half of the classes have n_max / IF examples each).
        seed: the seed for choosing examples (and the order, if it is shuffled).
        label_column: the column with the labels; if there is no `label`, `labels` is used.
        order: the order of the classes, the largest first: `label` (by index, as in the published protocol),
            `frequency` (by their size in the dataset), or `shuffled`.

    Returns:
        The chosen examples in their original order, without repetition: if the dataset is not balanced, n_max is
        lowered until every class has enough examples (the published datasets are balanced).

    Raises:
        ValueError: the dataset is of another type, the profile or the order is unknown, the factor is below 1, or a
            class would have no examples.

    Example:
        >>> balanced = datasets.Dataset.from_dict({"label": [0, 1, 2] * 100})
        >>> np.bincount(long_tail(balanced, imbalance_factor=25)["label"]).tolist()
        [100, 20, 4]

    Reference:
        Cui et al., "Class-Balanced Loss", arXiv 1901.05555, section 5.1 (long-tailed CIFAR).
    """
    check_name("order", order, ORDERS)
    check_is_dataset(dataset, "make long-tailed")
    label_column = find_label_column(dataset, label_column)
    labels = read_labels(dataset, label_column)
    if len(labels) == 0:
        raise ValueError("the dataset is empty and cannot be made long-tailed.")
    feature = dataset.features[label_column]
    num_classes = feature.num_classes if isinstance(feature, datasets.ClassLabel) else int(labels.max()) + 1
    available = np.bincount(labels, minlength=num_classes)
    rng = np.random.default_rng(seed)
    ranking = {
        "label": lambda: np.arange(num_classes),
        "frequency": lambda: np.argsort(-available, kind="stable"),
        "shuffled": lambda: rng.permutation(num_classes),
    }[order]()
    if (available == 0).any():
        empty = int(np.argmin(available))
        name = feature.int2str(empty) if isinstance(feature, datasets.ClassLabel) else str(empty)
        raise ValueError(f"class {name!r} has no examples, so the long tail cannot include it.")
    height = _tail(num_classes, imbalance_factor, profile)
    n_max = int(np.min(np.ceil((available[ranking] + 1 - 2 * _ROUNDING) / height) - 1))
    if n_max < available.max():
        logger.info("The largest class gets %d examples, because smaller classes do not have enough for more.", n_max)
    if n_max < available.max() and np.floor(n_max * height[-1] + _ROUNDING) < 1:
        limit = int(ranking[np.argmin((available[ranking] + 1) / height)])
        name = feature.int2str(limit) if isinstance(feature, datasets.ClassLabel) else str(limit)
        raise ValueError(
            f"imbalance_factor={imbalance_factor:g} leaves the rarest class without examples: class {name!r} has only "
            f"{available[limit]}, so that the largest class could have {n_max}. Use a smaller factor; or none, if the "
            "classes already differ in size."
        )
    counts = long_tail_counts(max(n_max, 0), num_classes, imbalance_factor, profile)
    keep = [
        rng.choice(np.flatnonzero(labels == label), size=count, replace=False)
        for label, count in zip(ranking, counts, strict=True)
    ]
    return dataset.select(np.sort(np.concatenate(keep)))


def _tail(num_classes: int, imbalance_factor: float, profile: str) -> np.ndarray:
    check_name("profile", profile, PROFILES)
    check_number("the number of classes", num_classes, least=2, whole=True)
    check_number("imbalance_factor", imbalance_factor, least=1)
    rank = np.arange(num_classes)
    exponent = rank / (num_classes - 1) if profile == "exponential" else (rank >= num_classes // 2).astype(float)
    return imbalance_factor**-exponent
