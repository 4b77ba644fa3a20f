"""Decides which examples of a micro-batch each pass takes.

The perturbed pass takes the examples whose c is not 0, the clean pass those whose c is not 1. The ascent takes the
examples of the perturbed pass, or a share of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_sharp.data.labels import IGNORED_LABEL

# Any value strictly between 0 and 1: it puts an example into both the clean and the perturbed pass.
_BOTH_PASSES = 0.5


class Division(NamedTuple):
    """The rows of a micro-batch that each pass takes, on the host; None means all rows, in order.

    `perturbed` (P,) are the rows with c other than 0. The first `ascent_size` of them are the ascent's. `clean` (Q,)
    are the rows with c other than 1.
    """

    perturbed: np.ndarray | None
    clean: np.ndarray | None
    ascent_size: int

    @classmethod
    def whole(cls, coefficients: np.ndarray) -> Division:
        """Make a division in which a pass takes all examples or none, because their losses depend on one another.

        Args:
            coefficients: (N,) the coefficients of the micro-batch's examples.
        """
        empty = np.empty(0, dtype=np.int64)
        perturbed, clean = (None if needed else empty for needed in (coefficients.any(), (coefficients != 1).any()))
        return cls(perturbed, clean, len(coefficients))

    @property
    def is_perturbed(self) -> bool:
        """Whether the perturbed pass takes any example."""
        return self.perturbed is None or len(self.perturbed) > 0


def divide(
    coefficients: np.ndarray, fraction: float = 1.0, rng: np.random.Generator | None = None, *, every_pass: bool = False
) -> Division:
    """Decide which examples of a micro-batch the passes take.

    Args:
        coefficients: (N,) the coefficients of the examples' classes.
        fraction: in (0, 1], the share of the perturbed examples that the ascent takes, rounded, at least one example.
        rng: draws the examples of the ascent; needed if `fraction` is below 1.
        every_pass: give a pass that has no examples one example with weight 0, so that all processes run the same
            passes. (There is no clean pass, though, if c is 1 for every class.)

    Returns:
        The rows of each pass.

    Example:
        >>> divide(np.array([0.0, 1.0, 0.0, 1.0]))
        Division(perturbed=array([1, 3]), clean=array([0, 2]), ascent_size=2)
        >>> divide(np.array([0.5, 0.5]))  # every example takes part in both
        Division(perturbed=None, clean=None, ascent_size=2)
        >>> divide(np.ones(8), fraction=0.25, rng=np.random.default_rng(0)).ascent_size
        2
    """
    perturbed, clean = np.flatnonzero(coefficients), np.flatnonzero(coefficients != 1)
    if every_pass:
        perturbed, clean = (rows if len(rows) else np.zeros(1, dtype=np.int64) for rows in (perturbed, clean))
    ascent_size = len(perturbed)
    if fraction < 1 and rng is not None:
        perturbed, ascent_size = rng.permutation(perturbed), max(round(fraction * ascent_size), min(ascent_size, 1))
    size = len(coefficients)
    return Division(None if ascent_size == size else perturbed, None if len(clean) == size else clean, ascent_size)


def rows_of(inputs: Mapping[str, Any], rows: Tensor | None, size: int) -> Mapping[str, Any]:
    """Pick examples of a micro-batch.

    Args:
        inputs: the micro-batch; tensors whose first dimension is N have one row per example.
        rows: (n,) int64, or None for all examples.
        size: N, the number of examples in the micro-batch.

    Returns:
        The micro-batch of these examples.

    Example:
        >>> rows_of({"x": torch.arange(3), "scale": 2.0}, torch.tensor([2, 0]), size=3)
        {'x': tensor([2, 0]), 'scale': 2.0}
    """
    if rows is None:
        return inputs
    return {
        name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value
        for name, value in inputs.items()
    }


class PassPlanner:
    """Divides micro-batches into passes, and weights their examples.

    Args:
        coefficients: c (K,) float64, the coefficient of each class.
        device: the device of the weights.
        dtype: the dtype of the weights.
        fraction: the share of the perturbed examples that the ascent takes.
        stochastic: put each example into only one of the two passes, into the perturbed one with probability c.
        separable: whether an example's loss is independent of the other examples, so that a pass may leave some out.
        same_passes: whether every process must run the same passes.
        seed: the seed of the draws.

    Example:
        >>> planner = PassPlanner(torch.tensor([0.0, 1.0]))
        >>> planner.divide(np.array([0, 1, 0]), size=3, draw=(0,))[0]
        Division(perturbed=array([1]), clean=array([0, 2]), ascent_size=1)
    """

    def __init__(
        self,
        coefficients: Tensor,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        fraction: float = 1.0,
        stochastic: bool = False,
        separable: bool = True,
        same_passes: bool = False,
        seed: int = 0,
    ) -> None:
        self.host_coefficients = coefficients.numpy()
        self.coefficients = coefficients.to(device, dtype)
        self.fraction, self.stochastic, self.seed = fraction, stochastic, seed
        self.separable, self.same_passes = separable, same_passes
        self.perturbs = bool(self.host_coefficients.any())
        self.uniform = bool((self.host_coefficients == 1).all())

    @property
    def needs_host_labels(self) -> bool:
        """Whether the division depends on the labels, which are slow to read from the device."""
        return self.stochastic or (self.perturbs and 0 in self.host_coefficients)

    def divide(self, labels: np.ndarray | None, size: int, draw: Sequence[int]) -> tuple[Division, Tensor | None]:
        """Divide a micro-batch.

        Args:
            labels: (N,) labels on the host, or None if they are only on the device.
            size: N, the number of examples.
            draw: integers that identify this draw, so that no two draws share random numbers.

        Returns:
            The division; and the coefficients (N,) that were drawn for the examples, or None if none were drawn.
        """
        rng, drawn = None, None
        if self.stochastic or self.fraction < 1:
            rng = np.random.default_rng([self.seed, *draw])
        if self.uniform:
            coefficients = np.ones(size)
        elif labels is None or (self.same_passes and not self.separable):
            coefficients = np.full(size, _BOTH_PASSES)
        else:
            coefficients = np.where(labels == IGNORED_LABEL, 0, self.host_coefficients[labels.clip(0)])
        if self.stochastic and rng is not None:
            coefficients = (rng.random(size) < coefficients).astype(np.float64)
            drawn = torch.from_numpy(coefficients).to(self.coefficients.dtype)
        if not self.separable:
            return Division.whole(coefficients), drawn
        return divide(coefficients, self.fraction, rng, every_pass=self.same_passes and not self.uniform), drawn

    def weights(self, labels: Tensor) -> Tensor:
        """Look up the coefficients of the examples with these labels, (N,) to (N,), on the device."""
        return self.coefficients[labels.clamp(min=0)]
