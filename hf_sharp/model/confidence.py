"""How far a classifier's probabilities can be trusted: temperature, thresholds per class, and prediction sets.

    temperature      p = softmax(logits / T),  T minimises −Σ log p_y on validation data
    threshold        t_c: the lowest confidence at and above which predictions of class c reach a wanted precision
    prediction set   {c : 1 − p_c ≤ q_c},  q_c the ⌈(n_c + 1)(1 − α)⌉-th smallest 1 − p_c among the n_c calibration
                     examples of class c; it contains the true class for a share 1 − α of the examples of *every* class

This coverage holds for exchangeable examples, whatever the model. A class with n_c < 1/α − 1 calibration examples has
q_c = ∞: it is in every set. Such classes can share one limit instead, computed from all their scores. The sets then
contain the true class for a share 1 − α of the examples of these classes together, but not of each class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import precision_recall_curve

from hf_sharp.data.labels import class_indices
from hf_sharp.model.posthoc import Head, Model, find_head, read_head, write_head
from hf_sharp.model.records import RECORD, TEMPERATURE
from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.limits import check_number

TEMPERATURES = (0.05, 20.0)  # limits, as the likelihood has no maximum if (nearly) every prediction is right


class Threshold(NamedTuple):
    """The confidence above which predictions of a class are precise enough.

    Attributes:
        confidence: the threshold t_c; None if no threshold reaches the precision.
        answered: the number of validation predictions of this class at or above the threshold.
        predictions: the number of all validation predictions of this class.
        precision: the share of correct predictions among `answered`; None if there are none.
    """

    confidence: float | None
    answered: int
    predictions: int
    precision: float | None


def fit_temperature(logits: Any, labels: Any, weights: Any = None) -> float:
    """Choose the temperature that makes validation labels most likely.

    Args:
        logits: (N, K).
        labels: (N,) class indices.
        weights: (N,) >= 0, the weight of each example; None for equal weights.

    Returns:
        T, between 0.05 and 20. The predicted classes do not depend on T.

    Raises:
        ValueError: there are no examples, their logits are not finite, labels that are no class indices, or weights
            that are not one number >= 0 per example.

    Example:
        >>> round(fit_temperature([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 0.0]], [0, 0, 0, 1]), 2)  # 3 / log 3
        2.73

    Reference:
        arXiv 1706.04599, section 4.2.
    """
    logits, labels = _per_example(logits, labels, "logits")
    if len(labels) == 0 or not np.isfinite(logits).all():
        raise ValueError("a temperature needs at least one example, and finite logits.")
    weights = np.ones(len(labels)) if weights is None else as_array(weights, np.float64)
    if weights.shape != labels.shape or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
        raise ValueError(f"weights must be {len(labels)} finite numbers >= 0, not all 0; got {weights}.")

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float(weights @ (logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))

    bounds = tuple(math.log(limit) for limit in TEMPERATURES)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)


def fold_temperature(model: Model, temperature: float, num_classes: int, *, head: str | None = None) -> Model:
    """Divide the head's weight and bias by a temperature, so that any `pipeline()` gives calibrated probabilities.

    Args:
        model: an image or sequence classification model with a linear head. It is not changed.
        temperature: T > 0.
        num_classes: K.
        head: the name of the layer that computes the logits, if several linear layers have K outputs.

    Returns:
        A copy of the model. Its config records the temperature, together with any that it had before.

    Raises:
        ValueError: the temperature is not positive, or the head is not linear or contains costs.
    """
    check_number("temperature", temperature, above=0)
    if (getattr(getattr(model, "config", None), RECORD, None) or {}).get("class_costs"):
        raise ValueError("the model's head contains costs: calibrate the model without them, then add the costs.")
    scaled = copy.deepcopy(model)
    layer = find_head(scaled, num_classes, head)
    old = read_head(layer)
    write_head(layer, Head(old.weight / temperature, None if old.bias is None else old.bias / temperature))
    if (config := getattr(scaled, "config", None)) is not None:
        setattr(config, TEMPERATURE, float(temperature) * getattr(config, TEMPERATURE, 1.0))
    return scaled


def class_thresholds(probabilities: Any, labels: Any, precision: float) -> list[Threshold]:
    """Choose for each class the lowest confidence at which its predictions are correct often enough.

    Args:
        probabilities: (N, K), of the validation examples.
        labels: (N,) class indices.
        precision: the wanted share of correct predictions among those of a class, in (0, 1].

    Returns:
        K thresholds. Their precision is measured on the validation data; with few predictions it is a rough estimate.

    Raises:
        ValueError: the precision is outside (0, 1], or there are no probabilities or class indices.

    Example:
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]])
        >>> class_thresholds(p, [0, 0, 1, 0], precision=0.9)[0]
        Threshold(confidence=0.8, answered=2, predictions=3, precision=1.0)
    """
    check_number("precision", precision, above=0, most=1, share=True)
    probabilities, labels = _per_example(_probabilities(probabilities), labels, "probabilities")
    predictions, confidence = probabilities.argmax(1), probabilities.max(1)
    thresholds = []
    for c in range(probabilities.shape[1]):
        mine = predictions == c
        right, number = labels[mine] == c, int(mine.sum())
        threshold = Threshold(None, 0, number, None)
        if right.any():
            reached, _, candidates = precision_recall_curve(right, confidence[mine])
            if len(enough := np.flatnonzero(reached[:-1] >= precision)):
                lowest = float(candidates[enough[0]])
                answered = confidence[mine] >= lowest
                threshold = Threshold(lowest, int(answered.sum()), number, float(right[answered].mean()))
        thresholds.append(threshold)
    return thresholds


def calibration_scores(probabilities: Any, labels: Any) -> list[np.ndarray]:
    """Compute the scores of calibration examples for prediction sets: 1 − p_y, sorted, for each class.

    Args:
        probabilities: (N, K), of examples that the model was not trained on.
        labels: (N,) class indices.

    Returns:
        K arrays, (n_c,) each.

    Raises:
        ValueError: numbers that are no probabilities, or labels that are no class indices.
    """
    probabilities, labels = _per_example(_probabilities(probabilities), labels, "probabilities")
    return [np.sort(1 - probabilities[labels == c, c]) for c in range(probabilities.shape[1])]


def prediction_sets(
    probabilities: Any, scores: Sequence[Any], coverage: float, *, pool_rare: bool = False
) -> np.ndarray:
    """Make sets of classes that contain the true class with a given probability, for examples of every class.

    Args:
        probabilities: (N, K).
        scores: K sorted arrays, as `calibration_scores` returns them. Calibration examples and the examples to predict
            must come from the same distribution.
        coverage: 1 − α, in (0, 1).
        pool_rare: let classes with too few calibration examples share one limit. The coverage then holds for these
            classes together, if their shares are those in the calibration data.

    Returns:
        (N, K) booleans. A set is empty if the example is unlike the calibration examples of every class.

    Raises:
        ValueError: the coverage is outside (0, 1), or there are no probabilities or scores of these classes.

    Example:
        >>> scores = [np.linspace(0.0, 0.5, 11), np.linspace(0.0, 0.9, 11)]
        >>> prediction_sets([[0.7, 0.3], [0.2, 0.8]], scores, coverage=0.9).tolist()  # q = 0.5 and 0.9
        [[True, True], [False, True]]

    Reference:
        Vovk, Conditional validity of inductive conformal predictors, 2012 (label-conditional, or Mondrian). The score
        is that of Sadinle, Lei and Wasserman, arXiv 1609.00451. Pooling follows the null cluster of Ding et al., arXiv
        2306.09335, but uses the scores of the rare classes only, not those of all classes.
    """
    check_number("coverage", coverage, above=0, below=1, share=True)
    probabilities = _probabilities(probabilities)
    if probabilities.shape[1] != len(scores):
        raise ValueError(f"got scores of {len(scores)} classes, and probabilities of {probabilities.shape[1]}.")
    limits = np.array([_quantile(as_array(of_class), coverage) for of_class in scores])
    few = rare_classes(scores, coverage)
    if pool_rare and few:
        limits[few] = _quantile(np.sort(np.concatenate([as_array(scores[c]) for c in few])), coverage)
    return 1 - probabilities <= limits


def examples_needed(coverage: float) -> int:
    """Return how many calibration examples a class needs so that prediction sets can leave it out.

    Example:
        >>> examples_needed(0.9), examples_needed(0.95)
        (9, 19)
    """
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def rare_classes(scores: Sequence[Any], coverage: float) -> list[int]:
    """List the classes that have too few calibration examples, and so are in every prediction set.

    Args:
        scores: K calibration scores, as `calibration_scores` returns them.
        coverage: the coverage of the prediction sets.

    Returns:
        The indices of these classes.

    Example:
        >>> rare_classes([[0.1] * 9, [0.1] * 8], coverage=0.9)
        [1]
    """
    return [c for c, of_class in enumerate(scores) if len(of_class) < examples_needed(coverage)]


def _quantile(scores: np.ndarray, coverage: float) -> float:
    rank = math.ceil((len(scores) + 1) * coverage - 1e-9)
    return float(scores[rank - 1]) if rank <= len(scores) else math.inf


def _probabilities(values: Any) -> np.ndarray:
    probabilities = as_array(values, np.float64)
    proper = (probabilities >= 0) & (probabilities <= 1 + 1e-3)
    if probabilities.ndim != 2 or not proper.all():
        wrong = f"such as {probabilities[~proper][0]:.4g}" if not proper.all() else f"of shape {probabilities.shape}"
        raise ValueError(f"expected probabilities (N, K), from 0 to 1; got numbers {wrong}. Are they logits?")
    return probabilities


def _per_example(values: Any, labels: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    rows = as_array(values, np.float64)
    if rows.ndim != 2 or len(rows) != len(labels):
        raise ValueError(f"expected {what} (N, K) with N labels; got {rows.shape} with {len(labels)} labels.")
    return rows, class_indices(labels, rows.shape[1])
