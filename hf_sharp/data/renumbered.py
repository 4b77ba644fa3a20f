"""Datasets of torch that name their classes as torchvision does, with the labels put into another order of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hf_sharp.data.labels import find_label_column, no_label_column


def torchvision_names(data: Any) -> list[str] | None:
    """Read the class names of a dataset that has `class_to_idx` or `classes`, as torchvision's datasets do.

    Args:
        data: any dataset.

    Returns:
        K names, in the order of the labels; None if it has neither, or they do not give every class one name.

    Example:
        >>> from types import SimpleNamespace
        >>> torchvision_names(SimpleNamespace(class_to_idx={"b": 1, "a": 0}))
        ['a', 'b']
    """
    index_of, names = getattr(data, "class_to_idx", None), getattr(data, "classes", None)
    if isinstance(index_of, Mapping) and set(index_of.values()) == set(range(len(index_of))):
        names = sorted(index_of, key=index_of.__getitem__)
    if not isinstance(names, (list, tuple, np.ndarray)) or not all(isinstance(name, str) for name in names):
        return None
    return [str(name) for name in names] if 0 < len(set(names)) == len(names) else None


class Renumbered:
    """A map-style dataset with the same examples, whose labels are class indices in another order.

    Args:
        data: the dataset; its examples are mappings, or tuples of an input and a label.
        label_column: the label's name in examples that are mappings.
        order: (K',) the new index of every class.
        names: K class names, in the new order.

    Raises:
        ValueError: the dataset is a stream, or, when an example is read, its label is not found.
    """

    def __init__(self, data: Any, label_column: str, order: np.ndarray, names: Sequence[str]) -> None:
        from torch.utils.data import IterableDataset  # counting the labels of a file does not need it

        if isinstance(data, IterableDataset):
            raise ValueError(
                f"the stream {type(data).__name__} has its classes in another order than {', '.join(names)}. Let it "
                "yield labels in this order, and name its `classes` so."
            )
        self.data, self.label_column = data, label_column
        self.order, self.classes = order.tolist(), list(names)
        if (targets := getattr(data, "targets", None)) is not None:
            self.targets = [self._of(label) for label in (targets.tolist() if hasattr(targets, "tolist") else targets)]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        example = self.data[index]
        if isinstance(example, Mapping):
            name = find_label_column([example], self.label_column)
            if name not in example:
                raise ValueError(no_label_column(name, list(example)))
            return {**example, name: self._of(example[name])}
        if isinstance(example, (tuple, list)) and len(example) > 1:
            return (example[0], self._of(example[1]), *example[2:])
        raise ValueError(
            f"the examples are of type {type(example).__name__}, whose labels cannot be put into the order of the "
            f"model's classes. Expected mappings, or pairs of an input and a label."
        )

    def _of(self, label: Any) -> Any:
        if label is None or isinstance(label, str) or int(label) < 0:  # no label, or a name
            return label
        if int(label) >= len(self.order):
            raise ValueError(f"the dataset has the label {int(label)}, but its `classes` are only {len(self.order)}.")
        index = self.order[int(label)]
        return label.new_tensor(index) if hasattr(label, "new_tensor") else index
