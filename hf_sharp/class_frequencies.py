"""How many training examples each class has: read once, from the label column, without decoding an image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ClassFrequencies:
    """The class counts n_c of a training set, its priors π_c = n_c / Σn, and the many / medium / few split.

    Args:
        counts: (K,) integers >= 0, the training examples of each class.
        names: K class names, or None.
        rare_threshold: "few" are the classes with n_c < rare_threshold (the long-tail literature: 20).
        common_threshold: "many" are the classes with n_c > common_threshold (the long-tail literature: 100).

    Raises:
        ValueError: counts that are negative, fractional, not a vector or all zero; fewer than 2 classes; names
            that are not one per class; thresholds that overlap.

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
        counts = np.asarray(self.counts)
        if counts.ndim != 1 or counts.dtype.kind not in "iuf":
            raise ValueError(f"class counts must be a vector of integers, one per class; got {self.counts!r}.")
        if not np.all(np.isfinite(counts)) or np.any(counts < 0) or np.any(counts != np.floor(counts)):
            bad = int(np.flatnonzero(~(np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts))))[0])
            raise ValueError(f"class counts must be integers >= 0; class {bad} has {counts[bad]}.")
        if len(counts) < 2 or np.count_nonzero(counts) < 2:
            raise ValueError(
                f"classification needs training examples of at least 2 classes; the counts are {counts.tolist()}."
            )
        if self.names is not None and len(self.names) != len(counts):
            raise ValueError(f"got {len(self.names)} class names for {len(counts)} class counts.")
        if not 0 <= self.rare_threshold <= self.common_threshold + 1:
            raise ValueError(
                "a class would be both few and many: expected 0 <= rare_threshold <= common_threshold + 1, got "
                f"rare_threshold={self.rare_threshold} and common_threshold={self.common_threshold}."
            )
        object.__setattr__(self, "counts", counts.astype(np.int64))
        self.counts.setflags(write=False)

    @classmethod
    def from_counts(cls, counts: Sequence[int] | np.ndarray, **options: Any) -> ClassFrequencies:
        """Make frequencies of counts known beforehand.

        Args:
            counts: (K,) integers >= 0.
            **options: `names`, `rare_threshold`, `common_threshold`.

        Returns:
            The frequencies.
        """
        return cls(np.asarray(counts), **options)

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
        """Count the labels of a training set. Of a `datasets.Dataset` only the label column is read.

        Args:
            dataset: a `datasets.Dataset`; or any iterable of examples, which costs one pass over all of them.
            label_column: the column that holds one label per example: integers, or names found in `label2id`.
            num_classes: K, so that absent classes count 0. Default: the ClassLabel feature's, `label2id`'s, or the
                largest label + 1.
            label2id: class name to class index, for labels that are names.
            **options: `names`, `rare_threshold`, `common_threshold`.

        Returns:
            The frequencies; `names` are the ClassLabel feature's unless given.

        Raises:
            ValueError: no such column; labels that are missing, negative, fractional, several per example, unknown
                names, or >= num_classes (the first offending row is named); an empty dataset.

        Example:
            >>> import datasets
            >>> data = datasets.Dataset.from_dict({"label": [0, 0, 2, 0]})
            >>> ClassFrequencies.from_dataset(data, num_classes=4).counts.tolist()
            [3, 0, 1, 0]
        """
        labels = read_labels(dataset, label_column, num_classes=num_classes, label2id=label2id)
        if len(labels) == 0:
            raise ValueError("the training set is empty: there are no labels to count.")
        feature = getattr(dataset, "features", None) and dataset.features.get(label_column)
        if isinstance(feature, datasets.ClassLabel):
            num_classes = num_classes or feature.num_classes
            if num_classes == feature.num_classes:
                options.setdefault("names", tuple(feature.names))
        if num_classes is None:
            num_classes = max(label2id.values()) + 1 if label2id else int(labels.max()) + 1
        return cls(np.bincount(labels, minlength=num_classes), **options)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.counts)

    @cached_property
    def priors(self) -> np.ndarray:
        """(K,) float64, π_c = n_c / Σn."""
        return self.counts / self.counts.sum()

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Class indices of the groups `many`, `medium` and `few`, in this order."""
        many, few = self.counts > self.common_threshold, self.counts < self.rare_threshold
        return {name: np.flatnonzero(mask) for name, mask in (("many", many), ("medium", ~many & ~few), ("few", few))}

    @property
    def imbalance_factor(self) -> float:
        """The largest count over the smallest count that is not zero."""
        return float(self.counts.max() / self.counts[self.counts > 0].min())

    def name(self, index: int) -> str:
        """The class's name, or its index as text where the classes have no names."""
        return self.names[index] if self.names else str(index)


