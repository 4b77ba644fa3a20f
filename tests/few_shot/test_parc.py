"""PARC against a naive reference in NumPy and SciPy, and the ranking of backbones by it."""

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata

from hf_sharp.few_shot import Domain, parc_score, select_backbone


def naive_parc(features, labels, components=32):
    centred = features - features.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[: min(components, len(features) - 1, features.shape[1])]
    for direction in directions:  # scikit-learn's convention of signs
        if direction[np.argmax(np.abs(direction))] < 0:
            direction *= -1
    scores = centred @ directions.T
    scores /= scores.std(0)
    d_f, d_y = [], []
    for i in range(len(labels)):
        for j in range(i + 1, len(labels)):
            d_f.append(1 - pearsonr(scores[i], scores[j])[0])
            one, other = ((np.unique(labels) == labels[k]).astype(float) for k in (i, j))
            d_y.append(1 - pearsonr(one, other)[0])
    return 100 * pearsonr(rankdata(np.round(d_f, 12)), rankdata(np.round(d_y, 12)))[0]


@pytest.mark.parametrize(("examples", "dim", "classes"), [(40, 50, 4), (25, 50, 3), (60, 10, 5), (20, 3, 2)])
def test_parc_is_that_of_the_naive_reference(examples, dim, classes):
    rng = np.random.default_rng(examples)
    labels = np.arange(examples) % classes
    features = rng.normal(size=(examples, dim)) + rng.normal(size=(classes, dim))[labels]
    assert parc_score(features, labels) == pytest.approx(naive_parc(features, labels), abs=1e-6)
    names = np.array(list("fbaed"))[labels]  # whatever the labels are called
    assert parc_score(features.astype(np.float32), names) == pytest.approx(parc_score(features, labels), abs=1e-3)


def test_rounding_decides_nothing():
    rng = np.random.default_rng(0)
    labels = np.arange(30) % 5
    features = rng.normal(size=(30, 8)) + rng.normal(size=(5, 8))[labels]
    # Features that others determine add components of no variance; and other numbers, no other order.
    wide = np.concatenate([features, features @ rng.normal(size=(8, 4)) * 1e-9], 1).astype(np.float32)
    assert parc_score(wide, labels) == pytest.approx(parc_score(features, labels), abs=0.2)
    assert parc_score(features * 1e4, labels) == pytest.approx(parc_score(features, labels), abs=1e-9)
    few = rng.permutation(12)
    assert parc_score(features[:12][few], labels[:12][few]) == pytest.approx(naive_parc(features[:12], labels[:12]))


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


class FakeRows:
    def select(self, rows):
        return self


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        (np.ones((4, 3)), [0, 1], r"got \(4, 3\) and \(2,\)"),
        (np.ones(4), [0, 1, 0, 1], r"expected features \(N, d\)"),
        (np.eye(4), [0, 0, 0, 0], "at least 2 classes"),
        (np.ones((4, 3)), [0, 1, 0, 1], "the backbone has collapsed"),
        (np.full((4, 3), np.nan), [0, 1, 0, 1], "not all finite"),
        (np.outer(np.arange(4.0), np.ones(3)), [0, 1, 0, 1], "lie on a line"),
        (np.arange(4.0)[:, None], [0, 1, 0, 1], "at least 2 components"),
    ],
)
def test_what_cannot_be_scored_is_refused(features, labels, said):
    with pytest.raises(ValueError, match=said):
        parc_score(features, labels)


def test_no_backbones():
    with pytest.raises(ValueError, match="no backbones to choose from"):
        select_backbone({}, Domain("x", FakeRows(), np.arange(4), list("abcd"), "image"))
