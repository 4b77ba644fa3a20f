"""Class shares that moved: closed forms, a simulation with ten shifts of a held-out set, and the folded head."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from hf_sharp.model.bias_corrected import Calibration, fit_calibration
from hf_sharp.model.label_shift import black_box_shares, estimate_shares, fold_shares, maximum_likelihood
from hf_sharp.model.posthoc import RECORD, adjust_head
from tests.conftest import make_vit

COUNTS = np.array([100, 74, 55, 41, 30, 22, 17, 12, 9, 7])
BOOTSTRAP = 40


@cache
def digits():
    """Logits and labels of a classifier of long-tailed digits: validation examples with the shares of training, and a
    balanced held-out set. Its probabilities are far too sure."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels[:, ::3]  # a third of the pixels, so that there are mistakes
    rng = np.random.default_rng(0)
    parts = {"train": [], "validation": [], "held_out": []}
    for c, count in enumerate(COUNTS):
        rows = rng.permutation(np.flatnonzero(labels == c))
        half = (count + 1) // 2
        for name, some in zip(parts, (rows[:count], rows[count - 1 : count - 1 + half], rows[-70:]), strict=True):
            parts[name].extend(some)
    model = LogisticRegression(C=10, max_iter=300).fit(pixels[parts["train"]] / 16, labels[parts["train"]])
    return {name: (3 * model.decision_function(pixels[rows] / 16), labels[rows]) for name, rows in parts.items()}


def draw(logits, labels, shares, count, rng):
    chance = shares[labels] / np.bincount(labels)[labels]
    rows = rng.choice(len(labels), count, p=chance / chance.sum())
    return logits[rows], labels[rows]


@cache
def shifts():
    """Ten random shifts, and ten samples where nothing moved: the estimate and the accuracies before and after."""
    validation, held_out = digits()["validation"], digits()["held_out"]
    rng, found = np.random.default_rng(1), {"moved": [], "same": []}
    training = COUNTS / COUNTS.sum()
    for trial in range(10):
        for kind, shares in (("moved", rng.dirichlet(np.full(10, 2.0))), ("same", training)):
            new, labels = draw(*held_out, shares, 400, rng)
            true = np.bincount(labels, minlength=10) / len(labels)
            estimate = estimate_shares(*validation, new, COUNTS, bootstrap=BOOTSTRAP, seed=trial)
            after = new
            if estimate.moved():
                after = estimate.calibration.scale * new + estimate.calibration.bias + estimate.offsets()
            accuracies = [float((logits.argmax(1) == labels).mean()) for logits in (new, after)]
            found[kind].append((estimate, true, accuracies))
    return found


def test_shares_of_ten_random_shifts_are_found():
    errors = [np.abs(estimate.shares - true).sum() / 2 for estimate, true, _ in shifts()["moved"]]
    ignored = [np.abs(estimate.training - true).sum() / 2 for estimate, true, _ in shifts()["moved"]]
    counted = []  # the shares of the predicted labels
    for estimate, true, _ in shifts()["moved"]:
        assert estimate.moved()
        assert estimate.p_value == 1 / (BOOTSTRAP + 1)
        counted.append(np.abs(estimate.check - true).sum() / 2)
    assert max(errors) < 0.2
    assert np.mean(errors) < np.mean(ignored) / 4
    assert np.mean(errors) < 1.1 * np.mean(counted), "maximum likelihood is at least as good as its check"


def test_intervals_cover_the_true_shares():
    inside = [((e.low <= true) & (true <= e.high)).mean() for e, true, _ in shifts()["moved"]]
    assert 0.85 < np.mean(inside) <= 1
    widths = np.array([e.high - e.low for e, _, _ in shifts()["moved"]])
    assert 0.01 < widths.mean() < 0.25, "an interval that covers everything says nothing"


def test_the_new_shares_gain_accuracy():
    gains = [after - before for _, _, (before, after) in shifts()["moved"]]
    assert np.mean(gains) > 0.02
    assert min(gains) > -0.02


