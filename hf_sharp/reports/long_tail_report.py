"""The long-tail report: how well a classifier recognizes frequent and rare classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.costs import read_costs
from hf_sharp.data.labels import IGNORED_LABEL, class_indices
from hf_sharp.registry.arrays import as_array
from hf_sharp.reports.calibration import calibration_bins, most_likely
from hf_sharp.reports.figures import cost_half_width

logger = logging.getLogger(__name__)

_RECALL_FLOOR = 1e-3


def long_tail_report(
    predictions: Any,
    references: Any,
    class_counts: Any,
    probabilities: Any = None,
    *,
    cost_matrix: Any = None,
    class_names: Any = None,
    rare_threshold: int = 20,
    common_threshold: int = 100,
) -> dict[str, Any]:
    """Report accuracy over all examples, over all classes, per group of classes and per class.

        recall_c = correct_c / examples_c        balanced accuracy = mean of recall_c over the classes with examples

    Args:
        predictions: (N,) predicted class indices in [0, K).
        references: (N,) true class indices in [0, K).
        class_counts: (K,) *training* examples of each class; or a `ClassFrequencies`, whose names and thresholds take
            precedence.
        probabilities: for the calibration error: (N, K), rows that sum to 1; or (N,), those of the predicted classes.
        cost_matrix: (K, K), the cost of predicting the column's class for an example of the row's class; or another
            form that `hf_sharp.data.costs.read_costs` takes, such as class name to number.
        class_names: K names.
        rare_threshold: classes with fewer training examples are "few".
        common_threshold: classes with more training examples are "many".

    Returns:
        `accuracy`; `balanced_accuracy`; `many_accuracy`, `medium_accuracy`, `few_accuracy`: the mean recall of the
        group's classes, None for a group without examples; `many_classes`, `medium_classes`, `few_classes`: their
        numbers of classes; `rare_threshold` and `common_threshold`; `macro_f1`, over the classes that occur or are
        predicted; `g_mean` and `harmonic_mean` of the recalls (in the latter, each is at least 1e-3);
        `worst_class_recall`, `worst_class` (its name); `calibration_error` (expected, 15 bins) with `probabilities`;
        `expected_cost` per example and `expected_cost_interval`, half the width of its 95 % interval, with
        `cost_matrix`; `per_class_recall` and `per_class_precision`, both None for a class without examples, and
        precision also for one that is never predicted; `per_class_support`, `per_class_predicted` (how often each class
        is predicted), `class_counts`; `class_names` if there are names; `confusions`, the ten most frequent.

    Raises:
        ValueError: there are no examples, the lengths differ, a class index is outside [0, K), probabilities do not sum
            to 1, or `read_costs` rejects the costs.

    Example:
        >>> report = long_tail_report([0, 0, 0, 1], [0, 0, 1, 1], class_counts=[150, 10])
        >>> report["accuracy"], report["many_accuracy"], report["few_accuracy"], report["medium_accuracy"]
        (0.75, 1.0, 0.5, None)
        >>> report["confusions"]
        [{'true': '1', 'predicted': '0', 'count': 1}]
    """
    if isinstance(class_counts, ClassFrequencies):
        frequencies = class_counts
    else:
        names = tuple(class_names) if class_names is not None else None
        thresholds = {"rare_threshold": rare_threshold, "common_threshold": common_threshold}
        frequencies = ClassFrequencies.from_counts(class_counts, names=names, **thresholds)
    num_classes = frequencies.num_classes
    predictions, references = checked_predictions(predictions, references, num_classes)
    right = predictions == references
    correct, support, predicted = (
        np.bincount(labels, minlength=num_classes) for labels in (references[right], references, predictions)
    )
    recall, precision = _ratio(correct, support), _ratio(correct, predicted * (support > 0))
    report = {
        "accuracy": float(correct.sum() / support.sum()),
        **_recall_figures(recall, frequencies),
        "macro_f1": float(np.nanmean(_ratio(2 * correct, support + predicted))),
        "rare_threshold": frequencies.rare_threshold,
        "common_threshold": frequencies.common_threshold,
    }
    if probabilities is not None:
        probabilities = as_array(probabilities)
        one, rows = predictions.shape, (len(predictions), num_classes)
        if probabilities.shape not in (one, rows):
            raise ValueError(f"probabilities must be of shape {rows} or {one}; got {probabilities.shape}.")
        report["calibration_error"] = calibration_bins(predictions, references, probabilities).error
    if cost_matrix is not None:
        costs = read_costs(cost_matrix, frequencies.labels)
        report["expected_cost"] = float(costs[references, predictions].mean())
        report["expected_cost_interval"] = cost_half_width(costs[references, predictions], costs)
    return report | {
        "per_class_recall": _without_nan(recall),
        "per_class_precision": _without_nan(precision),
        "per_class_support": support.tolist(),
        "per_class_predicted": predicted.tolist(),
        "class_counts": frequencies.counts.tolist(),
        **({} if frequencies.names is None else {"class_names": list(frequencies.names)}),
        "confusions": _confusions(predictions[~right], references[~right], frequencies),
    }


def _recall_figures(recall: np.ndarray, frequencies: ClassFrequencies) -> dict[str, Any]:
    present, worst = recall[~np.isnan(recall)], int(np.nanargmin(recall))
    figures: dict[str, Any] = {"balanced_accuracy": float(present.mean())}
    for group, classes in frequencies.groups.items():
        recalls = recall[classes][~np.isnan(recall[classes])]
        figures[f"{group}_accuracy"] = float(recalls.mean()) if len(recalls) else None
        figures[f"{group}_classes"] = len(classes)
    return figures | {
        "g_mean": float(np.exp(np.log(present).mean())) if present.all() else 0.0,
        "harmonic_mean": float(1 / np.mean(1 / np.maximum(present, _RECALL_FLOOR))),
        "worst_class_recall": float(recall[worst]),
        "worst_class": frequencies.name(worst),
    }


def compute_metrics_for(frequencies: ClassFrequencies, cost_matrix: Any = None) -> Callable[[Any], dict[str, float]]:
    """Make a `compute_metrics` that returns the report's numbers, which a tracker can log.

    Args:
        frequencies: the class frequencies of the training set.
        cost_matrix: as for `long_tail_report`.

    Returns:
        A function of an `EvalPrediction`, for any Trainer. Its result has no entry for a group without examples. It
        raises the errors of `long_tail_report`.

    Example:
        >>> from transformers import EvalPrediction
        >>> compute_metrics = compute_metrics_for(ClassFrequencies.from_counts([200, 5]))
        >>> logits, labels = np.array([[2.0, 1.0], [1.0, 3.0], [2.0, 0.0]]), np.array([0, 1, 1])
        >>> metrics = compute_metrics(EvalPrediction(logits, labels))
        >>> metrics["many_accuracy"], metrics["few_accuracy"], metrics["balanced_accuracy"]
        (1.0, 0.5, 0.75)
    """

    def compute_metrics(prediction: Any) -> dict[str, float]:
        return numbers_of(report_of_prediction(prediction, frequencies, cost_matrix))

    return compute_metrics


def numbers_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Select a report's numbers, which a tracker can log.

    Args:
        report: the result of `long_tail_report`.

    Returns:
        The entries that are numbers, without lists, strings and None.
    """
    return {name: value for name, value in report.items() if isinstance(value, (int, float))}


