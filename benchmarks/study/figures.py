"""The metrics of a run, and paired differences between rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from hf_sharp.reports import pairs

RARE = 20


def rarest_third(counts: np.ndarray) -> np.ndarray:
    """Choose the third of the classes (rounded down, at least one) with the fewest training examples.

    Args:
        counts: (K,) training examples.

    Returns:
        Class indices; ties are in the order of the index.

    Example:
        >>> rarest_third(np.array([9, 2, 5, 7, 2, 8])).tolist()
        [1, 4]
    """
    return np.argsort(counts, kind="stable")[: max(1, len(counts) // 3)]


def figures(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float | None]:
    """Compute all metrics of a run from its logits.

    Args:
        logits: (N, K). Rows that are not finite, from diverged training, count as predictions of class 0.
        labels: (N,).
        counts: (K,) training examples of each class.

    Returns:
        `balanced_accuracy`, `few_accuracy` (classes with fewer than 20 training examples; None without such classes),
        `rarest_third`, `worst_class_recall`, `macro_f1`, `calibration_error` (None if not finite) and `accuracy`.
    """
    from hf_sharp.metrics import long_tail_report

    finite = bool(np.isfinite(logits).all())
    probabilities = softmax(logits.astype(np.float64), axis=1) if finite else None
    predictions = np.nan_to_num(logits, nan=-np.inf, neginf=-np.inf, posinf=np.inf).argmax(1)
    report = long_tail_report(predictions, labels, counts, probabilities, rare_threshold=RARE)
    recall = np.array([math.nan if value is None else value for value in report["per_class_recall"]])
    names = ("balanced_accuracy", "few_accuracy", "worst_class_recall", "macro_f1", "accuracy")
    return {
        **{name: report[name] for name in names},
        "rarest_third": float(np.nanmean(recall[rarest_third(counts)])),
        "calibration_error": report.get("calibration_error"),
    }


def paired(ours: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Compare two rows, seed by seed.

    Args:
        ours: one figure per seed.
        reference: the figures of the other row, for the same seeds.

    Returns:
        `mean` of the differences, and `low` and `high`, Student's 95 % interval of the mean (nan with one seed).

    Example:
        >>> {name: round(value, 3) for name, value in paired([0.5, 0.6, 0.7], [0.4, 0.5, 0.5]).items()}
        {'mean': 0.133, 'low': -0.01, 'high': 0.277}
    """
    compared = pairs.paired(reference, ours)
    mean, interval = compared["difference"], compared["interval"]
    half = math.nan if interval is None else interval
    return {"mean": mean, "low": mean - half, "high": mean + half}
