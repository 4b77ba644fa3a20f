"""Bias-corrected temperature scaling: probabilities softmax(s z + b), fitted to labelled examples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from hf_sharp.registry.arrays import as_array

_PRIOR = 0.01  # precision of a normal prior on log s and b, which keeps them finite for perfectly separated classes


class Calibration(NamedTuple):
    """Calibrated probabilities softmax(scale · logits + bias).

    Attributes:
        scale: s = 1 / T > 0.
        bias: (K,).
    """

    scale: float
    bias: np.ndarray

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits (N, K) into probabilities (N, K)."""
        return softmax(self.scale * logits + self.bias, axis=1)


def fit_calibration(logits: Any, labels: Any, start: Calibration | None = None) -> Calibration:
    """Fit bias-corrected temperature scaling: maximise the likelihood of labels under softmax(s z + b).

    Args:
        logits: (N, K).
        labels: (N,) class indices; examples that the model was not trained on.
        start: the initial values; they only change how long the fit takes.

    Returns:
        The calibration.

    Example:
        >>> logits = np.log([[0.9, 0.1]] * 10)  # far too confident of class 0
        >>> fit_calibration(logits, [0] * 5 + [1] * 5)(logits)[0].round(2)
        array([0.5, 0.5])

    Reference:
        arXiv 1901.06852 (Alexandari, Kundaje and Shrikumar 2020), section 2.
    """
    logits, labels = as_array(logits, np.float64), as_array(labels)
    count, num_classes = logits.shape
    one_hot = np.eye(num_classes)[labels]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scale, bias = np.exp(parameters[0]), parameters[1:]
        log_p = log_softmax(scale * logits + bias, axis=1)
        residual = np.exp(log_p) - one_hot
        slope = np.concatenate([[scale * (residual * logits).sum()], residual.sum(0)])
        value = -log_p[np.arange(count), labels].sum() + 0.5 * _PRIOR * (parameters**2).sum()
        return value / count, (slope + _PRIOR * parameters) / count

    first = np.zeros(num_classes + 1) if start is None else np.append(np.log(start.scale), start.bias)
    found = minimize(loss, first, jac=True, method="L-BFGS-B").x
    return Calibration(float(np.exp(found[0])), found[1:])