def report_of_prediction(prediction: Any, frequencies: ClassFrequencies, cost_matrix: Any = None) -> dict[str, Any]:
    """Make the report of the output of `Trainer.predict`, or of an `EvalPrediction`.

    Args:
        prediction: its `predictions` are logits (N, K), a tuple with the logits first, or class indices (N,); its
            `label_ids` are (N,). Both may be lists of batches. Examples labelled -100 are left out.
        frequencies: the class frequencies of the training set.
        cost_matrix: as for `long_tail_report`.

    Returns:
        The long-tail report; with the calibration error if there are logits and all are finite.

    Raises:
        ValueError: the logits have another shape; or as for `long_tail_report`.
    """
    outputs, labels = outputs_and_labels(prediction)
    if outputs.ndim == 1:  # preprocess_logits_for_metrics chose the classes
        return long_tail_report(outputs, labels, frequencies, cost_matrix=cost_matrix)
    if outputs.shape[1:] != (frequencies.num_classes,):
        raise ValueError(f"expected logits (N, {frequencies.num_classes}), one for each class; got {outputs.shape}.")
    predictions, confidence = most_likely(outputs)
    if confidence is None:  # training diverged; a search or the rest of the training should still continue
        logger.warning("The model's logits are not all finite, so the report has no calibration error.")
    return long_tail_report(predictions, labels, frequencies, confidence, cost_matrix=cost_matrix)


