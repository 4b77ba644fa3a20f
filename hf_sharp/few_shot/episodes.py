"""Episodes of few-shot tasks, drawn as in Meta-Dataset, or with fixed ways and shots.

ways      k ~ U{5 … min(50, classes)}
queries   q = min(10, min_c ⌊n_c / 2⌋) of every class
support   β ~ U[0, 1),   |S| = min(500, Σ_c ⌊β min(100, n_c − q) + 1⌋)
          α_c ~ U(log ½, log 2),   R_c = n_c e^{α_c} / Σ_j n_j e^{α_j}
          k_c = min(⌊R_c (|S| − k)⌋ + 1, n_c − q) examples of class c
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.limits import check_number

MIN_WAYS, MAX_WAYS = 5, 50
MAX_QUERIES = 10
MAX_SUPPORT, MAX_SUPPORT_OF_CLASS = 500, 100


class Task(NamedTuple):
    """The part of an episode that an adaptation sees: everything but the labels of the queries.

    Attributes:
        support: (S,) rows of the dataset to learn from.
        support_labels: (S,) from 0 to k − 1; every class occurs.
        query: (Q,) rows to classify.
    """

    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray

    @property
    def ways(self) -> int:
        """The number of classes in the support set."""
        return int(self.support_labels.max()) + 1


class Episode(NamedTuple):
    """One task: rows of the dataset and their classes within the task.

    Attributes:
        support: (S,) rows to learn from.
        support_labels: (S,) from 0 to k − 1; every class occurs.
        query: (Q,) rows to classify; none of them is in the support set.
        query_labels: (Q,) from 0 to k − 1, for scoring only.
        classes: (k,) the dataset's class for each of the labels 0 to k − 1.
    """

    support: np.ndarray
    support_labels: np.ndarray
    query: np.ndarray
    query_labels: np.ndarray
    classes: np.ndarray

    @property
    def task(self) -> Task:
        """The episode without the labels of its queries."""
        return Task(self.support, self.support_labels, self.query)


class EpisodeSampler:
    """Draws episodes from the labels of a dataset. The n-th episode depends only on n and the seed.

    Args:
        labels: (N,) class of every example.
        ways: the fixed number of classes per episode, at least 2; None to draw from 5 to 50 as in Meta-Dataset.
        shots: the fixed number of support examples per class; None to draw it as in Meta-Dataset.
        queries: the number of query examples per class; None for up to 10, as in Meta-Dataset.
        seed: the seed of the draws.

    Raises:
        ValueError: too few classes have enough examples, or `labels` is not one-dimensional.

    Example:
        >>> sampler = EpisodeSampler(np.repeat(np.arange(8), 20), ways=5, shots=1)
        >>> episode = sampler.draw(0)
        >>> len(episode.classes), len(episode.support), len(episode.query)
        (5, 5, 50)
    """

    def __init__(
        self,
        labels: Any,
        ways: int | None = None,
        shots: int | None = None,
        queries: int | None = None,
        seed: int = 0,
    ) -> None:
        self.labels = as_array(labels)
        if self.labels.ndim != 1:
            raise ValueError(f"labels must be one per example, (N,); got the shape {self.labels.shape}.")
        self.ways, self.shots, self.queries, self.seed = ways, shots, queries, seed
        for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1)):
            check_number(name, value, least=least, whole=True, optional=True)
        needed = (shots or 1) + (queries or 1)
        order = np.argsort(self.labels, kind="stable")
        classes, first, counts = np.unique(self.labels[order], return_index=True, return_counts=True)
        large = counts >= needed
        self.classes = classes[large]
        self._rows = [order[start : start + n] for start, n in zip(first[large], counts[large], strict=True)]
        least = MIN_WAYS if ways is None else ways
        if len(self.classes) < least:
            raise ValueError(
                f"an episode needs {least} classes with at least {needed} examples each ({shots or 1} for the support "
                f"set, {queries or 1} to query); {len(self.classes)} of the {len(classes)} classes have them. Choose "
                "fewer ways, shots or queries, or other data."
            )

    def draw(self, number: int) -> Episode:
        """Draw an episode.

        Args:
            number: the episode's number, counted from 0.

        Returns:
            The episode.
        """
        rng = np.random.default_rng([self.seed, number])
        ways = int(rng.integers(MIN_WAYS, min(MAX_WAYS, len(self.classes)) + 1)) if self.ways is None else self.ways
        chosen = rng.choice(len(self.classes), ways, replace=False)
        sizes = np.array([len(self._rows[c]) for c in chosen])
        queries = self._queries(int(sizes.min()))
        shots = self._shots(rng, sizes, queries) if self.shots is None else np.full(ways, self.shots)
        support, query = [], []
        for c, of_class in zip(chosen, shots, strict=True):
            rows = rng.choice(self._rows[c], queries + of_class, replace=False)
            query.append(rows[:queries])
            support.append(rows[queries:])
        return Episode(
            np.concatenate(support),
            np.repeat(np.arange(ways), shots),
            np.concatenate(query),
            np.repeat(np.arange(ways), queries),
            self.classes[chosen],
        )

    def _queries(self, smallest: int) -> int:
        if self.queries is not None:
            return self.queries
        # With fixed shots, using half of a class as queries may leave too few; then all examples but the shots are.
        return min(MAX_QUERIES, smallest // 2 if self.shots is None else smallest - self.shots)

    def _shots(self, rng: np.random.Generator, sizes: np.ndarray, queries: int) -> np.ndarray:
        beta = rng.random()
        available = sizes - queries
        total = min(MAX_SUPPORT, int(np.floor(beta * np.minimum(MAX_SUPPORT_OF_CLASS, available) + 1).sum()))
        shares = sizes * np.exp(rng.uniform(math.log(0.5), math.log(2), len(sizes)))
        shares /= shares.sum()
        return np.minimum(np.floor(shares * max(total - len(sizes), 0)).astype(int) + 1, available)

    def __call__(self, episodes: int) -> Iterator[Episode]:
        """Draw the first episodes in order."""
        return map(self.draw, range(episodes))


def sample_episode(
    labels: Any, ways: int | None = None, shots: int | None = None, queries: int | None = None, seed: int = 0
) -> Episode:
    """Draw one episode from the labels of a dataset.

    Args:
        labels: (N,) class of every example.
        ways: fixed number of classes; None: Meta-Dataset's, from 5 to 50.
        shots: fixed number of support examples of every class; None: Meta-Dataset's, unequal.
        queries: query examples of every class; None: Meta-Dataset's, up to 10.
        seed: seed of the draw.

    Returns:
        The episode.

    Raises:
        ValueError: as `EpisodeSampler`.

    Example:
        >>> episode = sample_episode(np.repeat(np.arange(20), 30), seed=3)
        >>> 5 <= len(episode.classes) <= 20, bool(np.intersect1d(episode.support, episode.query).size)
        (True, False)

    Reference:
        Triantafillou et al., "Meta-Dataset", arXiv 1903.03096, section 3.2; arXiv 2404.07696.
    """
    return EpisodeSampler(labels, ways, shots, queries, seed).draw(0)
