"""Training the unconstrained features model confirms the prediction."""

import itertools

import pytest

from hf_sharp.geometry import gram_distance, predict, predict_for_loss, train_ufm
from hf_sharp.losses import build_loss

COUNTS = [10, 10, 1, 1]


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("cross_entropy", {}),
        ("logit_adjusted", {}),
        *((name, {"loss_gamma": g}) for name in ("cdt", "ldt", "vs") for g in (-0.5, 0.5)),
    ],
    ids=str,
)
def test_the_distance_to_the_prediction_falls_with_the_ridge(loss, options):
    built = build_loss(loss, COUNTS, **options)
    predicted = predict_for_loss(built)
    distances = []
    for ridge in (1e-2, 1e-4, 1e-6, 1e-8):
        trained = train_ufm(built, ridge)
        distances.append([gram_distance(one, other) for one, other in zip(trained, predicted, strict=True)])
    for by_ridge in zip(*distances, strict=True):
        assert all(far > near for far, near in itertools.pairwise(by_ridge)), by_ridge
        assert by_ridge[-1] < 0.6 * by_ridge[0], "slowly, with the logarithm of the ridge"


def test_the_label_scale_affects_the_classifiers_geometry():
    """Unlike in the authors' code."""
    built = build_loss("ldt", [10] * 5 + [1] * 5, loss_gamma=0.5)
    ratios = []
    for ridge in (1e-3, 1e-6, 1e-9):
        norms = train_ufm(built, ridge).classifier_gram.diagonal()
        ratios.append(norms[0] / norms[9])
    without = predict([10] * 5 + [1] * 5).classifier_gram.diagonal()
    assert without[0] / without[9] == pytest.approx(2.672, abs=1e-3)
    assert 1.0 < ratios[2] < ratios[1] < ratios[0] < 1.3


def test_embeddings_per_example_and_per_class_agree():
    built = build_loss("cdt", [6, 3, 1], loss_gamma=0.3)
    every, one = (train_ufm(built, 1e-3, per_example=per_example) for per_example in (True, False))
    assert gram_distance(every.classifier_gram, one.classifier_gram) < 1e-5
    assert gram_distance(every.embedding_gram, one.embedding_gram) < 1e-5


def test_a_ridge_must_be_positive():
    with pytest.raises(ValueError, match="ridge must be a finite number > 0, got 0"):
        train_ufm(build_loss("cross_entropy", COUNTS), 0)
