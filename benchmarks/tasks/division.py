"""Divides examples into training, validation and test, and finds ambiguous texts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np


def divide(
    labels: Sequence[int] | np.ndarray,
    groups: Sequence | np.ndarray,
    seed: int,
    *,
    test_per_class: int,
    validation_per_class: int,
    validation_share: float = 0.25,
    training_counts: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide examples into training, validation and test rows, with a balanced test set and every group in one part.

    Classes are processed from the rarest to the most frequent: first their test examples are drawn, then, from the
    remaining (training) examples, their validation examples. If a group is larger than the number still wanted, its
    other examples are dropped, because they must not be in another part; groups of more than a quarter of the wanted
    number are therefore used last.

    Args:
        labels: (N,) classes from 0 to K − 1.
        groups: (N,) examples that must be in the same part (near-duplicates, one file series) have the same value.
        seed: the seed of the draw.
        test_per_class: exactly this many test examples of every class.
        validation_per_class: the largest number of validation examples per class.
        validation_share: the largest share of a class's remaining examples to use for validation, but at least one.
        training_counts: maps the number of examples left for training, (K,), to the number to keep; None to keep all.

    Returns:
        The training, validation and test rows, each in ascending order.

    Raises:
        ValueError: a class has too few examples for its test set outside the groups of other parts.

    Example:
        >>> train, validation, test = divide([0] * 8 + [1] * 4, range(12), 0, test_per_class=2, validation_per_class=1)
        >>> len(train), len(validation), len(test)
        (6, 2, 4)
    """
    labels = np.asarray(labels)
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    counts = np.bincount(labels)
    side = np.full(numbers.max() + 1, -1)  # for every group: 0 training, 1 validation, 2 test, −1 undecided
    chosen: dict[int, list[np.ndarray]] = {1: [], 2: []}
    order = np.argsort(counts, kind="stable")

    def take(rows: np.ndarray, wanted: int, which: int) -> np.ndarray:
        """Take `wanted` rows, in whole groups as far as possible, and assign their groups to that part."""
        taken: list[int] = []
        members = {g: rows[numbers[rows] == g] for g in rng.permutation(np.unique(numbers[rows]))}
        bound = [g for g in members if side[g] == which]
        free = [g for g in members if side[g] == -1]
        free.sort(key=lambda g: len(members[g]) > math.ceil(wanted / 4))
        for group in bound + free:
            if len(taken) >= wanted:
                break
            side[group] = which
            taken += rng.permutation(members[group])[: wanted - len(taken)].tolist()
        return np.array(taken, dtype=np.int64)

    for label in order:
        rows = np.flatnonzero(labels == label)
        test = take(rows, test_per_class, 2)
        if len(test) < test_per_class:
            raise ValueError(f"class {label} has {len(test)} examples for its test set; {test_per_class} are needed.")
        chosen[2].append(test)
    for label in order:
        rows = np.flatnonzero(labels == label)
        rows = rows[side[numbers[rows]] != 2]
        wanted = max(1, min(validation_per_class, int(validation_share * len(rows))))
        chosen[1].append(take(rows, wanted, 1))
    training = np.flatnonzero(np.isin(side[numbers], (-1, 0)))
    if training_counts is not None:
        keep = training_counts(np.bincount(labels[training], minlength=len(counts)))
        per_class = [rng.permutation(training[labels[training] == label])[: keep[label]] for label in range(len(keep))]
        training = np.concatenate(per_class)
    return np.sort(training), np.sort(np.concatenate(chosen[1])), np.sort(np.concatenate(chosen[2]))


def unambiguous(texts: Sequence[str], labels: Sequence[int]) -> list[int]:
    """Find the first occurrence of every text, except texts with two labels; case, digits and punctuation are ignored.

    Args:
        texts: N texts.
        labels: N labels.

    Returns:
        Rows, in ascending order.

    Example:
        >>> unambiguous(["A cat.", "a cat", "a dog", "a dog"], [0, 0, 1, 2])
        [0]
    """
    first: dict[str, int] = {}
    seen: dict[str, set[int]] = {}
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        key = re.sub(r"[\W\d_]+", " ", text.lower()).strip()
        first.setdefault(key, row)
        seen.setdefault(key, set()).add(label)
    return sorted(row for key, row in first.items() if len(seen[key]) == 1)
