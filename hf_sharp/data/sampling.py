"""Samplers that change the share of each class in an epoch.

p(class c) ∝ n_c^q      instance: q = 1      square_root: q = ½      class_balanced: q = 0
progressive:            (1 − t) p_instance + t p_class_balanced, t is the fraction of training done
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler
from transformers import TrainerCallback

from hf_sharp.registry import Choice, Citation
from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.nearest import check_name

# The exponents q at the start and at the end of training; in between, the two distributions are mixed.
SAMPLERS: dict[str, tuple[float, float]] = {
    "instance": (1.0, 1.0),
    "square_root": (0.5, 0.5),
    "class_balanced": (0.0, 0.0),
    "progressive": (1.0, 0.0),
}
# The paper to cite if examples are drawn by class.
CHOICES = (
    Choice(
        "sampler",
        lambda values: values.get("sampler", "instance") != "instance",
        citations=(
            Citation(
                "Bingyi Kang and Saining Xie and Marcus Rohrbach and Zhicheng Yan and Albert Gordo and Jiashi Feng and "
                "Yannis Kalantidis",
                "Decoupling Representation and Classifier for Long-Tailed Recognition",
                2019,
                arxiv="1910.09217",
            ),
        ),
        summary="Training draws rare classes more often than they occur in the data.",
    ),
)


def class_probabilities(name: str, class_counts: np.ndarray, progress: float = 0.0) -> np.ndarray:
    """Compute the share of each class among the examples that a sampler draws.

        p_c = (1 − t) n_c^q₀ / Σ n^q₀  +  t n_c^q₁ / Σ n^q₁

    Args:
        name: one of `SAMPLERS`.
        class_counts: (K,) integers >= 0; a class without examples is never drawn.
        progress: t in [0, 1], the fraction of training done.

    Returns:
        (K,) float64, which sum to 1.

    Raises:
        ValueError: the sampler is unknown.

    Example:
        >>> class_probabilities("square_root", np.array([9, 1, 0])).tolist()
        [0.75, 0.25, 0.0]
        >>> class_probabilities("progressive", np.array([9, 1]), progress=0.5).round(2).tolist()
        [0.7, 0.3]

    Reference:
        Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", arXiv 1910.09217,
        equations 1 and 2. In the paper t changes once per epoch; here it changes with every example.
    """
    check_name("sampler", name, SAMPLERS)
    counts = as_array(class_counts, np.float64)
    start, end = (np.where(counts > 0, counts**q, 0.0) for q in SAMPLERS[name])
    return (1 - progress) * start / start.sum() + progress * end / end.sum()


class ClassSampler(Sampler[int]):
    """Draws N examples per epoch, with the class shares of `class_probabilities`.

    Within a class and an epoch, no example is repeated before all have been drawn once. The draws depend only on the
    seed and the epoch, so that all processes draw the same examples and divide them among themselves, and a resumed run
    continues with the same examples as an uninterrupted one.

    Args:
        labels: (N,) the label of every training example.
        name: one of `SAMPLERS`.
        seed: the seed of the draws.
        epochs: returns the current epoch, counted from 0, and the number of epochs, which may be fractional. It is
            called at the start of every epoch. (`set_epoch` would not work: accelerate does not pass it on to the
            sampler when several processes resume in the middle of an epoch.)

    Raises:
        ValueError: the sampler is unknown.

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
        # The examples sorted by class; those of class c start at _first[c].
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
        times = np.bincount(classes, minlength=len(self._counts))
        of_class = np.split(np.argsort(classes, kind="stable"), np.cumsum(times)[:-1])  # positions in the epoch
        for c in np.flatnonzero(times):
            rounds = -(-times[c] // self._counts[c])
            order = np.concatenate([rng.permutation(self._counts[c]) for _ in range(rounds)])
            drawn[of_class[c]] = self._by_class[self._first[c] + order[: times[c]]]
        yield from drawn.tolist()


class EpochCounter(TrainerCallback):
    """Counts the started epochs from 0, including those that ended early.

    Args:
        told: a function to call with the number of each epoch before its first batch is fetched.
    """

    epoch = 0

    def __init__(self, told: Callable[[int], Any] | None = None) -> None:
        self.told = told

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start at 0, or at the epoch that a resumed training continues."""
        self.epoch = int(state.epoch or 0) - 1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the epoch."""
        self.epoch += 1
        if self.told is not None:
            self.told(self.epoch)
