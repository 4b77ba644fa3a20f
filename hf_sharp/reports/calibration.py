"""Calibration: the gap between the confidence of predictions and their accuracy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS = 15


class CalibrationBins(NamedTuple):
    """Predictions in bins of equal width by confidence: (0, 1/15], (1/15, 2/15], ...; 0 belongs to the first bin.

    Attributes:
        count: (15,) predictions.
        confidence: (15,) mean confidence; NaN in an empty bin.
        accuracy: (15,) share of right predictions; NaN in an empty bin.
        error: the expected calibration error, Σ_b count_b |accuracy_b − confidence_b| / N.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibration_bins(predictions: np.ndarray, references: np.ndarray, probabilities: np.ndarray) -> CalibrationBins:
    """Sort predictions into bins by their confidence.

    Args:
        predictions: (N,) predicted class indices.
        references: (N,) true class indices.
        probabilities: (N, K), rows that sum to 1.

    Returns:
        The bins.

    Raises:
        ValueError: the probabilities are not one row per example, are negative, or do not sum to 1.

    Example:
        >>> bins = calibration_bins(np.array([0, 1]), np.array([0, 0]), np.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> round(bins.error, 3)
        0.4
    """
    _check_probabilities(probabilities, len(predictions))
    confidence = probabilities[np.arange(len(predictions)), predictions]
    index = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    right = predictions == references
    count, sure, correct = (np.bincount(index, weights, BINS) for weights in (None, confidence, right))
    error = float(np.abs(np.bincount(index, right - confidence, BINS)).sum() / len(predictions))
    with np.errstate(invalid="ignore"):
        return CalibrationBins(count, sure / count, correct / count, error)


def _check_probabilities(probabilities: np.ndarray, examples: int) -> None:
    if probabilities.ndim != 2 or len(probabilities) != examples:
        raise ValueError(f"probabilities must be of shape ({examples}, K); got {probabilities.shape}.")
    total = probabilities.sum(axis=1)
    proper = np.isclose(total, 1, atol=1e-3) & (probabilities >= 0).all(axis=1)
    if not proper.all():
        row = int(np.argmin(proper))
        raise ValueError(
            f"the probabilities of example {row} sum to {total[row]:.4g}, the smallest is "
            f"{probabilities[row].min():.4g}: are they logits? Expected numbers >= 0 that sum to 1."
        )
