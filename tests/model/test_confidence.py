"""Temperature, thresholds and prediction sets: closed forms, naive references, and coverage per class."""

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn import calibration
from torch import nn
from transformers import AutoModelForImageClassification

from hf_sharp.model.confidence import (
    TEMPERATURE,
    calibration_scores,
    class_thresholds,
    examples_needed,
    fit_temperature,
    fold_temperature,
    prediction_sets,
    rare_classes,
)
from hf_sharp.reports.calibration import calibration_bins
from tests.conftest import NUM_CLASSES, make_vit

PRIORS = np.array([0.6, 0.25, 0.1, 0.05])


def draw(n, rng, sharpness=1.0):
    """Logits whose softmax at temperature `sharpness` is the truth, and labels drawn from it; class 3 is rare."""
    logits = rng.normal(size=(n, 4)) * 2 + np.log(PRIORS)
    p = softmax(logits, axis=1)
    labels = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return logits * sharpness, labels


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_the_temperature_is_found_and_mends_the_calibration(sharpness):
    logits, labels = draw(20_000, np.random.default_rng(0), sharpness)
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(sharpness, rel=0.05)

    def error(scaled):
        p = softmax(scaled, axis=1)
        return calibration_bins(p.argmax(1), labels, p).error

    assert error(logits / temperature) < 0.015
    if sharpness != 1:
        assert error(logits) > 0.05


@pytest.mark.skipif(not hasattr(calibration, "_TemperatureScaling"), reason="scikit-learn before 1.8")
@pytest.mark.parametrize("weighted", [False, True])
def test_the_temperature_is_that_of_scikit_learn(weighted):
    rng = np.random.default_rng(1)
    logits, labels = draw(400, rng, 2.0)
    weights = rng.uniform(0, 3, 400) if weighted else None
    theirs = 1 / calibration._TemperatureScaling().fit(logits, labels, sample_weight=weights).beta_
    assert fit_temperature(logits, labels, weights) == pytest.approx(theirs, rel=1e-4)


def test_a_temperature_of_perfect_or_hopeless_predictions_is_bounded():
    logits = np.eye(3)
    assert fit_temperature(logits, [0, 1, 2]) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature(logits, [1, 2, 0]) == pytest.approx(20, rel=1e-3)
    for bad, labels in ((np.zeros((0, 3)), []), (np.full((1, 3), np.nan), [0])):
        with pytest.raises(ValueError, match="at least one example, and finite logits"):
            fit_temperature(bad, labels)


@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_temperature_divides_the_logits(bias):
    model = nn.Sequential(nn.Linear(5, 3, bias=bias))
    x = torch.randn(7, 5)
    assert torch.allclose(fold_temperature(model, 2.5, 3)(x), model(x) / 2.5, atol=1e-6)
    with pytest.raises(ValueError, match="finite number > 0, got 0"):
        fold_temperature(model, 0, 3)


def test_the_folded_temperature_is_saved_and_recorded(tmp_path):
    model, pixels = make_vit(num_channels=3).eval(), torch.randn(5, 3, 8, 8)
    fold_temperature(fold_temperature(model, 2.0, NUM_CLASSES), 1.5, NUM_CLASSES).save_pretrained(tmp_path)
    opened = AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.allclose(opened(pixels).logits, model(pixels).logits / 3, atol=1e-6)
    assert getattr(opened.config, TEMPERATURE) == 3.0


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.95, 1.0])
def test_thresholds_equal_a_search_over_every_confidence(precision):
    logits, labels = draw(300, np.random.default_rng(2))
    p = softmax(logits, axis=1)
    confidence, predicted = p.max(1), p.argmax(1)
    for c, found in enumerate(class_thresholds(p, labels, precision)):
        reached = [
            t
            for t in sorted(confidence[predicted == c])
            if np.mean(labels[(predicted == c) & (confidence >= t)] == c) >= precision
        ]
        assert found.confidence == (reached[0] if reached else None)
        assert found.predictions == (predicted == c).sum()
        if reached:
            assert found.answered == ((predicted == c) & (confidence >= reached[0])).sum()
            assert found.precision >= precision


