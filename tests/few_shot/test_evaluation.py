"""Results with intervals, paired comparisons, and a task of one's own."""

import dataclasses
import json
import math

import datasets
import numpy as np
import pytest
import torch

from hf_sharp.few_shot import (
    ADAPTATIONS,
    Backbone,
    Domain,
    EpisodeSampler,
    FewShotResult,
    average,
    classify,
    compare,
    embed,
    evaluate,
    load_backbone,
    make_domain,
)
from hf_sharp.few_shot import evaluation as module
from tests.conftest import make_vit
from tests.few_shot.conftest import gaussians
from tests.recipes.conftest import bert_folder  # noqa: F401


def result(accuracies, episodes="same", domain="x"):
    return FewShotResult(np.asarray(accuracies, float), domain, "prototype", episodes)


@pytest.fixture
def known():
    """A domain of Gaussians, their features, and others that are the same with some noise."""
    features, labels = gaussians(1.2 * np.random.default_rng(1).normal(size=(12, 6)), 40)
    names = [str(i) for i in range(12)]
    domain = Domain("gaussians", datasets.Dataset.from_dict({"label": labels}), labels, names, "pixel_values")
    torch.manual_seed(0)
    return domain, features, features + 0.5 * torch.randn_like(features)


BACKBONE = Backbone(torch.nn.Linear(1, 1))


def test_accuracy_and_interval_are_those_of_the_episodes(known):
    domain, features, _ = known
    found = evaluate(BACKBONE, domain, episodes=50, seed=3, features=features)
    expected = []
    for episode in EpisodeSampler(domain.labels, seed=3)(50):
        logits = next(ADAPTATIONS["prototype"](dataclasses_embedded(features), [episode.task]))
        expected.append((logits.argmax(1).numpy() == episode.query_labels).mean())
    np.testing.assert_allclose(found.accuracies, expected)
    assert found.accuracy == pytest.approx(np.mean(expected))
    assert found.interval == pytest.approx(1.96 * np.std(expected, ddof=1) / np.sqrt(50))
    assert 0.3 < found.accuracy < 0.99
    again = evaluate(BACKBONE, domain, episodes=50, seed=3, features=features)
    np.testing.assert_array_equal(found.accuracies, again.accuracies)
    assert math.isnan(evaluate(BACKBONE, domain, episodes=1, features=features).interval)


def dataclasses_embedded(features):
    from hf_sharp.few_shot import Embedded

    return Embedded(None, None, features)


def test_the_interval_holds_the_truth_nineteen_times_of_twenty():
    rng = np.random.default_rng(0)
    held = [abs(found.accuracy - 0.5) < found.interval for found in map(result, rng.random((2000, 100)))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)


def test_paired_intervals_are_narrower_on_correlated_results(known):
    domain, features, noisier = known
    one, other = (evaluate(BACKBONE, domain, episodes=200, features=f) for f in (features, noisier))
    assert np.corrcoef(one.accuracies, other.accuracies)[0, 1] > 0.2
    found = compare(one, other)
    assert found.interval < 0.9 * found.unpaired_interval
    assert found.difference == pytest.approx(one.accuracy - other.accuracy)
    assert found.difference > found.interval > 0, "less noise is better"
    differences = one.accuracies - other.accuracies
    assert found.interval == pytest.approx(1.96 * differences.std(ddof=1) / np.sqrt(200))
    assert found.unpaired_interval == pytest.approx(np.hypot(one.interval, other.interval))
    back = compare(other, one)
    assert (back.difference, back.interval) == pytest.approx((-found.difference, found.interval))


def test_averages_over_domains_count_every_domain_the_same():
    rng = np.random.default_rng(0)
    firsts = [result(rng.random(n), str(n)) for n in (50, 500)]
    seconds = [result(rng.random(n), str(n)) for n in (50, 500)]
    found = compare(firsts, seconds)
    each = [compare(*pair) for pair in zip(firsts, seconds, strict=True)]
    assert found.difference == pytest.approx((each[0].difference + each[1].difference) / 2)
    assert found.interval == pytest.approx(np.hypot(each[0].interval, each[1].interval) / 2)
    mean, interval = average(firsts)
    assert mean == pytest.approx((firsts[0].accuracy + firsts[1].accuracy) / 2)
    assert interval == pytest.approx(np.hypot(firsts[0].interval, firsts[1].interval) / 2)


def test_results_of_other_episodes_are_not_compared(known):
    domain, features, _ = known
    base = evaluate(BACKBONE, domain, episodes=5, features=features)
    for options in ({"seed": 1}, {"episodes": 6}, {"ways": 5}, {"shots": 1}, {"queries": 2}):
        other = evaluate(BACKBONE, domain, **({"episodes": 5, "features": features} | options))
        with pytest.raises(ValueError, match="only results of the same episodes can be paired"):
            compare(base, other)
    same = evaluate(BACKBONE, domain, "linear", episodes=5, features=features)
    assert compare(base, same).interval >= 0
    with pytest.raises(ValueError, match="only results of the same episodes"):
        compare([base, base], [base])
    with pytest.raises(ValueError, match="only results of the same episodes"):
        compare([], [])


