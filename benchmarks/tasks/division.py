"""How examples are divided into training, validation and test, and which texts are ambiguous."""

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
    """Divide examples into training, validation and test rows: the test balanced, and every group on one side.

    Classes are served from the rarest to the most frequent: first their test examples, then, out of what is left (the
    training split), their validation examples. Of a group that is larger than what is still wanted, the rest is left
    out, as it may be on no other side; groups of more than a quarter of what a class wants are therefore taken last.

    Args:
        labels: (N,) classes from 0 to K − 1.
        groups: (N,) examples that may not be on two sides (near-duplicates, one file series) have the same value.
        seed: of the draw.
        test_per_class: exactly this many test examples of every class.
        validation_per_class: at most this many validation examples of a class,
        validation_share: and at most this share of what the test left of it, but at least one.
        training_counts: gives, from how many examples of every class are left for training (K,), how many to keep;
            None keeps all.

    Returns:
        Three arrays of rows, each in ascending order.

    Raises:
        ValueError: a class has too few examples outside of other sides' groups for its test set.

    Example:
        >>> train, validation, test = divide([0] * 8 + [1] * 4, range(12), 0, test_per_class=2, validation_per_class=1)
        >>> len(train), len(validation), len(test)
        (6, 2, 4)
    """
    labels = np.asarray(labels)
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    counts = np.bincount(labels)
    side = np.full(numbers.max() + 1, -1)  # of every group: 0 training, 1 validation, 2 test, −1 not known yet
    chosen: dict[int, list[np.ndarray]] = {1: [], 2: []}
    order = np.argsort(counts, kind="stable")

    def take(rows: np.ndarray, wanted: int, which: int) -> np.ndarray:
        """Take `wanted` rows, whole groups as far as that goes, and put their groups on that side."""
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
    """Find the first of every text, and none of those that stand under two labels; case, digits and signs do not count.

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