def test_a_class_that_is_never_right_has_no_threshold():
    p = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0]])
    assert [t.confidence for t in class_thresholds(p, [1, 1], 0.5)] == [None, None, None]
    with pytest.raises(ValueError, match="> 0 and <= 1, got 0"):
        class_thresholds(p, [1, 1], 0)


@pytest.mark.parametrize("coverage", [0.7, 0.8, 0.9, 0.95])
def test_sets_are_those_of_p_values(coverage):
    rng = np.random.default_rng(3)
    logits, labels = draw(200, rng)
    p, new = softmax(logits, axis=1), softmax(draw(60, rng)[0], axis=1)
    sets = prediction_sets(new, calibration_scores(p, labels), coverage)
    for i, c in np.ndindex(sets.shape):
        mine = 1 - p[labels == c, c]
        p_value = (1 + np.sum(mine >= 1 - new[i, c])) / (len(mine) + 1)
        assert sets[i, c] == (p_value > 1 - coverage + 1e-12), (i, c, p_value)


@pytest.mark.parametrize("sharpness", [1.0, 4.0], ids=["calibrated", "overconfident"])
def test_sets_cover_every_class_also_the_rarest(sharpness):
    rng, coverage = np.random.default_rng(4), 0.9
    covered, total, calibrating = np.zeros(4), np.zeros(4), np.zeros(4)
    marginal = np.zeros(4)
    for _ in range(200):
        logits, labels = draw(500, rng, sharpness)
        p = softmax(logits, axis=1)
        new_logits, new_labels = draw(300, rng, sharpness)
        new = softmax(new_logits, axis=1)
        hit = prediction_sets(new, calibration_scores(p, labels), coverage)[np.arange(300), new_labels]
        everything = np.quantile(1 - p[np.arange(500), labels], coverage)  # one limit for all classes
        np.add.at(marginal, new_labels, 1 - new[np.arange(300), new_labels] <= everything)
        np.add.at(covered, new_labels, hit)
        total += np.bincount(new_labels, minlength=4)
        calibrating += np.bincount(labels, minlength=4) / 200
    share, spread = covered / total, 3 * np.sqrt(0.09 / total) + 3 * np.sqrt(0.09 / (200 * calibrating))
    assert (share > coverage - spread).all(), share
    assert (share < coverage + 1 / (calibrating + 1) + spread).all(), share
    assert (marginal / total)[3] < 0.8, "one limit for all classes does not cover the rarest"


def test_a_class_with_too_few_examples_is_in_every_set():
    needed = examples_needed(0.9)
    few, enough = np.zeros(needed - 1), np.zeros(needed)
    assert prediction_sets([[0.0, 0.0]], [few, enough], 0.9).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="> 0 and < 1, got 1"):
        prediction_sets([[0.0, 0.0]], [few, enough], 1)
    for coverage in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
        n = examples_needed(coverage)
        assert math.ceil(round((n + 1) * coverage, 9)) <= n < math.ceil(round(n * coverage, 9)) + 1