def test_results_come_back_from_json(known):
    domain, features, _ = known
    found = evaluate(BACKBONE, domain, episodes=5, features=features)
    again = FewShotResult.from_dict(json.loads(json.dumps(found.as_dict())))
    assert compare(found, again).difference == 0
    assert dataclasses.asdict(again).keys() == dataclasses.asdict(found).keys()
    assert again.interval == found.interval


def test_adaptations_are_given_no_answers(known, monkeypatch):
    domain, features, _ = known
    seen = []

    def spy(embedded, tasks):
        for task in tasks:
            seen.append(task)
            yield torch.zeros(len(task.query), task.ways)

    monkeypatch.setattr(module, "ADAPTATIONS", {"prototype": spy})
    found = evaluate(BACKBONE, domain, episodes=20, features=features)
    assert {name for task in seen for name in task._fields} == {"support", "support_labels", "query"}
    ways = np.array([task.ways for task in seen])
    np.testing.assert_allclose(found.accuracies, 1 / ways)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adaptation": "magic"}, "unknown adaptation 'magic'; expected one of prototype, linear, affine"),
        ({"episodes": 0}, "episodes must be an integer >= 1, got 0"),
        ({"ways": 13}, "an episode needs 13 classes"),
        ({"shots": 40}, "at least 41 examples each"),
        ({"features": np.zeros((3, 4))}, r"features of shape \(3, 4\), and the domain 'gaussians' has 480 examples"),
        ({"features": torch.zeros(480)}, r"features of shape \(480,\), and the domain 'gaussians' has 480 examples"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(known, options, said):
    domain, features, _ = known
    with pytest.raises(ValueError, match=said):
        evaluate(BACKBONE, domain, **({"features": features} | options))


@pytest.mark.parametrize("adaptation", ["prototype", "affine", "finetune"])
def test_a_task_of_ones_own(images, adaptation):
    rows = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(images.labels, [1, 3, 4])))
    support, query = images.select(rows[:18]), images.select(rows[18:])
    assert len(np.unique(support.labels)) == 3
    found = classify(make_vit(num_labels=6), support, query.dataset.select_columns("pixel_values"), adaptation)
    names = {images.class_names[c] for c in (1, 3, 4)}
    assert set(found) <= names
    right = [images.class_names[c] for c in query.labels]
    assert np.mean([a == b for a, b in zip(found, right, strict=True)]) > 0.4, "chance is a third"


def test_a_task_of_texts_needs_no_labels_of_queries(bert_folder, texts):  # noqa: F811
    found = classify(bert_folder, texts, datasets.Dataset.from_dict({"text": ["w0 w7", "w1 w9 w8"]}), "linear")
    assert len(found) == 2
    assert set(found) <= set(texts.class_names)
    with pytest.raises(ValueError, match="the queries have no column 'text'; they have words"):
        classify(bert_folder, texts, datasets.Dataset.from_dict({"words": ["w0"]}))
    with pytest.raises(ValueError, match="examples of 1 class; expected at least 2 classes"):
        classify(bert_folder, texts.select([0, 1]), texts.dataset)


def test_evaluate_embeds_what_it_is_not_given(images):
    backbone = load_backbone(make_vit(num_labels=6))
    given = evaluate(backbone, images, episodes=4, features=embed(backbone, images))
    np.testing.assert_array_equal(evaluate(backbone, images, episodes=4).accuracies, given.accuracies)
    assert given.features == "class_token"


@pytest.mark.parametrize("adaptation", ["affine", "lora", "prototype"])
def test_on_seen_domains_the_rates_are_the_published_ones(images, adaptation, monkeypatch):
    passed = []

    def spy(embedded, tasks, **options):
        passed.append(options)
        return (torch.zeros(len(task.query), task.ways) for task in tasks)

    monkeypatch.setattr(module, "ADAPTATIONS", {adaptation: spy})
    for seen, options in ((True, {}), (False, {}), (True, {"learning_rate": 7.0})):
        evaluate(make_vit(num_labels=6), images, adaptation, episodes=1, seen=seen, **options)
    url = [{"learning_rate": 0.1}, {"learning_rate": 1.0}, {"learning_rate": 7.0}]
    tsa = [{"learning_rate": rate, "map_learning_rate": beta} for rate, beta in ((0.05, 0.1), (0.5, 1.0), (7.0, 0.1))]
    assert passed == {"affine": url, "lora": tsa, "prototype": [{}, {}, {"learning_rate": 7.0}]}[adaptation]


def test_six_hundred_episodes_are_a_matter_of_seconds():
    import time

    labels = np.repeat(np.arange(60), 60)
    domain = make_domain(datasets.Dataset.from_dict({"label": labels, "input_ids": [[0]] * len(labels)}), "x")
    start = time.process_time()
    evaluate(BACKBONE, domain, features=torch.randn(len(labels), 192))
    assert time.process_time() - start < 10, "5 s are promised on 2 free cores"


def test_results_of_other_domains_are_not_compared():
    with pytest.raises(ValueError, match="only results of the same episodes"):
        compare(result([0.9, 0.5]), result([0.8, 0.4], domain="y"))
