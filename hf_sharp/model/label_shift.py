"""Label shift: class shares are estimated from unlabelled data, tested for a change, and folded into the head.

    p(c | x)  = softmax(s z + b)_c               calibrated on labelled examples (bias-corrected temperature scaling)
    q_c      ← q_c · mean_x  [ p(c | x) / π_c ] / Σ_k q_k p(k | x) / π_k    until the likelihood stops growing (EM)
    z'_c      = s z_c + b_c + log(q_c / π_c)     the head for the new shares

z are the logits, s = 1 / T > 0 the inverse temperature, b the bias, π the class shares that the calibrated
probabilities give for the labelled examples, and q the shares in the new data. The method assumes that only the shares
have changed. If the examples of a class look different now, q is wrong, and the check by BBSE often disagrees with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import class_indices
from hf_sharp.model.bias_corrected import Calibration, fit_calibration
from hf_sharp.model.posthoc import Head, Model, change_head, check_unadjusted
from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.limits import check_number

_GAP = 1e-3  # EM stops when the log likelihood is within this distance of its maximum
_ITERATIONS = 5000
_LEVEL = 0.95


def maximum_likelihood(
    ratios: np.ndarray, weights: np.ndarray | None = None, start: np.ndarray | None = None
) -> np.ndarray:
    """Estimate class shares by EM: maximise Σ_i w_i log Σ_c q_c r_ic.

    The objective is concave. With g_c the factor by which EM multiplies q_c, its distance from the maximum is at most
    Σ w (max_c g_c − 1) at every q. EM stops when this bound is below 0.001.

    Args:
        ratios: (N, K), r_ic = p(c | x_i) / π_c.
        weights: (N,) >= 0, how often each example counts; None for 1.
        start: (K,) positive initial shares; None for equal shares.

    Returns:
        (K,) shares, which sum to 1.

    Example:
        >>> maximum_likelihood(np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]))
        array([0.75, 0.25])

    Reference:
        Saerens, Latinne and Decaestecker, Neural Computation 14(1), 2002, equation 2.9.
    """
    count, num_classes = ratios.shape
    weights = np.ones(count) if weights is None else weights
    ratios, weights = ratios[weights > 0], weights[weights > 0]
    total = weights.sum()
    shares = np.full(num_classes, 1 / num_classes) if start is None else start
    for _ in range(_ITERATIONS):
        factor = ratios.T @ (weights / (ratios @ shares)) / total
        shares = shares * factor
        if total * (factor.max() - 1) < _GAP:
            break
    return shares / shares.sum()


def black_box_shares(labels: np.ndarray, predicted: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Estimate class shares from predicted labels only (BBSE): solve C q = predicted shares, q >= 0.

    Args:
        labels: (N,) true classes of labelled examples; every class from 0 to K − 1 must occur.
        predicted: (N,) their predicted classes; C_jc is the share of predictions j among the examples of class c.
        new: (K,) how often each class is predicted for the new examples.

    Returns:
        (K,) shares, which sum to 1. They are equal if no labelled example is predicted as any of the classes predicted
        for the new examples, as the predictions then contain no information about the shares.

    Example:
        >>> labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
        >>> black_box_shares(labels, predicted, np.array([3, 1])).round(3)
        array([0.5, 0.5])

    Reference:
        arXiv 1802.03916 (Lipton, Wang and Smola 2018), section 3.
    """
    num_classes = len(new)
    confusion = np.zeros((num_classes, num_classes))
    np.add.at(confusion, (predicted, labels), 1)
    confusion /= confusion.sum(0)
    shares = nnls(confusion, new / new.sum())[0]
    return shares / shares.sum() if shares.any() else np.full(num_classes, 1 / num_classes)


@dataclass(frozen=True)
class ShiftEstimate:
    """Class shares of new data, compared with those of the training set.

    Attributes:
        shares: (K,) maximum-likelihood shares q of the new data.
        low: (K,) lower ends of the 95 % intervals.
        high: (K,) upper ends of the 95 % intervals.
        check: (K,) the shares estimated by BBSE.
        agrees: whether the intervals of both estimates overlap for every class.
        training: (K,) the shares in the training set.
        estimated: (K,) bool; False for a class without a labelled example, which keeps its training share.
        p_value: the p-value of the test that the shares are those of the training set.
        calibration: the calibration of the K classes: scale s and bias b.
        reference: (K,) the shares π that the calibrated probabilities give for the labelled examples.
        examples: the number of new examples.
    """

    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    check: np.ndarray
    agrees: bool
    training: np.ndarray
    estimated: np.ndarray
    p_value: float
    calibration: Calibration
    reference: np.ndarray
    examples: int

    @property
    def distance(self) -> float:
        """Half the sum of |q − training| over the classes: the share of examples that would have to change class."""
        return float(np.abs(self.shares - self.training).sum() / 2)

    def moved(self, level: float = 0.05) -> bool:
        """Tell whether the shares differ from the training shares at a significance level."""
        return self.p_value < level

    def changes(self) -> list[str | None]:
        """Describe the change of every class; tables, plots, files and texts all use this.

        Returns:
            K values: "grew" or "shrank" if the test finds a change and the interval excludes the training share;
            "kept" for a class that was not estimated; otherwise None.
        """
        moved = self.moved()
        grew, shrank = moved & (self.low > self.training), moved & (self.high < self.training)
        words = np.where(grew, "grew", np.where(shrank, "shrank", ""))
        return [word or None for word in np.where(self.estimated, words, "kept").tolist()]

    def offsets(self) -> np.ndarray:
        """Return log(q / π), (K,), to be added to the calibrated logits; 0 for classes that were not estimated."""
        floored = np.maximum(self.shares, 0.5 / self.examples)  # a class that was not seen may still occur
        return np.where(self.estimated, np.log(floored / self.reference), 0.0)