def test_no_harm_where_nothing_moved():
    same = shifts()["same"]
    assert sum(estimate.moved() for estimate, _, _ in same) <= 2
    losses = [before - after for _, _, (before, after) in same]
    assert max(losses) <= 0.02
    assert np.median([estimate.p_value for estimate, _, _ in same]) > 0.1


def test_one_seed_gives_one_estimate():
    validation, held_out = digits()["validation"], digits()["held_out"]
    first, again, other = (
        estimate_shares(*validation, held_out[0], COUNTS, bootstrap=20, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.low, again.low)
    assert first.p_value == again.p_value
    assert (first.low != other.low).any()
    np.testing.assert_array_equal(first.shares, other.shares)


def test_calibration_finds_the_temperature_and_the_bias():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 3))
    true = Calibration(0.5, np.array([0.3, 0.0, -0.3]))
    probabilities = true(logits)
    labels = (probabilities.cumsum(1) < rng.random((len(logits), 1))).sum(1)
    found = fit_calibration(logits, labels)
    assert found.scale == pytest.approx(0.5, abs=0.03)
    np.testing.assert_allclose(found.bias - found.bias.mean(), true.bias, atol=0.05)
    warm = fit_calibration(logits, labels, start=Calibration(2.0, np.ones(3)))
    np.testing.assert_allclose(warm(logits), found(logits), atol=1e-4)


def test_examples_told_apart_without_error_have_a_finite_calibration():
    found = fit_calibration(np.eye(3)[[0, 1, 2] * 5], [0, 1, 2] * 5)
    assert np.isfinite([found.scale, *found.bias]).all()


def test_maximum_likelihood_is_the_maximum():
    rng = np.random.default_rng(0)
    ratios, weights = rng.gamma(0.5, size=(60, 4)), rng.integers(0, 4, 60).astype(float)

    def likelihood(shares):
        return weights @ np.log(ratios @ shares)

    best = maximum_likelihood(ratios, weights)
    assert best.sum() == pytest.approx(1)
    assert all(likelihood(best) > likelihood(other) - 1e-3 for other in rng.dirichlet(np.ones(4), 2000))
    np.testing.assert_allclose(maximum_likelihood(np.repeat(ratios, weights.astype(int), axis=0)), best, atol=1e-4)


def test_both_estimators_equal_those_of_quapy():
    quapy = pytest.importorskip("quapy.method.aggregative", reason="pip install quapy")
    (z, y), (new, _) = digits()["validation"], digits()["held_out"]
    calibration = fit_calibration(z, y)
    reference, probabilities = calibration(z).mean(0), calibration(new)
    theirs, _ = quapy.EMQ.EM(reference, probabilities, epsilon=1e-9)
    np.testing.assert_allclose(maximum_likelihood(probabilities / reference), theirs, atol=1e-3)
    joint = quapy.BBSEhard.getConfusionJointProb(np.arange(10), y, z.argmax(1))
    hits = np.bincount(new.argmax(1), minlength=10)
    weights = quapy.BBSEhard.solve_importance_weights(joint, hits / hits.sum(), "exact-raise")
    np.testing.assert_allclose(black_box_shares(y, z.argmax(1), hits), weights * np.bincount(y) / len(y), atol=1e-6)


def test_predictions_that_no_labelled_example_has_give_numbers():
    labels = np.repeat([0, 1, 2], [60, 30, 4])
    predicted = np.repeat([0, 1, 0], [60, 30, 4])  # the rarest class is never predicted
    np.testing.assert_array_equal(black_box_shares(labels, predicted, np.array([0, 0, 5])), np.full(3, 1 / 3))
    logits, new_logits = 4.0 * np.eye(3)[predicted], 4.0 * np.eye(3)[[0, 2, 2, 2, 2]]
    estimate = estimate_shares(logits, labels, new_logits, [600, 300, 40], bootstrap=40)  # some draws are all class 2
    assert np.isfinite(estimate.check).all()
    assert not estimate.agrees
    every = estimate_shares(logits, labels, new_logits[1:], [600, 300, 40], bootstrap=20)
    np.testing.assert_array_equal(every.check, np.full(3, 1 / 3))