def read_labels(
    dataset: Any,
    label_column: str,
    *,
    num_classes: int | None = None,
    label2id: Mapping[str, int] | None = None,
) -> np.ndarray:
    """Read one integer label per example, and nothing else, from a dataset.

    Args:
        dataset: a `datasets.Dataset`, or any iterable of examples that are mappings.
        label_column: the column's name.
        num_classes: labels must be below it; not checked when None.
        label2id: class name to class index, for labels that are names.

    Returns:
        (N,) int64.

    Raises:
        ValueError: as `ClassFrequencies.from_dataset` says.
    """
    if isinstance(dataset, datasets.Dataset):
        if label_column not in dataset.column_names:
            raise ValueError(_no_label_column(label_column, dataset.column_names))
        column = _arrow_column(dataset, label_column)
    else:
        column = pa.chunked_array([pa.array(_labels_of(dataset, label_column))])
    labels = _as_integers(column, label_column, label2id)
    bad = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    if np.any(bad):
        row = int(np.argmax(bad))
        expected = "a class index >= 0" if num_classes is None else f"a class index from 0 to {num_classes - 1}"
        raise ValueError(f"row {row} of column {label_column!r} holds label {labels[row]}; expected {expected}.")
    return labels


def encode_label(label: Any, label2id: Mapping[str, int] | None, label_column: str) -> int:
    """Turn one label, an integer or a class name, into its class index.

    Args:
        label: an integer, an integral float, a 0-dimensional tensor or array, or a name.
        label2id: class name to class index.
        label_column: for the error's text.

    Returns:
        The class index.

    Raises:
        ValueError: the name is not in `label2id`, or the label is neither an integer nor a name.
    """
    if isinstance(label, str):
        if not label2id or label not in label2id:
            known = ", ".join(map(repr, list(label2id)[:8])) if label2id else "none"
            raise ValueError(
                f"column {label_column!r} holds the class name {label!r}, which the model does not know (it knows: "
                f"{known}{', ...' if label2id and len(label2id) > 8 else ''}). Set label2id and id2label in the "
                "model's config, or encode the column with `dataset.class_encode_column(...)`."
            )
        return label2id[label]
    value = label.item() if isinstance(label, (torch.Tensor, np.generic, np.ndarray)) else label
    if not isinstance(value, (int, float)) or value != int(value):
        raise ValueError(f"column {label_column!r} holds {label!r}; expected one class index or one class name.")
    return int(value)


def _no_label_column(label_column: str, columns: Sequence[str]) -> str:
    return (
        f"there is no label column {label_column!r}; the columns are {', '.join(map(repr, columns))}. "
        "Say which one holds the labels with label_column=."
    )


def _labels_of(dataset: Any, label_column: str) -> list[Any]:
    targets = getattr(dataset, "targets", None)  # torchvision's name for the labels, readable without decoding
    if targets is not None:
        return list(targets.tolist() if isinstance(targets, (torch.Tensor, np.ndarray)) else targets)
    streamed = isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__")
    examples = dataset if streamed else (dataset[i] for i in range(len(dataset)))
    labels = []
    for example in examples:
        if not isinstance(example, Mapping) or label_column not in example:
            found = list(example) if isinstance(example, Mapping) else [type(example).__name__]
            raise ValueError(_no_label_column(label_column, found))
        label = example[label_column]
        labels.append(label.item() if isinstance(label, (torch.Tensor, np.generic)) else label)
    return labels


def _arrow_column(dataset: datasets.Dataset, label_column: str) -> pa.ChunkedArray:
    column = dataset.data.column(label_column)
    if dataset._indices is None:
        return column
    # Row by row through the indices of a shuffled or selected dataset takes a minute for ten million rows; numbers
    # are gathered at once.
    rows = dataset._indices.column(0).to_numpy()
    if pa.types.is_integer(column.type) and column.null_count == 0:
        return pa.chunked_array([pa.array(column.to_numpy()[rows])])
    return column.combine_chunks().take(pa.array(rows)) if len(rows) else column.slice(0, 0)


def _as_integers(
    column: pa.ChunkedArray | pa.Array, label_column: str, label2id: Mapping[str, int] | None
) -> np.ndarray:
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        raise ValueError(
            f"column {label_column!r} holds several labels per example ({kind}): multi-label and token "
            "classification are not supported; expected one class index or one class name per example."
        )
    if column.null_count:
        row = int(np.argmax(np.asarray(column.is_null())))
        raise ValueError(f"row {row} of column {label_column!r} has no label; remove such rows with dataset.filter.")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        encoded = column.dictionary_encode()
        combined = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        if isinstance(combined, pa.ChunkedArray):  # no rows at all
            return np.empty(0, np.int64)
        table = [encode_label(name, label2id, label_column) for name in combined.dictionary.to_pylist()]
        return np.asarray(table, np.int64)[combined.indices.to_numpy(zero_copy_only=False)]
    if pa.types.is_null(kind) and len(column) == 0:
        return np.empty(0, np.int64)
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)):
        raise ValueError(f"column {label_column!r} holds {kind}; expected one class index or one class name per row.")
    values = np.asarray(column)
    if pa.types.is_floating(kind) and not np.all(whole := values == np.floor(values)):
        row = int(np.argmin(whole))
        raise ValueError(
            f"row {row} of column {label_column!r} holds {values[row]}, not a class index: regression targets are "
            "not supported."
        )
    return values.astype(np.int64, copy=False)