def estimate_shares(
    logits: Any, labels: Any, new_logits: Any, class_counts: Any, *, bootstrap: int = 200, seed: int = 0
) -> ShiftEstimate:
    """Estimate the class shares of unlabelled data, and test whether they are those of the training set.

    The intervals are bootstrap percentiles. Every draw resamples the labelled examples within their class, calibrates
    again, and resamples the new examples. For a class that none, or all, of the M new examples have, the interval
    includes the exact binomial one: up to 1 − 0.025^(1/M), or down to 0.025^(1/M). The test uses the likelihood ratio
    of q against the training shares. Its null distribution comes from labelled examples that are drawn with the
    training shares and calibrated in each draw.

    Args:
        logits: (N, K), of labelled examples that the model was not trained on.
        labels: (N,) their classes.
        new_logits: (M, K), of the new examples.
        class_counts: (K,) the training examples of each class.
        bootstrap: the number of draws B >= 20; the smallest possible p-value is 1 / (B + 1).
        seed: the seed of the draws.

    Returns:
        The estimate. Classes without a labelled example keep their training shares.

    Raises:
        ValueError: fewer than two classes have labelled examples, there are no new examples, labels are not class
            indices, logits are not finite, `ClassFrequencies` refuses the counts, or shapes do not match.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels, new_labels = rng.integers(2, size=500), rng.choice(2, 500, p=[0.2, 0.8])
        >>> logits, new_logits = (rng.normal(size=(500, 2)) + 3 * np.eye(2)[y] for y in (labels, new_labels))
        >>> estimate = estimate_shares(logits, labels, new_logits, [90, 10], bootstrap=20)
        >>> estimate.shares.round(1), estimate.p_value < 0.05
        (array([0.2, 0.8]), True)

    Reference:
        arXiv 1901.06852 (calibration, then EM); the check is BBSE, arXiv 1802.03916.
    """
    logits, new_logits = as_array(logits, np.float64), as_array(new_logits, np.float64)
    counts = ClassFrequencies.from_counts(class_counts).counts
    labels = class_indices(labels, len(counts))
    _check(logits, labels, new_logits, counts, bootstrap)
    estimated = np.bincount(labels, minlength=len(counts)) > 0
    seen = np.cumsum(estimated) - 1  # class index to its index among the classes with labelled examples
    z, y, new = logits[:, estimated], seen[labels], new_logits[:, estimated]
    training = counts / counts.sum()
    mass = training[estimated].sum()
    expected = np.maximum(training[estimated], 1e-12) / mass
    calibration = fit_calibration(z, y)
    reference, shares, ratio = _fit(calibration, z, new, expected)
    check = black_box_shares(y, z.argmax(1), np.bincount(new.argmax(1), minlength=z.shape[1]))
    draws = list(_draws(z, y, new, expected, (calibration, shares), bootstrap, seed))
    samples, checks, null = (np.array(column) for column in zip(*draws, strict=True))
    tails = [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]
    (low, high), (low_check, high_check) = np.quantile(samples, tails, axis=0), np.quantile(checks, tails, axis=0)
    every = tails[0] ** (1 / len(new))  # no resample of examples without a class has one

    def spread(values: np.ndarray) -> np.ndarray:
        whole = training.copy()
        whole[estimated] = mass * values
        return whole

    bias, prior = np.zeros(len(counts)), training.copy()
    bias[estimated], prior[estimated] = calibration.bias, mass * reference
    return ShiftEstimate(
        shares=spread(shares),
        low=spread(np.minimum(np.minimum(low, shares), every)),
        high=spread(np.maximum(np.maximum(high, shares), 1 - every)),
        check=spread(check),
        agrees=bool(((low <= high_check) & (low_check <= high)).all()),
        training=training,
        estimated=estimated,
        p_value=float((1 + (null >= ratio).sum()) / (1 + bootstrap)),
        calibration=Calibration(calibration.scale, bias),
        reference=prior,
        examples=len(new),
    )


