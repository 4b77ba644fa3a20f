"""Samplers that draw classes with other shares than the data has.

p(class c) ∝ n_c^q      instance: q = 1      square_root: q = ½      class_balanced: q = 0
progressive:            (1 − t) p_instance + t p_class_balanced, with t the fraction of training done
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

from hf_sharp.registry import Choice, Citation

# The exponent q at the start of training and at its end; in between, the two distributions are mixed.
SAMPLERS: dict[str, tuple[float, float]] = {
    "instance": (1.0, 1.0),
    "square_root": (0.5, 0.5),
    "class_balanced": (0.0, 0.0),
    "progressive": (1.0, 0.0),
}
# What to cite where examples are drawn by class.
CHOICES = (
    Choice(
        "sampler",
        lambda value: value not in (None, "instance"),
        citations=(
            Citation(
                "Bingyi Kang and Saining Xie and Marcus Rohrbach and Zhicheng Yan and Albert Gordo and Jiashi Feng and "
                "Yannis Kalantidis",
                "Decoupling Representation and Classifier for Long-Tailed Recognition",
                2019,
                arxiv="1910.09217",
            ),
        ),
    ),
)


def class_probabilities(name: str, class_counts: np.ndarray, progress: float = 0.0) -> np.ndarray:
    """Give the share of each class in what a sampler draws.

        p_c = (1 − t) n_c^q₀ / Σ n^q₀  +  t n_c^q₁ / Σ n^q₁

    Args:
        name: one of `SAMPLERS`.
        class_counts: (K,) integers >= 0; a class without examples is never drawn.
        progress: t in [0, 1], the fraction of training done.

    Returns:
        (K,) float64, of sum 1.

    Raises:
        ValueError: an unknown sampler.

    Example:
        >>> class_probabilities("square_root", np.array([9, 1, 0])).tolist()
        [0.75, 0.25, 0.0]
        >>> class_probabilities("progressive", np.array([9, 1]), progress=0.5).round(2).tolist()
        [0.7, 0.3]

    Reference:
        Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", arXiv 1910.09217,
        equations 1 and 2. There t moves once per epoch; here with every example.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; the samplers are {', '.join(SAMPLERS)}.")
    counts = np.asarray(class_counts, dtype=np.float64)
    start, end = (np.where(counts > 0, counts**q, 0.0) for q in SAMPLERS[name])
    return (1 - progress) * start / start.sum() + progress * end / end.sum()


class ClassSampler(Sampler[int]):
    """Draws as many examples per epoch as there are, class by class with the shares of `class_probabilities`.

    Within a class, no example comes a second time before all of the class have come once in the epoch. The draws
    depend on the seed and the epoch alone, so every process draws the same and takes its part of it, and a resumed run
    goes on with the examples that it would have seen.

    Args:
        labels: (N,) the label of every training example.
        name: one of `SAMPLERS`.
        seed: of the draws.
        epochs: gives the epoch that begins, from 0, and how many there are, which may be a fraction; asked when an
            epoch begins. (Not `set_epoch`: accelerate does not pass it on to the sampler of a resumed epoch on several
            processes.)

    Raises:
        ValueError: an unknown sampler.

    Example:
        >>> sampler = ClassSampler(np.array([0] * 90 + [1] * 10), "class_balanced")
        >>> drawn = list(sampler)
        >>> len(drawn), 30 < sum(index >= 90 for index in drawn) < 70
        (100, True)
    """

    def __init__(
        self, labels: np.ndarray, name: str, seed: int = 0, epochs: Callable[[], tuple[int, float]] = lambda: (0, 1)
    ) -> None:
        counts = np.bincount(labels)
        self._start, self._end = class_probabilities(name, counts, 0.0), class_probabilities(name, counts, 1.0)
        # The examples of each class, one after the other: those of class c begin at _first[c].
        self._by_class, self._first = np.argsort(labels, kind="stable"), np.cumsum(counts) - counts
        self._counts, self._seed, self._epochs = counts, seed, epochs

    def __len__(self) -> int:
        return len(self._by_class)

    def __iter__(self) -> Iterator[int]:
        size, (epoch, num_epochs) = len(self), self._epochs()
        rng = np.random.default_rng([self._seed, epoch])
        progress = ((epoch + np.arange(size) / size) / num_epochs).clip(max=1)
        early, late = (rng.choice(len(self._counts), size, p=p) for p in (self._start, self._end))
        classes = np.where(rng.random(size) < progress, late, early)
        drawn = np.empty(size, dtype=np.int64)
        for c, times in enumerate(np.bincount(classes, minlength=len(self._counts))):
            rounds = -(-times // max(self._counts[c], 1))
            order = np.concatenate([rng.permutation(self._counts[c]) for _ in range(rounds)] or [np.empty(0, int)])
            drawn[classes == c] = self._by_class[self._first[c] + order[:times]]
        yield from drawn.tolist()


class EpochCounter(TrainerCallback):
    """Counts the epochs that begin, from 0; one that was left early counts as one too."""

    epoch = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin where the training begins or goes on."""
        self.epoch = int(state.epoch or 0) - 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count."""
        self.epoch += 1
