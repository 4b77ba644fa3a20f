"""Labels, one class index per example: read from a whole dataset at once, and added to every batch for the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hf_sharp.data.class_names import shown
from hf_sharp.data.columns import other_columns
from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.words import brief

IGNORED_LABEL = -100
HOST_LABELS = "host_labels"


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
        label_column: the column with the labels.
        num_classes: the number that labels must be below; None for no check.
        label2id: class name to class index, for labels that are names.

    Returns:
        (N,) int64.

    Raises:
        ValueError: as for `ClassFrequencies.from_dataset`.
    """
    if isinstance(dataset, Mapping):  # a DatasetDict
        raise ValueError(f"got a dict of datasets ({', '.join(map(str, dataset))}); expected one of them.")
    if isinstance(dataset, datasets.Dataset):
        if label_column not in dataset.column_names:
            raise ValueError(no_label_column(label_column, dataset.column_names))
        column = arrow_column(dataset, label_column)
    else:
        column = pa.chunked_array([_as_array(_labels_of(dataset, label_column), label_column)])
    labels = _as_integers(column, label_column, label2id)
    bad = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    if np.any(bad):
        row = int(np.argmax(bad))
        expected = "a class index >= 0" if num_classes is None else f"a class index from 0 to {num_classes - 1}"
        hint = ""
        if labels[row] == IGNORED_LABEL:
            hint = " That stands for no label: leave such rows out, with dataset.filter."
        raise ValueError(f"row {row} of column {label_column!r} holds label {labels[row]}; expected {expected}.{hint}")
    return labels


def class_indices(values: Any, num_classes: int, what: str = "label") -> np.ndarray:
    """Check class indices.

    Args:
        values: (N,) integers from 0 to K − 1, of any type.
        num_classes: K.
        what: what one of them is, for the error.

    Returns:
        (N,) int64.

    Raises:
        ValueError: they are not a vector, not whole numbers, or outside the classes; the first one is named.

    Example:
        >>> class_indices([0.0, 1.0], num_classes=2)
        array([0, 1])
    """
    indices = as_array(values)
    if indices.ndim != 1:
        raise ValueError(f"expected one class index per example, (N,); got {what}s of shape {indices.shape}.")
    if len(indices) == 0:
        return np.zeros(0, np.int64)
    if indices.dtype.kind not in "iub" and not (indices.dtype.kind == "f" and (indices % 1 == 0).all()):
        raise ValueError(f"expected class indices, got {what}s of {indices.dtype} such as {indices[0]}.")
    outside = (indices < 0) | (indices >= num_classes)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"{what} {row} is {indices[row]}; expected a class index from 0 to {num_classes - 1}.")
    return indices.astype(np.int64)


def holds_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is one of the text types."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def encode_label(label: Any, label2id: Mapping[str, int] | None, label_column: str) -> int:
    """Convert one label, an integer or a class name, to its class index.

    Args:
        label: an integer, an integral float, a 0-dimensional tensor or array, or a name.
        label2id: class name to class index.
        label_column: the name of the column, for error messages.

    Returns:
        The class index.

    Raises:
        ValueError: the name is not in `label2id`, or the label is neither an integer nor a name.
    """
    if isinstance(label, str):
        if not label2id or label not in label2id:
            raise ValueError(
                f"column {label_column!r} holds the class name {brief(repr(label))}, which the model does not know (it "
                f"knows: {shown(list(label2id or ())) or 'none'}). Set label2id and id2label in the "
                "model's config, or encode the column with `dataset.class_encode_column(...)`."
            )
        return label2id[label]
    if getattr(label, "ndim", 0):  # a tensor or an array
        raise ValueError(
            f"column {label_column!r} holds several labels per example: multi-label and token classification are not "
            "supported; expected one class index or one class name per example."
        )
    value = label.item() if hasattr(label, "item") else label
    if not isinstance(value, (int, float)) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(
            f"column {label_column!r} holds {brief(repr(label))}; expected one class index or one class name."
        )
    return int(value)


