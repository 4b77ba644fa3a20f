"""The long-tail report: what a classifier does on the classes it saw often, and on those it saw rarely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from hf_sharp.class_frequencies import ClassFrequencies
from hf_sharp.labels import IGNORED_LABEL


def long_tail_report(
    predictions: Any,
    references: Any,
    class_counts: Any,
    *,
    class_names: Any = None,
    rare_threshold: int = 20,
    common_threshold: int = 100,
) -> dict[str, Any]:
    """Report accuracy over all examples, over all classes, per group of classes and per class.

        recall_c = correct_c / examples_c        balanced accuracy = mean of recall_c over the classes that occur

    Args:
        predictions: (N,) predicted class indices in [0, K).
        references: (N,) true class indices in [0, K).
        class_counts: (K,) *training* examples of each class, or a `ClassFrequencies`, whose names and thresholds
            then count.
        class_names: K names.
        rare_threshold: "few" are the classes with fewer training examples.
        common_threshold: "many" are the classes with more training examples.

    Returns:
        `accuracy`; `balanced_accuracy`; `many_accuracy`, `medium_accuracy`, `few_accuracy`: the mean recall of the
        group's classes, None where the group has no class with examples; `many_classes`, `medium_classes`,
        `few_classes` (how many), `rare_threshold` and `common_threshold`, without which figures are not comparable;
        `worst_class_recall`, `worst_class` (its name); `per_class_recall` (None for a class without examples),
        `per_class_support`, `class_counts`.

    Raises:
        ValueError: no examples, different lengths, or a class index outside [0, K).

    Example:
        >>> report = long_tail_report([0, 0, 0, 1], [0, 0, 1, 1], class_counts=[150, 10])
        >>> report["accuracy"], report["many_accuracy"], report["few_accuracy"], report["medium_accuracy"]
        (0.75, 1.0, 0.5, None)
    """
    frequencies = (
        class_counts
        if isinstance(class_counts, ClassFrequencies)
        else ClassFrequencies.from_counts(
            class_counts,
            names=tuple(class_names) if class_names is not None else None,
            rare_threshold=rare_threshold,
            common_threshold=common_threshold,
        )
    )
    predictions, references = np.asarray(predictions), np.asarray(references)
    _check(predictions, references, frequencies.num_classes)

    confusion = confusion_matrix(references, predictions, labels=np.arange(frequencies.num_classes))
    correct, support = confusion.diagonal(), confusion.sum(axis=1)
    recall = np.divide(correct, support, out=np.full(len(support), np.nan), where=support > 0)
    worst = int(np.nanargmin(recall))

    report: dict[str, Any] = {
        "accuracy": float(correct.sum() / support.sum()),
        "balanced_accuracy": float(np.nanmean(recall)),
    }
    for group, classes in frequencies.groups.items():
        present = recall[classes][support[classes] > 0]
        report[f"{group}_accuracy"] = float(present.mean()) if len(present) else None
        report[f"{group}_classes"] = len(classes)
    return report | {
        "worst_class_recall": float(recall[worst]),
        "worst_class": frequencies.name(worst),
        "rare_threshold": frequencies.rare_threshold,
        "common_threshold": frequencies.common_threshold,
        "per_class_recall": [None if np.isnan(value) else float(value) for value in recall],
        "per_class_support": support.tolist(),
        "class_counts": frequencies.counts.tolist(),
    }


def compute_metrics_for(frequencies: ClassFrequencies) -> Callable[[Any], dict[str, float]]:
    """Make a `compute_metrics` of those figures of the report that a tracker can log: numbers, no None, no lists.

    Args:
        frequencies: of the training set.

    Returns:
        A function of an `EvalPrediction`, for any Trainer; a group without classes has no entry in what it returns.
    """

    def compute_metrics(prediction: Any) -> dict[str, float]:
        report = long_tail_report(*predicted_and_true(prediction), frequencies)
        return {name: value for name, value in report.items() if isinstance(value, (int, float))}

    return compute_metrics


def predicted_and_true(prediction: Any) -> tuple[np.ndarray, np.ndarray]:
    """Take the class indices, predicted and true, (N,) each, out of what `Trainer.predict` returns."""
    outputs = prediction.predictions
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    counted = prediction.label_ids != IGNORED_LABEL
    return logits.argmax(-1)[counted], prediction.label_ids[counted]


def _check(predictions: np.ndarray, references: np.ndarray, num_classes: int) -> None:
    if predictions.ndim != 1 or predictions.shape != references.shape:
        raise ValueError(
            "predictions and references must be two vectors of one length, one class index per example; got shapes "
            f"{predictions.shape} and {references.shape}."
        )
    if len(references) == 0:
        raise ValueError("there are no examples to report on.")
    for what, values in (("prediction", predictions), ("reference", references)):
        outside = (values < 0) | (values >= num_classes)
        if outside.any():
            row = int(np.argmax(outside))
            raise ValueError(f"{what} {row} is {values[row]}; expected a class index from 0 to {num_classes - 1}.")
