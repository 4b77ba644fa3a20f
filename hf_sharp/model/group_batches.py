"""Evaluation batches, each of one group of classes, and stratified samples of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.model.head import labels_of
from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.limits import check_number

GROUPS = ("all", "many", "medium", "few")


class GroupBatch(NamedTuple):
    """Examples whose classes all belong to one group, on the CPU."""

    inputs: dict[str, Tensor]
    labels: Tensor
    group: str

    def select(self, rows: Tensor) -> GroupBatch:
        """Keep the examples where `rows` (N,) is True."""
        if bool(rows.all()):
            return self
        return GroupBatch({name: value[rows] for name, value in self.inputs.items()}, self.labels[rows], self.group)

    @property
    def kind(self) -> tuple[int, list[tuple[str, tuple[int, ...]]]]:
        """The group and the shapes of the inputs: batches of one kind can be concatenated."""
        shapes = sorted((name, tuple(value.shape[1:])) for name, value in self.inputs.items())
        return GROUPS.index(self.group), shapes


def split_by_group(batches: Iterable[Mapping[str, Tensor]], frequencies: ClassFrequencies) -> Iterator[GroupBatch]:
    """Split batches by the group of their labels; examples labelled -100 are dropped.

    Args:
        batches: model inputs with `labels`.
        frequencies: the class frequencies of the training set, whose thresholds define the groups.

    Yields:
        One batch per group present in each batch.

    Raises:
        ValueError: as `labels_of`.
    """
    for batch in batches:
        labels = labels_of(batch, frequencies.num_classes).cpu()
        counted = labels != IGNORED_LABEL
        inputs = {name: value.cpu() for name, value in batch.items() if name != "labels"}
        groups = frequencies.group_of[labels.clamp(min=0).numpy()]
        for name in frequencies.groups:
            if bool((rows := counted & torch.from_numpy(groups == name)).any()):
                yield GroupBatch(inputs, labels, name).select(rows)


def count_by_group(batches: Sequence[GroupBatch]) -> dict[str, int]:
    """Count the examples of each of `GROUPS`."""
    sizes = {group: sum(len(batch.labels) for batch in batches if batch.group == group) for group in GROUPS[1:]}
    return {"all": sum(sizes.values())} | sizes


def sample_batches(batches: Sequence[GroupBatch], size: int, seed: int = 0) -> list[GroupBatch]:
    """Draw a stratified sample, and concatenate what remains of the batches up to their largest size.

    Args:
        batches: the batches to draw from.
        size: the number of examples.
        seed: the seed of the draw.

    Returns:
        Batches with `size` examples in total.
    """
    sizes = [len(batch.labels) for batch in batches]
    keep = torch.zeros(sum(sizes), dtype=torch.bool)
    keep[stratified_sample(torch.cat([batch.labels for batch in batches]).numpy(), size, seed)] = True
    chosen = [batch.select(rows) for batch, rows in zip(batches, keep.split(sizes), strict=True) if rows.any()]
    merged: list[GroupBatch] = []
    for batch in sorted(chosen, key=lambda batch: batch.kind):
        last = merged[-1] if merged else None
        if last and last.kind == batch.kind and len(last.labels) + len(batch.labels) <= max(sizes):
            inputs = {name: torch.cat([last.inputs[name], value]) for name, value in batch.inputs.items()}
            merged[-1] = GroupBatch(inputs, torch.cat([last.labels, batch.labels]), batch.group)
        else:
            merged.append(batch)
    return merged


def stratified_sample(labels: Any, size: int, seed: int = 0) -> np.ndarray:
    """Draw examples so that every class keeps its share, and at least one example if `size` allows.

    Args:
        labels: (N,) class indices.
        size: the number of examples, >= 1; all of them if there are no more.
        seed: the seed of the draw.

    Returns:
        Ascending indices in [0, N): min(size, N) of them.

    Raises:
        ValueError: size is below 1.

    Example:
        >>> labels = np.repeat([0, 1, 2], [80, 19, 1])
        >>> np.bincount(labels[stratified_sample(labels, 20)]).tolist()
        [15, 4, 1]
    """
    labels = as_array(labels)
    check_number("size", size, least=1, whole=True)
    if size >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    classes, inverse, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    by_class = np.argsort(inverse, kind="stable")
    rank = np.empty(len(labels), int)  # of an example within its class
    rank[by_class] = np.concatenate([np.arange(count) for count in counts])
    # The first example of every class comes first; then all classes advance in proportion to their size.
    priority = np.where(rank == 0, -1.0 / counts[inverse], (rank + 0.5) / counts[inverse])
    if size < len(classes):
        priority = np.where(rank == 0, -counts[inverse].astype(float), 1.0)
    return np.sort(order[np.argsort(priority, kind="stable")[:size]])
