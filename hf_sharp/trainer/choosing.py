"""The metrics that choose the best checkpoint and the best trial of a search, checked before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import datasets
import numpy as np
from transformers import EvalPrediction

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import read_labels
from hf_sharp.reports.long_tail_report import long_tail_report, numbers_of
from hf_sharp.sharpness.replay import random_state_kept

_SPEED = ("runtime", "samples_per_second", "steps_per_second")
# With several evaluation sets, the means of these metrics are also reported, so that they can choose the best model.
_MEANS = ("balanced_accuracy", "loss")
_TRIED = 64  # the number of made-up predictions


def metric_names(eval_dataset: Any, frequencies: ClassFrequencies, label_column: str) -> set[str]:
    """List the metrics that an evaluation with the long-tail report will have, without their prefix.

    Args:
        eval_dataset: one dataset, or several by name. A group's metrics exist only if the dataset has examples of it.
        frequencies: the class frequencies of the training set.
        label_column: the column with the labels.

    Returns:
        The names. With several datasets, each name is preceded by its dataset's name, and the means are included.

    Raises:
        ValueError: the labels cannot be read.
    """
    if isinstance(eval_dataset, dict):
        sets = {name: metric_names(data, frequencies, label_column) for name, data in eval_dataset.items()}
        means = {name for name in _MEANS if all(name in names for names in sets.values())}
        return means | {f"{name}_{metric}" for name, names in sets.items() for metric in names}
    labels = np.arange(frequencies.num_classes)
    if isinstance(eval_dataset, datasets.Dataset):
        if label_column not in eval_dataset.column_names:
            return set(_SPEED)
        found = np.unique(read_labels(eval_dataset, label_column)) if len(eval_dataset) else labels
        labels = found[found < frequencies.num_classes]
    report = long_tail_report(labels, labels, frequencies)
    return {*numbers_of(report), *_SPEED, "loss", "calibration_error"}


def check_best_metric(args: Any, eval_dataset: Any, frequencies: ClassFrequencies) -> None:
    """Raise a ValueError if the best model is chosen by a metric that no evaluation reports.

    Args:
        args: `SharpTrainingArguments`.
        eval_dataset: one dataset, several by name, or None.
        frequencies: the class frequencies of the training set.
    """
    asked = args.metric_for_best_model
    if not _is_needed(args, eval_dataset):
        return
    known = metric_names(eval_dataset, frequencies, args.label_column)
    if args.prediction_loss_only:
        known = {name for name in known if name.endswith(("loss", *_SPEED))}
    if asked.removeprefix("eval_") in known:
        return
    shown = sorted(known - {name for name in known if name.endswith((*_SPEED, "_classes", "_threshold"))})
    raise ValueError(
        f"metric_for_best_model={asked!r} is not reported by any evaluation. Expected one of "
        f"{', '.join(shown)}; or pass a compute_metrics of your own that returns it."
    )


def check_own_metrics(
    args: Any, eval_dataset: Any, compute_metrics: Callable[[Any], Any], frequencies: ClassFrequencies
) -> None:
    """Raise a ValueError if the user's `compute_metrics` does not return the metric that chooses the best model.

    The function is called once, with made-up predictions that are all correct. If it raises an exception for them, or
    needs more than predictions, the check is left to the first evaluation.

    Args:
        args: `SharpTrainingArguments`.
        eval_dataset: one dataset, several by name, or None.
        compute_metrics: the user's function.
        frequencies: the class frequencies of the training set.
    """
    if not _is_needed(args, eval_dataset) or args.batch_eval_metrics or args.include_for_metrics:
        return
    labels = np.arange(min(frequencies.num_classes, _TRIED))
    logits = np.eye(len(labels), frequencies.num_classes, dtype=np.float32)
    try:
        with random_state_kept([]):
            own = {str(name).removeprefix("eval_") for name in compute_metrics(EvalPrediction(logits, labels))}
    except Exception:  # the user's code may reject made-up predictions; a real error is raised in the first evaluation
        return
    names = {*own, "loss", *_SPEED}
    if isinstance(eval_dataset, dict):
        names = {"loss"} | {f"{one}_{name}" for one in eval_dataset for name in names}
    check_reported(args.metric_for_best_model, names)


def check_reported(asked: str | None, names: Iterable[str]) -> None:
    """Raise a ValueError if the metric that chooses the best model is not among the metrics of an evaluation.

    Args:
        asked: `metric_for_best_model`, or None.
        names: the names of the evaluation's metrics.
    """
    there = {name.removeprefix("eval_") for name in names}
    if asked is None or (name := asked.removeprefix("eval_")) in there:
        return
    shown = ", ".join(sorted(there - {name for name in there if name.endswith((*_SPEED, "epoch"))}))
    raise ValueError(
        f"metric_for_best_model={asked!r} is not among the metrics of the evaluation: {shown}. Set it to one of them, "
        f"or let your compute_metrics return {{{name!r}: ...}} too."
    )


def _is_needed(args: Any, eval_dataset: Any) -> bool:
    return args.metric_for_best_model is not None and args.eval_strategy != "no" and eval_dataset is not None


def check_set_names(eval_dataset: Any) -> None:
    """Raise a ValueError if an evaluation set's accuracy would have the same name as the mean balanced accuracy."""
    if isinstance(eval_dataset, dict) and "balanced" in eval_dataset:
        raise ValueError(
            "an evaluation set is called 'balanced', so that eval_balanced_accuracy would be its accuracy, and also "
            "the mean balanced accuracy of all sets. Rename the set."
        )


def means_over_sets(metrics: Mapping[str, float], sets: list[str], prefix: str) -> dict[str, float]:
    """Average balanced accuracy and loss over evaluation sets.

    Args:
        metrics: the metrics of all evaluation sets.
        sets: the names of the evaluation sets.
        prefix: the prefix of the metric names, before the name of the set.

    Returns:
        The means of the metrics that every set has.

    Example:
        >>> means_over_sets({"eval_a_loss": 1.0, "eval_b_loss": 3.0}, ["a", "b"], "eval")
        {'eval_loss': 2.0}
    """
    means = {}
    for name in _MEANS:
        values = [metrics.get(f"{prefix}_{one}_{name}") for one in sets]
        if None not in values:
            means[f"{prefix}_{name}"] = sum(values) / len(values)  # type: ignore[arg-type]
    return means


def mean_balanced_accuracy(metrics: Mapping[str, float]) -> float:
    """Return the objective of a search: the balanced accuracy, or its mean over several evaluation sets."""
    accuracies = [value for name, value in metrics.items() if name.endswith("_balanced_accuracy")]
    if not accuracies:
        raise ValueError(
            f"the search maximizes the balanced accuracy, but the evaluation reported only {', '.join(metrics)}. "
            "Evaluate on labelled data without prediction_loss_only, or pass compute_objective."
        )
    return sum(accuracies) / len(accuracies)