def test_classes_with_few_examples_can_share_a_limit_that_covers_them_together():
    rng, coverage, priors = np.random.default_rng(5), 0.9, np.array([0.7, 0.08, 0.07, 0.05, 0.05, 0.05])
    covered, total, sizes = np.zeros(6), np.zeros(6), {True: 0, False: 0}
    shift = np.array([0, 0, 0, 0, 0.8, -0.8])  # the rare classes differ in how well they are told apart

    def some(n):
        labels = rng.choice(6, n, p=priors)
        logits = rng.normal(size=(n, 6))
        logits[np.arange(n), labels] += 2 + shift[labels]
        return softmax(logits, axis=1), labels

    for _ in range(400):
        scores, (new, labels) = calibration_scores(*some(80)), some(200)
        for pooled in (True, False):
            sets = prediction_sets(new, scores, coverage, pool_rare=pooled)
            sizes[pooled] += sets.sum()
            if pooled:
                few = np.isin(labels, rare_classes(scores, coverage))
                np.add.at(covered, labels[few], sets[few, labels[few]])
                total += np.bincount(labels[few], minlength=6)
    together = covered.sum() / total.sum()
    assert coverage - 0.01 < together < coverage + 0.04, "examples of the pooled classes together"
    assert (covered / total.clip(1))[5] < coverage - 0.03, "but not of each: the docs say so"
    assert sizes[True] < 0.7 * sizes[False], "smaller sets"


def test_a_pool_that_is_too_small_stays_in_every_set():
    needed = examples_needed(0.9)
    scores = [np.zeros(3), np.zeros(needed - 4), np.zeros(needed)]
    assert rare_classes(scores, 0.9) == [0, 1]
    assert prediction_sets([[0.0] * 3], scores, 0.9, pool_rare=True).tolist() == [[True, True, False]]
    assert not prediction_sets([[0.0] * 2], [np.zeros(3), np.zeros(needed - 3)], 0.9, pool_rare=True).any()


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_are_those_of_crepes(coverage):
    crepes = pytest.importorskip("crepes", reason="pip install crepes")
    rng = np.random.default_rng(6)
    logits, labels = draw(400, rng)
    p, new = softmax(logits, axis=1), softmax(draw(100, rng)[0], axis=1)

    class Known:
        classes_ = np.arange(4)

        def predict_proba(self, x):
            return x

    wrapped = crepes.WrapClassifier(Known())
    wrapped.calibrate(p, labels, class_cond=True)
    theirs = wrapped.predict_set(new, labels=False, confidence=coverage, smoothing=False).astype(bool)
    mine = prediction_sets(new, calibration_scores(p, labels), coverage)
    assert (mine == theirs).all()
    assert 0 < mine.mean() < 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [0, -1]}, "label 1 is -1; expected a class index from 0 to 1"),
        ({"labels": [0, 2]}, "label 1 is 2; expected a class index from 0 to 1"),
        ({"labels": [0]}, r"got \(2, 2\) with 1 labels"),
        ({"labels": ["cat", "dog"]}, "expected class indices, got labels of"),
        ({"rows": [0.5, 0.5]}, r"\(2,\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(change, said):
    given = {"rows": [[0.9, 0.1], [0.4, 0.6]], "labels": [0, 1]} | change
    for function in (fit_temperature, calibration_scores, lambda *a: class_thresholds(*a, 0.9)):
        with pytest.raises(ValueError, match=said):
            function(given["rows"], given["labels"])


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, np.nan], [0.0, 0.0]])
def test_weights_that_do_not_fit_are_named(weights):
    with pytest.raises(ValueError, match="weights must be 2 finite numbers >= 0, not all 0"):
        fit_temperature([[1.0, 0.0], [0.0, 1.0]], [0, 1], weights)


@pytest.mark.parametrize("rows", [[[3.0, -1.0]], [[np.nan, np.nan]]])
def test_logits_are_no_probabilities(rows):
    scores = [np.linspace(0, 0.5, 11)] * 2
    for function in (
        lambda: calibration_scores(rows, [0]),
        lambda: class_thresholds(rows, [0], 0.9),
        lambda: prediction_sets(rows, scores, 0.9),
    ):
        with pytest.raises(ValueError, match=r"expected probabilities \(N, K\), from 0 to 1; got numbers such as"):
            function()
    with pytest.raises(ValueError, match="got scores of 3 classes, and probabilities of 2"):
        prediction_sets([[0.5, 0.5]], [*scores, scores[0]], 0.9)
