"""PARC against a naive reference in NumPy and SciPy, and the choice of backbones by it."""

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, rankdata

from hf_sharp.few_shot import (
    Domain,
    EpisodeSampler,
    FewShotResult,
    episode_scores,
    parc_score,
    select_backbone,
    select_per_episode,
)


def naive_parc(features, labels):
    """The definition on raw features, pair by pair."""
    d_f, d_y = [], []
    for i in range(len(labels)):
        for j in range(i + 1, len(labels)):
            d_f.append(1 - pearsonr(features[i], features[j])[0])
            one, other = ((np.unique(labels) == labels[k]).astype(float) for k in (i, j))
            d_y.append(1 - pearsonr(one, other)[0])
    return 100 * pearsonr(rankdata(np.round(d_f, 12)), rankdata(np.round(d_y, 12)))[0]


def naive_components(features, components=32):
    """PCA with scikit-learn's convention of signs, standardised."""
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[: min(components, len(features) - 1, features.shape[1])]
    for direction in directions:
        if direction[np.argmax(np.abs(direction))] < 0:
            direction *= -1
    scores = centred @ directions.T
    return scores / scores.std(0)


@pytest.mark.parametrize(("examples", "dim", "classes"), [(40, 50, 4), (25, 50, 3), (60, 10, 5), (20, 3, 2)])
@pytest.mark.parametrize("components", [None, 32])
def test_parc_is_that_of_the_naive_reference(examples, dim, classes, components):
    rng = np.random.default_rng(examples)
    labels = np.arange(examples) % classes
    features = rng.normal(size=(examples, dim)) + rng.normal(size=(classes, dim))[labels]
    assert parc_score(features, labels) == parc_score(features, labels, None)
    prepared = features if components is None else naive_components(features, components)
    score = parc_score(features, labels, components)
    assert score == pytest.approx(naive_parc(prepared, labels), abs=1e-6)
    names = np.array(list("fbaed"))[labels]  # whatever the labels are called
    assert parc_score(features.astype(np.float32), names, components) == pytest.approx(score, abs=1e-3)


def test_components_without_variance_are_left_out():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 5
    features = rng.normal(size=(30, 8)) + rng.normal(size=(5, 8))[labels]
    # Features that are functions of others add components without variance; a scale changes nothing.
    wide = np.concatenate([features, features @ rng.normal(size=(8, 4)) * 1e-9], 1).astype(np.float32)
    assert parc_score(wide, labels, 32) == pytest.approx(parc_score(features, labels, 32), abs=0.2)
    assert parc_score(features * 1e4, labels, 32) == pytest.approx(parc_score(features, labels, 32), abs=1e-9)
    few = rng.permutation(12)
    naive = naive_parc(naive_components(features[:12]), labels[:12])
    assert parc_score(features[:12][few], labels[:12][few], 32) == pytest.approx(naive)


def test_a_backbone_that_separates_the_classes_scores_higher():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 20)
    means = 4 * rng.normal(size=(6, 24))
    noise = rng.normal(size=(120, 24))
    features = {"random": noise, "weak": noise + 0.2 * means[labels], "strong": noise + means[labels]}
    domain = Domain("x", FakeRows(), labels, list("abcdef"), "image")
    fakes = dict.fromkeys(features)
    name, scores = select_backbone(fakes, domain, features=features)
    assert name == "strong"
    assert abs(scores["random"]) < 5 < scores["weak"] < scores["strong"] <= 100
    few = select_backbone(fakes, domain, 60, seed=1, features=features)
    assert few == select_backbone(fakes, domain, 60, seed=1, features=features)
    assert few.scores != scores, "60 of 120 examples"
    reduced = select_backbone(fakes, domain, features=features, components=8)
    assert reduced.scores["weak"] == parc_score(features["weak"], labels, 8)


