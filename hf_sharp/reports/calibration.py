"""Confidence of predictions, and calibration: the gap between confidence and accuracy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15
_ROUNDING = 1e-2  # how far sums of probabilities may be from 1, such as those in bfloat16
_AT_ONCE = 2**18  # the number of values per chunk, 2 MiB in float64


class CalibrationBins(NamedTuple):
    """Predictions in 15 bins of equal width by confidence: (0, 1/15], (1/15, 2/15], ...; the first includes 0.

    Attributes:
        counts: (15,) number of predictions.
        confidence: (15,) mean confidence; NaN in an empty bin.
        accuracy: (15,) share of correct predictions; NaN in an empty bin.
        error: the expected calibration error, Σ_b n_b |accuracy_b − confidence_b| / N.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration_bins(predictions: np.ndarray, references: np.ndarray, probabilities: np.ndarray) -> CalibrationBins:
    """Sort predictions into bins by their confidence.

    Args:
        predictions: (N,) predicted class indices.
        references: (N,) true class indices.
        probabilities: (N, K), rows that sum to 1; or (N,), those of the predicted classes.

    Returns:
        The bins.

    Raises:
        ValueError: the probabilities are not one row or number per example, are negative, or do not sum to 1.

    Example:
        >>> bins = calibration_bins(np.array([0, 1]), np.array([0, 0]), np.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> round(bins.error, 3)
        0.4
    """
    confidence = _confidence(probabilities, predictions)
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    right = predictions == references
    count, sure, correct = (np.bincount(index, weights, BINS) for weights in (None, confidence, right))
    error = float(np.abs(np.bincount(index, right - confidence, BINS)).sum() / len(predictions))
    with np.errstate(invalid="ignore"):
        return CalibrationBins(count, sure / count, correct / count, error)


def most_likely(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Choose the class with the highest logit, in chunks, so that memory does not grow with N K.

    Args:
        logits: (N, K), of any precision.

    Returns:
        (N,) classes; and their probabilities softmax(z), (N,) float64, or None if a logit is infinite or NaN.

    Example:
        >>> most_likely(np.array([[0.0, 0.0, np.log(2.0)]]))
        (array([2]), array([0.5]))
    """
    classes, confidence = np.zeros(len(logits), np.int64), np.zeros(len(logits))
    finite = True
    rows = max(1, _AT_ONCE // logits.shape[1])
    for start in range(0, len(logits), rows):
        part, here = logits[start : start + rows].astype(np.float64), slice(start, start + rows)
        classes[here] = part.argmax(1)
        finite = finite and bool(np.isfinite(part).all())
        if finite:
            confidence[here] = 1 / np.exp(part - part.max(1, keepdims=True)).sum(1)
    return classes, confidence if finite else None


def _confidence(probabilities: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    examples = len(predictions)
    if probabilities.shape == (examples,):
        proper = (probabilities >= 0) & (probabilities <= 1 + _ROUNDING)
        if not proper.all():
            row = int(np.argmin(proper))
            raise ValueError(f"the probability of example {row} is {probabilities[row]:.4g}; expected one from 0 to 1.")
        return probabilities
    if probabilities.ndim != 2 or len(probabilities) != examples:
        raise ValueError(f"probabilities must be of shape ({examples}, K) or ({examples},); got {probabilities.shape}.")
    total = probabilities.sum(axis=1)
    proper = np.isclose(total, 1, atol=_ROUNDING) & (probabilities >= 0).all(axis=1)
    if not proper.all():
        row = int(np.argmin(proper))
        raise ValueError(
            f"the probabilities of example {row} sum to {total[row]:.4g}, the smallest is "
            f"{probabilities[row].min():.4g}: are they logits? Expected numbers >= 0 that sum to 1."
        )
    return probabilities[np.arange(examples), predictions]