def find_label_column(dataset: Any, label_column: str) -> str:
    """Find the label column: of `label`, the default, and `labels`, the name that models use, the one that exists.

    Args:
        dataset: a `datasets.Dataset`, or a map-style dataset, of which the first example is read.
        label_column: the requested name; any name other than `label` and `labels` is returned unchanged.

    Returns:
        The name of the column.

    Example:
        >>> find_label_column([{"pixel_values": [0.0], "labels": 1}], "label")
        'labels'
    """
    other = {"label": "labels", "labels": "label"}.get(label_column)
    if other is None:
        return label_column
    columns = getattr(dataset, "column_names", None)
    is_list = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, Mapping)
    if columns is None and is_list and len(dataset) and not hasattr(dataset, "targets"):
        with suppress(NotImplementedError, LookupError):  # a stream of torch that has a length, a DataFrame
            columns = example if isinstance(example := dataset[0], Mapping) else None
    return other if columns and other in columns and label_column not in columns else label_column


def no_label_column(label_column: str, columns: Sequence[str], option: str = "label_column") -> str:
    """Describe a missing label column, with the existing columns and the option that names another one."""
    return f"there is no label column {label_column!r}; {other_columns(label_column, columns, option)}"


def call_it_label(dataset: datasets.Dataset, label_column: str) -> datasets.Dataset:
    """Rename the column `labels` to `label_column` if `find_label_column` finds it in place of the default `label`."""
    found = find_label_column(dataset, label_column)
    return dataset if found == label_column else dataset.rename_column(found, label_column)


def _labels_of(dataset: Any, label_column: str) -> list[Any]:
    if (targets := _targets_of(dataset)) is not None:
        return targets
    # A map-style dataset of torch need not have __iter__, nor raise an IndexError at its end.
    examples = dataset if hasattr(dataset, "__iter__") else (dataset[i] for i in range(len(dataset)))
    labels = []
    for example in examples:
        if not isinstance(example, Mapping):
            raise ValueError(
                f"the examples are of type {type(example).__name__}, which has no column {label_column!r}; expected "
                "mappings. For the loss alone, pass the counts: class_frequencies=ClassFrequencies.from_counts([...])."
            )
        if label_column not in example:
            raise ValueError(no_label_column(label_column, list(example)))
        label = example[label_column]
        is_name = isinstance(label, str)  # also NumPy's
        labels.append(encode_label(label, None, label_column) if hasattr(label, "item") and not is_name else label)
    return labels


def _as_array(labels: list[Any], label_column: str) -> pa.Array:
    with suppress(pa.ArrowException, OverflowError):
        return pa.array(labels)
    first = next(label for label in labels if label is not None)
    for row, label in enumerate(labels):
        try:
            pa.array([first, label])
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(
                f"row {row} of column {label_column!r} holds {label!r}, and the first label is {first!r}; expected a "
                "class index in every row, or a class name in every row."
            ) from error
    raise ValueError(f"column {label_column!r} holds labels of several types; expected class indices or class names.")


def _targets_of(dataset: Any) -> list[Any] | None:
    """Read torchvision's labels, also those of selected examples, without decoding images."""
    from torch.utils.data import ConcatDataset, Subset  # counting the labels of a file does not need it

    if type(dataset) is Subset:
        targets = _targets_of(dataset.dataset)
        return targets and [targets[index] for index in dataset.indices]
    if type(dataset) is ConcatDataset:
        parts = [_targets_of(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part or ()]
    targets = getattr(dataset, "targets", None)
    return targets if targets is None else list(targets.tolist() if hasattr(targets, "tolist") else targets)


def arrow_column(dataset: datasets.Dataset, label_column: str) -> pa.ChunkedArray:
    """Read one column of a dataset in row order, without decoding the other columns."""
    column = dataset.data.column(label_column)
    if dataset._indices is None:
        return column
    # Arrow takes a minute to gather ten million rows of a shuffled or selected dataset; NumPy is much faster.
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
            f"column {label_column!r} holds several labels per example ({brief(kind)}): multi-label and token "
            "classification are not supported; expected one class index or one class name per example."
        )
    if column.null_count:
        row = int(np.argmax(np.asarray(column.is_null())))
        raise ValueError(f"row {row} of column {label_column!r} has no label; remove such rows with dataset.filter.")
    if holds_text(kind):
        encoded = column.dictionary_encode()
        combined = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        if isinstance(combined, pa.ChunkedArray):  # no rows at all
            return np.empty(0, np.int64)
        table = [encode_label(name, label2id, label_column) for name in combined.dictionary.to_pylist()]
        return np.asarray(table, np.int64)[combined.indices.to_numpy(zero_copy_only=False)]
    if pa.types.is_null(kind) and len(column) == 0:
        return np.empty(0, np.int64)
    if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)):
        raise ValueError(
            f"column {label_column!r} holds {brief(kind)}; expected one class index or one class name per row."
        )
    values = np.asarray(column)
    if pa.types.is_floating(kind) and not np.all(whole := np.isfinite(values) & (values == np.floor(values))):
        row = int(np.argmin(whole))
        raise ValueError(
            f"row {row} of column {label_column!r} holds {values[row]}, not a class index: regression targets are "
            "not supported."
        )
    return values.astype(np.int64, copy=False)