def test_each_episode_is_scored_on_its_support_set_alone():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 20)
    features = rng.normal(size=(160, 6)) + rng.normal(size=(8, 6))[labels]
    episodes = list(EpisodeSampler(labels, ways=6, shots=3, seed=3)(6))
    for components in (None, 5):
        scores = episode_scores(torch.tensor(features), episodes, components)
        for score, episode in zip(scores, episodes, strict=True):
            assert score == parc_score(features[episode.support], labels[episode.support], components)
    changed = features.copy()
    changed[np.setdiff1d(np.arange(160), np.concatenate([e.support for e in episodes]))] = rng.normal(size=6)
    np.testing.assert_array_equal(episode_scores(changed, episodes), episode_scores(features, episodes))


def test_one_shot_episodes_have_no_score():
    labels = np.repeat(np.arange(6), 20)
    features = np.random.default_rng(0).normal(size=(120, 6))
    assert np.isnan(episode_scores(features, list(EpisodeSampler(labels, ways=5, shots=1)(3)))).all()
    assert not np.isnan(episode_scores(features, list(EpisodeSampler(labels, ways=5, shots=2)(3)))).any()


def result(accuracies, episodes="same"):
    return FewShotResult(np.array(accuracies), "x", "prototype", episodes)


def test_each_episode_is_given_to_the_backbone_with_the_best_score():
    results = {"one": result([0.1, 0.2, 0.3, 0.4]), "two": result([0.5, 0.6, 0.7, 0.8])}
    scores = {"one": [3.0, 1.0, 2.0, np.nan], "two": [1.0, 3.0, 2.0, np.nan]}
    selection = select_per_episode(results, scores)
    assert selection.names == ["one", "two", "one", "one"], "equal or undefined scores: the first"
    assert selection.result.accuracies.tolist() == [0.1, 0.6, 0.3, 0.4]
    assert selection.result.episodes == "same"
    with pytest.raises(ValueError, match="only results of the same episodes"):
        select_per_episode(results | {"two": result([0.5, 0.6, 0.7, 0.8], "other")}, scores)
    with pytest.raises(ValueError, match="no backbones to choose from"):
        select_per_episode({}, {})


class FakeRows:
    def select(self, rows):
        return self


@pytest.mark.parametrize(
    ("features", "labels", "components", "said"),
    [
        (np.ones((4, 3)), [0, 1], None, r"got \(4, 3\) and \(2,\)"),
        (np.ones(4), [0, 1, 0, 1], None, r"expected features \(N, d\)"),
        (np.eye(4), [0, 0, 0, 0], None, "at least 2 classes"),
        (np.eye(4), [0, 1, 2, 3], None, "every class has one"),
        (np.ones((4, 3)), [0, 1, 0, 1], None, "the backbone has collapsed"),
        (np.full((4, 3), np.nan), [0, 1, 0, 1], None, "not all finite"),
        (np.outer(np.arange(4.0), np.ones(3)), [0, 1, 0, 1], 32, "lie on a line"),
        (np.outer(np.arange(4.0), np.ones(3)), [0, 1, 0, 1], None, "all features of an example are the same number"),
        (np.arange(4.0)[:, None], [0, 1, 0, 1], None, "at least 2 components, examples and features"),
        (np.eye(4), [0, 1, 0, 1], 1, "at least 2 components"),
    ],
)
def test_what_cannot_be_scored_is_refused(features, labels, components, said):
    with pytest.raises(ValueError, match=said):
        parc_score(features, labels, components)


def test_no_backbones():
    with pytest.raises(ValueError, match="no backbones to choose from"):
        select_backbone({}, Domain("x", FakeRows(), np.arange(4), list("abcd"), "image"))


def test_every_episode_has_a_score():
    result = FewShotResult(np.array([0.9, 0.5]), "x", "prototype", "1")
    for scores in ({"a": [1.0]}, {"b": [1.0, 2.0]}):
        with pytest.raises(ValueError, match=r"expected a score for each of 2 episodes; got \{'a': "):
            select_per_episode({"a": result}, scores)


def test_no_components_are_refused():
    with pytest.raises(ValueError, match="PARC needs at least 2 components, examples and features; got 0"):
        parc_score(np.random.default_rng(0).normal(size=(8, 4)), [0, 1] * 4, components=0)
