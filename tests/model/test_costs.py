"""Predictions by least expected cost: identities, and costs in the head against costs after it."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn
from transformers import AutoModelForImageClassification

from hf_sharp.data.costs import read_costs
from hf_sharp.metrics import long_tail_report
from hf_sharp.model.confidence import fold_temperature
from hf_sharp.model.costs import class_costs, expected_costs, fold_costs
from hf_sharp.model.posthoc import adjust_head
from hf_sharp.recipe.decisions import read_decisions
from tests.conftest import NUM_CLASSES, make_vit


def probabilities(n=500, k=NUM_CLASSES, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.dirichlet(np.full(k, 0.7), n))


def of_true_class(costs):
    return np.asarray(costs, dtype=float)[:, None] * (1 - np.eye(len(costs)))


def test_expected_costs_equal_a_loop():
    p, costs = probabilities(40), np.random.default_rng(1).uniform(0, 9, (NUM_CLASSES, NUM_CLASSES))
    found = expected_costs(p, costs)
    for i, j in np.ndindex(found.shape):
        assert found[i, j].item() == pytest.approx(sum(p[i, c].item() * costs[c, j] for c in range(NUM_CLASSES)))


def test_with_costs_of_0_and_1_it_is_the_most_likely_class_and_accuracy():
    p, labels = probabilities(), np.random.default_rng(2).integers(0, NUM_CLASSES, 500)
    zero_one = 1 - np.eye(NUM_CLASSES)
    cheapest = expected_costs(p, zero_one).argmin(1).numpy()
    assert (cheapest == p.argmax(1).numpy()).all()
    report = long_tail_report(cheapest, labels, [9] * NUM_CLASSES, cost_matrix=zero_one)
    assert report["expected_cost"] == pytest.approx(1 - accuracy_score(labels, cheapest))
    from hf_sharp.reports.figures import half_width

    assert report["expected_cost_interval"] == pytest.approx(half_width([report["accuracy"]], [500]))


def test_the_least_expected_cost_is_the_least_cost_where_the_probabilities_are_right():
    p, costs = probabilities(20_000), np.random.default_rng(3).uniform(0, 9, (NUM_CLASSES, NUM_CLASSES))
    np.fill_diagonal(costs, 0)
    labels = (p.cumsum(1) > torch.rand(len(p), 1, dtype=torch.float64, generator=torch.manual_seed(0))).int().argmax(1)
    expected = expected_costs(p, costs)
    cheapest = expected.argmin(1)
    report = long_tail_report(cheapest, labels, [9] * NUM_CLASSES, cost_matrix=costs)
    assert abs(report["expected_cost"] - expected.amin(1).mean().item()) < report["expected_cost_interval"]
    for other in (p.argmax(1), torch.zeros_like(labels)):
        dearer = long_tail_report(other, labels, [9] * NUM_CLASSES, cost_matrix=costs)["expected_cost"]
        assert dearer > report["expected_cost"] + report["expected_cost_interval"]


def test_the_interval_covers_the_mean_cost_in_95_of_100_samples():
    rng, costs = np.random.default_rng(4), np.array([[0.0, 2.0, 3.0], [1.0, 0.0, 1.0], [8.0, 5.0, 0.0]])
    joint = rng.dirichlet(np.ones(9))
    mean, covered = (joint * costs.ravel()).sum(), 0
    for _ in range(400):
        cells = rng.choice(9, 150, p=joint)
        report = long_tail_report(cells % 3, cells // 3, [9, 9, 9], cost_matrix=costs)
        covered += abs(report["expected_cost"] - mean) <= report["expected_cost_interval"]
    assert 0.92 <= covered / 400 <= 0.985


@pytest.mark.parametrize("right", [0.0, 2.0])
def test_costs_in_the_head_predict_what_costs_after_the_model_do(right, tmp_path):
    model = make_vit(num_channels=3).eval().double()
    per_class = np.array([1.0, 7.0, 0.5, 30.0])
    costs = of_true_class(per_class) + right * np.array([[1], [0], [3], [2]])  # a part that no prediction avoids
    assert class_costs(costs) == pytest.approx(per_class)
    pixels = torch.randn(300, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = expected_costs(model(pixels).logits.softmax(1), costs).argmin(1)
        plain = model(pixels).logits.argmax(1)
        fold_costs(model, costs).save_pretrained(tmp_path)
        opened = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float64)
        assert torch.equal(opened(pixels).logits.argmax(1), wanted)
    assert not torch.equal(plain, wanted), "the costs change predictions"
    assert opened.config.hf_sharp_adjustment["class_costs"] == pytest.approx(per_class)
    recorded = read_decisions(str(tmp_path), opened.config)
    assert np.allclose(read_costs(recorded.costs, recorded.classes), costs), "also what a correct prediction costs"


def test_a_temperature_does_not_go_over_costs_in_the_head():
    with pytest.raises(ValueError, match="calibrate the model without them, then add the costs"):
        fold_temperature(fold_costs(make_vit(), of_true_class([1, 2, 3, 4])), 2.0, 4)


def test_any_costs_of_two_classes_fold():
    p, costs = probabilities(k=2), np.array([[0.5, 3.0], [11.0, 1.0]])
    folded = (p.log() + torch.tensor(class_costs(costs)).log()).argmax(1)
    assert torch.equal(folded, expected_costs(p, costs).argmin(1))


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([[0, 1, 2], [1, 0, 1], [1, 1, 0]], "depend on the predicted class"),
        ([[0, 0, 0], [1, 0, 1], [1, 1, 0]], "a mistake costs no more than a correct prediction"),
        ([[2, 1, 1], [1, 0, 1], [1, 1, 0]], "a mistake costs no more than a correct prediction"),
    ],
)
def test_other_costs_do_not_fold(costs, said):
    assert class_costs(costs) is None
    with pytest.raises(ValueError, match=said):
        fold_costs(nn.Sequential(nn.Linear(2, 3)), costs)


def test_a_head_without_a_bias_and_a_second_correction_are_refused():
    with pytest.raises(ValueError, match="this head has none"):
        fold_costs(nn.Sequential(nn.Linear(2, 2, bias=False)), [[0, 1], [5, 0]])
    costs = of_true_class([1, 2, 3, 4])
    folded = fold_costs(make_vit(), costs)
    for again in (lambda: fold_costs(folded, costs), lambda: adjust_head(folded, [9, 9, 9, 9])):
        with pytest.raises(ValueError, match="adjusted before \\(cost, strength 1\\)"):
            again()


@pytest.mark.parametrize("costs", [[[0, 1, 2]], [1, 2], [[0]], []])
def test_costs_of_another_shape_are_refused(costs):
    with pytest.raises(ValueError, match=r"expected costs \(K, K\), row the true class; got"):
        class_costs(costs)