class LabelCollator:
    """Adds every example's label under the name and type that models expect: `labels`, a class index.

    The label also stays in its own column, for collators that read it there. Other columns that a collator would use
    as the label are removed.

    Args:
        collator: turns examples into a batch.
        label_column: the column with an example's label.
        label2id: class name to class index.
    """

    def __init__(self, collator: Callable, label_column: str, label2id: Mapping[str, int] | None) -> None:
        self.collator = collator
        self.label_column = label_column
        self.label2id = label2id
        if hasattr(collator, "tokenizer"):  # Trainer saves it, if it has no other
            self.tokenizer = collator.tokenizer

    def __call__(self, examples: list[Any]) -> Any:
        """Collate examples with a label column into a batch with `labels`."""
        batch = self.collator([self._with_labels(example) for example in examples])
        for name in {"label", "label_ids", self.label_column} - {"labels"}:
            if isinstance(batch, Mapping) and "labels" in batch and name in batch:
                batch.pop(name)  # type: ignore[attr-defined]
        labels: Any = batch["labels"] if isinstance(batch, Mapping) and "labels" in batch else None
        if hasattr(labels, "is_floating_point") and not labels.is_floating_point():
            batch["labels"] = labels.long()
        return batch

    def _with_labels(self, example: Any) -> Any:
        if not isinstance(example, Mapping) or self.label_column not in example:
            return example
        names = ("label", "label_ids", "labels", self.label_column)
        rest = {name: value for name, value in example.items() if name not in names}
        if example[self.label_column] is None:  # an unlabelled test set
            return rest
        label = encode_label(example[self.label_column], self.label2id, self.label_column)
        # transformers takes `label_ids` for a list of labels.
        own = {} if self.label_column == "label_ids" else {self.label_column: label}
        return rest | own | {"labels": label}


class HostLabelCollator:
    """Adds a copy of the labels to every batch, as an array that stays on the host when the batch moves to the device.

    Args:
        collator: turns examples into a batch with `labels`.
    """

    def __init__(self, collator: Callable) -> None:
        self.collator = collator

    def __call__(self, examples: list[Any]) -> Any:
        """Collate examples into a batch, and add its labels as an array that stays on the host."""
        batch = self.collator(examples)
        if "labels" in batch:
            # A copy: worker processes move the batch's tensors into shared memory, and a view would follow them.
            batch[HOST_LABELS] = np.asarray(batch["labels"]).copy()
        return batch


def without_labels(data: datasets.Dataset, label_column: str, names: Sequence[str]) -> datasets.Dataset:
    """Add an empty label column, so that unlabelled data can be processed like labelled data.

    Args:
        data: rows without a label column.
        label_column: the name of the new column.
        names: K class names.

    Returns:
        The rows with the column: every label is None.

    Example:
        >>> without_labels(datasets.Dataset.from_dict({"text": ["a"]}), "label", ["x", "y"])[0]
        {'text': 'a', 'label': None}
    """
    column = datasets.Features({label_column: datasets.ClassLabel(names=list(names))})
    empty = datasets.Dataset.from_dict({label_column: [None] * len(data)}, features=column)
    return datasets.concatenate_datasets([data, empty], axis=1)
