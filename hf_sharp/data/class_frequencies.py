"""The number of training examples of each class, read from the label column without decoding images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hf_sharp.data.class_names import shown
from hf_sharp.data.label_columns import declared_classes
from hf_sharp.data.labels import find_label_column, read_labels
from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.limits import check_number


@dataclass(frozen=True, eq=False)
class ClassFrequencies:
    """The class counts n_c of a training set, its priors π_c = n_c / Σn, and the many / medium / few split.

    Args:
        counts: (K,) integers >= 0, the training examples of each class.
        names: K class names, or None.
        rare_threshold: classes with n_c < rare_threshold are "few" (20 in the long-tail literature).
        common_threshold: classes with n_c > common_threshold are "many" (100 in the long-tail literature).

    Raises:
        ValueError: the counts are negative, fractional, not a vector or all zero; fewer than 2 classes have examples;
            the number of names is not K; or the thresholds overlap.

    Example:
        >>> frequencies = ClassFrequencies.from_counts([300, 60, 6])
        >>> frequencies.priors.round(3).tolist()
        [0.82, 0.164, 0.016]
        >>> {group: indices.tolist() for group, indices in frequencies.groups.items()}
        {'many': [0], 'medium': [1], 'few': [2]}
        >>> frequencies.imbalance_factor
        50.0
    """

    counts: np.ndarray
    names: tuple[str, ...] | None = None
    rare_threshold: int = 20
    common_threshold: int = 100

    def __post_init__(self) -> None:
        counts = as_array(self.counts)
        if counts.ndim != 1 or counts.dtype.kind not in "iuf":
            raise ValueError(f"class counts must be a vector of integers, one per class; got {self.counts!r}.")
        if not np.all(np.isfinite(counts)) or np.any(counts < 0) or np.any(counts != np.floor(counts)):
            bad = int(np.flatnonzero(~(np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts))))[0])
            raise ValueError(f"class counts must be integers >= 0; class {bad} has {counts[bad]}.")
        if len(counts) < 2 or np.count_nonzero(counts) < 2:
            raise ValueError(
                f"classification needs training examples in at least 2 classes; the counts are {counts.tolist()}."
            )
        if self.names is not None and len(self.names) != len(counts):
            raise ValueError(f"got {len(self.names)} class names for {len(counts)} class counts.")
        for name in ("rare_threshold", "common_threshold"):
            check_number(name, getattr(self, name), least=0)
        if self.rare_threshold > self.common_threshold + 1:
            raise ValueError(
                "a class would be both few and many: expected rare_threshold <= common_threshold + 1, got "
                f"rare_threshold={self.rare_threshold} and common_threshold={self.common_threshold}."
            )
        object.__setattr__(self, "counts", counts.astype(np.int64))
        self.counts.setflags(write=False)

    @classmethod
    def from_counts(cls, counts: Any, **options: Any) -> ClassFrequencies:
        """Create frequencies from known counts.

        Args:
            counts: (K,) integers >= 0.
            **options: `names`, `rare_threshold`, `common_threshold`.

        Returns:
            The frequencies.

        Raises:
            ValueError: as the class; or a pandas Series in another order than that of the classes, such as the result
                of `value_counts()`.
        """
        if hasattr(counts, "sort_index"):  # a Series of pandas
            in_order = [*range(len(counts))], [*(options.get("names") or ())]
            if list(counts.index) not in in_order:
                raise ValueError(
                    f"the counts are a Series with the index {shown(counts.index)}; expected the classes from 0 in "
                    "order. Take counts.sort_index(), or counts.to_numpy() if they are in the order of the classes."
                )
        return cls(as_array(counts), **options)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        label_column: str = "label",
        num_classes: int | None = None,
        *,
        label2id: Mapping[str, int] | None = None,
        **options: Any,
    ) -> ClassFrequencies:
        """Count the labels of a training set. Only the label column of a `datasets.Dataset` is read.

        Args:
            dataset: a `datasets.Dataset`; or any iterable of examples, which takes one pass over all of them, unless
                it has `targets`, as torchvision's datasets do.
            label_column: the column with one label per example: integers, or names in `label2id`. If there is no
                column `label`, `labels` is used.
            num_classes: K, so that classes without examples get the count 0. Default: the number of classes that the
                dataset names or of `label2id`, else that of the labels, if they are 0, 1, ... without gaps.
            label2id: class name to class index, for labels that are names.
            **options: `names`, `rare_threshold`, `common_threshold`.

        Returns:
            The frequencies; `names` defaults to the names of the ClassLabel, or torchvision's `classes`.

        Raises:
            ValueError: the column does not exist; the dataset is empty; labels are missing, negative, fractional,
                several per example, unknown names, or >= num_classes (the error names the first such row); or
                integers have gaps, as codes do, and `num_classes` is not set.

        Example:
            >>> import datasets
            >>> data = datasets.Dataset.from_dict({"label": [0, 0, 2, 0]})
            >>> ClassFrequencies.from_dataset(data, num_classes=4).counts.tolist()
            [3, 0, 1, 0]
        """
        label_column = find_label_column(dataset, label_column)
        labels = read_labels(dataset, label_column, num_classes=num_classes, label2id=label2id)
        if len(labels) == 0:
            raise ValueError("the training set is empty: there are no labels to count.")
        feature = declared_classes(dataset, label_column)
        if feature is not None:
            num_classes = num_classes or feature.num_classes
            if num_classes == feature.num_classes:
                options.setdefault("names", tuple(feature.names))
        if num_classes is None and label2id:
            num_classes = max(label2id.values()) + 1
        elif num_classes is None:
            num_classes = int(labels.max()) + 1
            if num_classes > len(labels) or not np.bincount(labels).all():
                raise ValueError(
                    f"column {label_column!r} has {len(np.unique(labels))} distinct labels up to {labels.max()}: are "
                    "they codes, or do classes lack examples? Turn codes into classes with "
                    f"dataset.class_encode_column({label_column!r}); if classes are absent, pass num_classes."
                )
        return cls(np.bincount(labels, minlength=num_classes), **options)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.counts)

    @cached_property
    def priors(self) -> np.ndarray:
        """The class priors π_c = n_c / Σn, (K,) float64."""
        return self.counts / self.counts.sum()

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Class indices of the groups `many`, `medium` and `few`, in that order."""
        many, few = self.counts > self.common_threshold, self.counts < self.rare_threshold
        return {name: np.flatnonzero(mask) for name, mask in (("many", many), ("medium", ~many & ~few), ("few", few))}

    @cached_property
    def group_of(self) -> np.ndarray:
        """The name of each class's group, (K,)."""
        names = np.empty(self.num_classes, dtype=object)
        for group, classes in self.groups.items():
            names[classes] = group
        return names

    @property
    def imbalance_factor(self) -> float:
        """The largest count divided by the smallest nonzero count."""
        return float(self.counts.max() / self.counts[self.counts > 0].min())

    def name(self, index: int) -> str:
        """Return the name of a class, or its index as a string if the classes have no names."""
        return self.names[index] if self.names else str(index)

    @property
    def labels(self) -> list[str]:
        """The K class names, or the indices as strings if the classes have no names."""
        return [self.name(index) for index in range(self.num_classes)]