def test_a_class_without_labelled_examples_keeps_its_share():
    (z, y), (new, _) = digits()["validation"], digits()["held_out"]
    estimate = estimate_shares(z[y != 9], y[y != 9], new, COUNTS, bootstrap=20)
    assert estimate.estimated.tolist() == [True] * 9 + [False]
    assert estimate.shares[9] == estimate.low[9] == estimate.training[9]
    assert estimate.shares.sum() == pytest.approx(1)
    assert estimate.offsets()[9] == estimate.calibration.bias[9] == 0
    assert estimate.moved()
    assert estimate.changes()[9] == "kept"
    assert {"grew", "shrank"} < {*estimate.changes()}


def test_no_class_grew_or_shrank_where_the_test_finds_nothing():
    (z, y), (new, _) = digits()["validation"], digits()["held_out"]
    estimate = replace(estimate_shares(z, y, new, COUNTS, bootstrap=20), p_value=0.075)
    assert ((estimate.low > estimate.training) | (estimate.high < estimate.training)).any()
    assert estimate.changes() == [None] * 10


def test_the_interval_of_a_class_that_is_not_there_is_no_point():
    labels, logits = np.arange(100) % 2, 30 * np.eye(2)[np.arange(100) % 2]
    estimate = estimate_shares(logits, labels, 30 * np.eye(2)[np.ones(50, int)], [99, 1], bootstrap=20)
    exact = binomtest(0, 50).proportion_ci(0.95)
    assert estimate.high[0] == pytest.approx(exact.high, rel=1e-6)
    assert estimate.low[1] == pytest.approx(1 - exact.high, rel=1e-6)


def test_the_folded_head_has_the_probabilities_of_the_new_shares():
    torch.manual_seed(0)
    features, rng = torch.randn(300, 6), np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(6, 3))
    logits = model(features).detach().numpy()
    labels = (softmax(2 * logits, axis=1).cumsum(1) < rng.random((300, 1))).sum(1)
    new, _ = draw(logits, labels, np.array([0.6, 0.2, 0.2]), 300, rng)
    estimate = estimate_shares(logits, labels, new, np.bincount(labels), bootstrap=20)
    assert estimate.moved()
    folded = fold_shares(model, estimate)
    expected = estimate.calibration(logits) * estimate.shares / estimate.reference
    np.testing.assert_allclose(
        folded(features).softmax(1).detach().numpy(), expected / expected.sum(1, keepdims=True), rtol=1e-4
    )


def test_a_head_is_left_alone_where_nothing_moved_and_refused_where_it_cannot_change():
    (z, y) = digits()["validation"]
    same = estimate_shares(z, y, z, COUNTS, bootstrap=20)
    assert not same.moved()
    model = make_vit(num_labels=10)
    folded = fold_shares(model, same)
    assert torch.equal(folded.classifier.weight, model.classifier.weight)
    assert getattr(folded.config, RECORD)["strength"] == 0
    with pytest.raises(ValueError, match="adjusted before"):
        fold_shares(adjust_head(model, COUNTS), same)
    moved = shifts()["moved"][0][0]
    model.classifier.bias = None
    with pytest.raises(ValueError, match="has none"):
        fold_shares(model, moved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"new_logits": np.zeros((0, 10))}, "no new examples"),
        ({"new_logits": np.zeros((5, 9))}, "one column per class"),
        ({"labels": np.zeros(165, int)}, "takes at least two classes"),
        ({"bootstrap": 5}, "bootstrap must be an integer >= 20, got 5"),
        ({"new_logits": np.full((5, 10), np.nan)}, "not all finite numbers"),
        ({"class_counts": [-1] * 10}, "class counts must be integers >= 0; class 0 has -1"),
        ({"labels": np.full(165, -100)}, "label 0 is -100; expected a class index from 0 to 9"),
    ],
)
def test_what_cannot_be_estimated_is_refused(change, said):
    z, y = digits()["validation"]
    given = {"logits": z, "labels": y, "new_logits": z, "class_counts": COUNTS} | change
    if "labels" in change:
        given["labels"] = np.resize(change["labels"], len(y))
    with pytest.raises(ValueError, match=said):
        estimate_shares(**given)