def _fit(
    calibration: Calibration,
    logits: np.ndarray,
    new: np.ndarray,
    expected: np.ndarray,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    # Returns the shares of the labelled and of the new examples, and the likelihood ratio against `expected`.
    reference = calibration(logits).mean(0)
    ratios = calibration(new) / reference
    shares = maximum_likelihood(ratios, weights, start)
    weights = np.ones(len(new)) if weights is None else weights
    return reference, shares, float(2 * weights @ np.log((ratios @ shares) / (ratios @ expected)))


def _draws(
    z: np.ndarray,
    y: np.ndarray,
    new: np.ndarray,
    expected: np.ndarray,
    found: tuple[Calibration, np.ndarray],
    bootstrap: int,
    seed: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    # Yields, for each resample, the shares by both estimates, and a likelihood ratio under the null hypothesis.
    (start, shares), rng = found, np.random.default_rng(seed)
    num_classes, count = z.shape[1], len(new)
    rows_of = [np.flatnonzero(y == c) for c in range(num_classes)]
    unmoved = expected[y] / np.bincount(y)[y]  # the probabilities of labelled examples under training shares
    predicted, new_predicted = z.argmax(1), new.argmax(1)
    likely = 0.9 * shares + 0.1 / num_classes  # EM cannot leave 0
    for _ in range(bootstrap):
        rows = np.concatenate([rng.choice(of_class, len(of_class)) for of_class in rows_of])
        calibration = fit_calibration(z[rows], y[rows], start)
        weights = rng.multinomial(count, np.full(count, 1 / count)).astype(np.float64)
        _, drawn, _ = _fit(calibration, z[rows], new, expected, weights, likely)
        hits = np.bincount(new_predicted, weights, num_classes)
        check = black_box_shares(y[rows], predicted[rows], hits)
        same = rng.multinomial(count, unmoved / unmoved.sum()).astype(np.float64)
        yield drawn, check, _fit(calibration, z[rows], z, expected, same)[2]


def _check(logits: np.ndarray, labels: np.ndarray, new: np.ndarray, counts: np.ndarray, bootstrap: int) -> None:
    num_classes = len(counts)
    if logits.ndim != 2 or logits.shape != (len(labels), num_classes) or new.ndim != 2 or new.shape[1] != num_classes:
        raise ValueError(
            f"expected logits (N, {num_classes}) with N labels and new logits (M, {num_classes}), one column per class "
            f"count; got {logits.shape} with {len(labels)} labels, and {new.shape}."
        )
    if not (np.isfinite(logits).all() and np.isfinite(new).all()):
        raise ValueError("the logits are not all finite numbers, so they say nothing about class shares.")
    if len(new) == 0:
        raise ValueError("there are no new examples to estimate class shares from.")
    if (found := len(np.unique(labels))) < 2:
        raise ValueError(f"the labelled examples have {found} class; estimating shares takes at least two classes.")
    check_number("bootstrap", bootstrap, least=20, whole=True)


def fold_shares(model: Model, estimate: ShiftEstimate, *, head: str | None = None) -> Model:
    """Fold the new class shares into the head of a model: z' = s z + b + log(q / π).

    The new model maximizes accuracy on data with the new shares, whatever loss the old one was trained with, and its
    probabilities are calibrated for such data.

    Args:
        model: an image or sequence classification model with a linear head. It is not changed.
        estimate: the shares estimated from the logits of this model.
        head: the name of the layer that computes the logits, if several linear layers have K outputs.

    Returns:
        A copy with the new head; its config records the shares (`hf_sharp_adjustment`). If the shares have not moved,
        the head is unchanged, and the recorded strength is 0.

    Raises:
        ValueError: the head was adjusted before or has no bias, or the model has adapters.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> model = BertForSequenceClassification(BertConfig(**shape, num_labels=2))
        >>> labels, logits = np.arange(100) % 2, 3 * np.eye(2)[np.arange(100) % 2]
        >>> new_logits = 3 * np.eye(2)[np.ones(100, int)]  # only the second class
        >>> new = fold_shares(model, estimate_shares(logits, labels, new_logits, [90, 10], bootstrap=20))
        >>> bool(new.classifier.bias[1] - new.classifier.bias[0] > 1)
        True
    """
    check_unadjusted(model)
    moved = estimate.moved()
    shift = torch.tensor(estimate.calibration.bias + estimate.offsets())

    def change(old: Head) -> Head:
        if not moved:
            return old
        if old.bias is None:
            raise ValueError(
                "new class shares change the head's bias, but this head has none, and a bias added now would be lost "
                "when the model is loaded."
            )
        scale = estimate.calibration.scale
        return Head(scale * old.weight, scale * old.bias + shift)

    record = {"method": "label_shift", "strength": float(moved), "shares": estimate.shares.tolist()}
    return change_head(model, change, record, len(estimate.shares), head)
