"""A sharpness method is a vector c of K coefficients: how much of each class's loss is taken at w + ε.

none       c = 0
sam        c = 1
imbsam     c = 1 for rare classes, else 0
focal_sam  c = λ (1 − π)^γ
cc_sam     c = 0: it perturbs the head alone, class by class (class_conditional.py)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


def _none(class_counts: Tensor) -> Tensor:
    return torch.zeros(len(class_counts), dtype=torch.float64)


def _sam(class_counts: Tensor) -> Tensor:
    return torch.ones(len(class_counts), dtype=torch.float64)


def _imbsam(class_counts: Tensor, rare_threshold: int = 20) -> Tensor:
    rare = class_counts < rare_threshold
    if not (rare & (class_counts > 0)).any():
        raise ValueError(
            f"sharpness='imbsam' perturbs the classes with fewer than rare_threshold={rare_threshold} examples, and "
            f"there are none: the smallest class has {int(class_counts.min())}. Raise rare_threshold, or choose 'sam'."
        )
    return rare.double()


FOCAL_SAMPLINGS = ("exact", "stochastic")


def _focal_sam(
    class_counts: Tensor, focal_gamma: float = 1.0, focal_lambda: float = 0.8, focal_sampling: str = "exact"
) -> Tensor:
    for name, value in (("focal_gamma", focal_gamma), ("focal_lambda", focal_lambda)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number >= 0, got {value}.")
    priors = class_counts.double() / class_counts.sum()
    coefficients = focal_lambda * (1 - priors) ** focal_gamma
    if focal_sampling == "stochastic" and (coefficients > 1).any():
        raise ValueError(
            f"focal_sampling='stochastic' takes coefficients for probabilities, and one is {coefficients.max():.3g} "
            f"with focal_lambda={focal_lambda}. Choose focal_lambda <= 1, or focal_sampling='exact'."
        )
    return coefficients


def _cc_sam(class_counts: Tensor, cc_radius: float = 1e-6, cc_phi: float = 0.5) -> Tensor:
    if not (math.isfinite(cc_radius) and cc_radius >= 0):
        raise ValueError(f"cc_radius must be a finite number >= 0, got {cc_radius}.")
    if not 0 <= cc_phi <= 1:
        raise ValueError(f"cc_phi is the share of the perturbed loss, from 0 to 1; got {cc_phi}.")
    return _none(class_counts)


METHODS: dict[str, Callable[..., Tensor]] = {
    "none": _none,
    "sam": _sam,
    "imbsam": _imbsam,
    "focal_sam": _focal_sam,
    "cc_sam": _cc_sam,
}
WITHOUT_RADIUS = ("none", "cc_sam")  # methods without an ascent of all weights


def method_options(name: str) -> set[str]:
    """Name the options that a method's coefficients take beside the class counts."""
    return set(inspect.signature(METHODS[name]).parameters) - {"class_counts"}


def class_coefficients(name: str, class_counts: Any, **options: Any) -> Tensor:
    """Give the coefficients c of a sharpness method.

        g = ∇ mean((1 − c_y) ℓ)(w) + ∇ mean(c_y ℓ)(w + ε)

    Args:
        name: one of `METHODS`.
        class_counts: (K,) integers >= 0, the training examples of each class.
        **options: `rare_threshold` (ImbSAM: rare is n_c < rare_threshold; 20), `focal_gamma` and `focal_lambda`
            (Focal-SAM: γ >= 0 and λ >= 0; the paper's for fine-tuning CIFAR-100-LT: 5.5 and 0.8),
            `focal_sampling` ("stochastic" needs c <= 1; the coefficients are the same), `cc_radius` and `cc_phi`
            (CC-SAM, which has no coefficient; 1e-6 and 0.5).

    Returns:
        (K,) float64 on the CPU.

    Raises:
        ValueError: an unknown name, an option that the method does not take or that is out of range, or ImbSAM
            without a rare class.

    Example:
        >>> class_coefficients("focal_sam", [6, 3, 1], focal_gamma=1.0, focal_lambda=1.0)
        tensor([0.4000, 0.7000, 0.9000], dtype=torch.float64)
        >>> class_coefficients("imbsam", [600, 30, 10])
        tensor([0., 0., 1.], dtype=torch.float64)

    Reference:
        SAM arXiv 2010.01412; ImbSAM arXiv 2308.07815, equation 7; Focal-SAM arXiv 2505.01660, equation 8. The
        authors' ImbSAM code adds the tail loss twice; this follows the paper's objective.
    """
    if name not in METHODS:
        raise ValueError(f"unknown sharpness method {name!r}; the methods are {', '.join(METHODS)}.")
    unknown = sorted(set(options) - method_options(name))
    if unknown:
        takes = ", ".join(sorted(method_options(name))) or "no options"
        raise ValueError(f"sharpness method {name!r} does not take {', '.join(unknown)}; it takes {takes}.")
    return METHODS[name](torch.tensor(np.asarray(class_counts), dtype=torch.int64), **options)


class Division(NamedTuple):
    """Which examples of a micro-batch the passes take, by row, on the host.

    `perturbed` (P,) are those with c other than 0, of which the first `ascent_size` are the ascent's; `clean` (Q,) are
    those with c other than 1. None stands for all of them in their order.
    """

    perturbed: np.ndarray | None
    clean: np.ndarray | None
    ascent_size: int

    @classmethod
    def whole(cls, coefficients: np.ndarray) -> Division:
        """Let every pass that takes an example take all of them, for examples that cannot be told apart.

        Args:
            coefficients: (N,) those of the micro-batch's examples.
        """
        empty = np.empty(0, dtype=np.int64)
        perturbed, clean = (None if some else empty for some in (coefficients.any(), (coefficients != 1).any()))
        return cls(perturbed, clean, len(coefficients))


def divide(
    coefficients: np.ndarray, fraction: float = 1.0, rng: np.random.Generator | None = None, *, every_pass: bool = False
) -> Division:
    """Say which examples of a micro-batch the passes take.

    Args:
        coefficients: (N,) those of the examples' classes.
        fraction: in (0, 1], the share of the perturbed examples that the ascent takes, rounded, at least one.
        rng: draws that share; needed below 1.
        every_pass: let a pass that would have no example take one, whose coefficient makes it count 0: for processes
            that must all make the same passes. (Not for a clean pass where c is 1 for every class.)

    Returns:
        The rows.

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
    everything = len(coefficients)
    return Division(
        None if ascent_size == everything else perturbed, None if len(clean) == everything else clean, ascent_size
    )