def outputs_and_labels(prediction: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs (N, K) or (N,) of a prediction and its labels (N,), without examples labelled -100."""
    outputs, labels = prediction.predictions, prediction.label_ids
    if isinstance(labels, list):  # eval_do_concat_batches=False
        labels = np.concatenate(labels)
        outputs = np.concatenate([batch[0] if isinstance(batch, tuple) else batch for batch in outputs])
    outputs = as_array(outputs[0] if isinstance(outputs, tuple) else outputs)
    counted = labels != IGNORED_LABEL
    return (outputs, labels) if counted.all() else (outputs[counted], labels[counted])


class MeanPrediction(NamedTuple):
    """Mean logits (N, K) and labels (N,), named as `Trainer.predict` names them."""

    predictions: np.ndarray
    label_ids: np.ndarray


def mean_prediction(predictions: Iterable[Any]) -> MeanPrediction:
    """Average the logits of several predictions of the same examples, such as those for several views of an image.

    Args:
        predictions: as for `report_of_prediction`, with logits.

    Returns:
        The mean logits (N, K) in float64, and the labels.

    Raises:
        ValueError: there is no prediction, or the labels differ, so that the examples are not the same.
    """
    total, labels, number = np.zeros(()), np.zeros(0), 0
    for number, prediction in enumerate(predictions, 1):
        outputs, own = outputs_and_labels(prediction)
        if number > 1 and not np.array_equal(own, labels):
            raise ValueError("the predictions to average are of different examples: their labels differ.")
        total, labels = total + outputs.astype(np.float64), own
    if not number:
        raise ValueError("there are no predictions to average.")
    return MeanPrediction(total / number, labels)


def check_finite(outputs: Any, what: str) -> None:
    """Raise a ValueError if outputs are infinite or NaN, because a report on them would be meaningless.

    Args:
        outputs: logits (N, K), a tuple with the logits first, or class indices (N,).
        what: the data that they were computed for, such as "the test split".
    """
    logits = as_array(outputs[0] if isinstance(outputs, tuple) else outputs)
    finite = np.isfinite(logits.reshape(len(logits), -1)).all(1)
    if not finite.all():
        raise ValueError(
            f"the model's outputs for {(~finite).sum():,} of {len(finite):,} examples of {what} are not finite (NaN or "
            f"infinite), such as those for example {int(np.argmin(finite)) + 1}: there is no report. Train with a "
            "lower learning_rate, evaluate without half precision, and check that the inputs hold no such values."
        )


def frequencies_of(report: Mapping[str, Any]) -> ClassFrequencies:
    """Restore the class frequencies of a report, with the names if it has them; a ValueError for anything else."""
    if not (isinstance(report, Mapping) and "class_counts" in report):
        raise ValueError(f"expected the result of long_tail_report, with all its figures; got {report!s:.80}.")
    names = report.get("class_names")
    return ClassFrequencies.from_counts(
        report["class_counts"],
        names=None if names is None else tuple(names),
        rare_threshold=report["rare_threshold"],
        common_threshold=report["common_threshold"],
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


def _without_nan(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _confusions(predictions: np.ndarray, references: np.ndarray, frequencies: ClassFrequencies) -> list[dict[str, Any]]:
    # Does not build the confusion matrix, which takes gigabytes for thousands of classes.
    num_classes = frequencies.num_classes
    pairs, numbers = np.unique(references * num_classes + predictions, return_counts=True)
    order = np.argsort(-numbers, kind="stable")[:10]
    return [
        {
            "true": frequencies.name(int(pair // num_classes)),
            "predicted": frequencies.name(int(pair % num_classes)),
            "count": int(number),
        }
        for pair, number in zip(pairs[order], numbers[order], strict=True)
    ]


def checked_predictions(predictions: Any, references: Any, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Give predicted and true class indices as two vectors (N,) of int64; a ValueError for what is none of them."""
    predictions, references = as_array(predictions), as_array(references)
    if predictions.ndim != 1 or predictions.shape != references.shape:
        raise ValueError(
            "predictions and references must be two vectors of one length, with a class index per example; got shapes "
            f"{predictions.shape} and {references.shape}."
        )
    if len(references) == 0:
        raise ValueError("there are no examples to report on: every label is -100, or the data is empty.")
    return class_indices(predictions, num_classes, "prediction"), class_indices(references, num_classes, "reference")
