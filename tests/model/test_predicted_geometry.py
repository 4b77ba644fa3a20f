"""The predicted geometry: reference values, closed forms, and refused input."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hf_sharp.geometry import balancing_gamma, gram_distance, predict, predict_for_loss
from hf_sharp.losses import build_loss
from hf_sharp.model.predicted_geometry import cosines, tight_frame

CASES = json.loads((Path(__file__).parent / "reference.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['loss']}-{case['gamma']}-{case['class_counts']}")
def test_predictions_match_the_reference(case):
    options = {} if case["loss"] == "cross_entropy" else {"loss_gamma": case["gamma"]}
    classifier, embedding = predict_for_loss(build_loss(case["loss"], case["class_counts"], **options))
    np.testing.assert_allclose(classifier, case["classifier_gram_normalised"], atol=2e-6)
    np.testing.assert_allclose(embedding, case["embedding_gram_normalised"], atol=2e-6)


def test_cross_entropy_with_half_the_classes_ten_times_larger():
    classifier, embedding = predict([10] * 5 + [1] * 5)
    w, h = classifier.diagonal(), embedding.diagonal()
    assert (w[0] / w[9], h[0] / h[9]) == pytest.approx((2.6721, 0.35083), rel=1e-4)
    for gram, expected in ((classifier, (-0.14395, 0.03337, -0.13868)), (embedding, (-0.0697, -0.18675, -0.08543))):
        cosine = cosines(gram)
        assert (cosine[0, 1], cosine[8, 9], cosine[0, 9]) == pytest.approx(expected, abs=1e-4)


def closed_form(num_classes, ratio, gamma):
    """W Wᵀ of CDT under step imbalance, from the three eigenspaces of S: inside either half, and between the halves."""
    half = num_classes // 2
    major, minor = 1.0, ratio**gamma  # 1/Δ
    within = np.eye(half) - 1 / half
    between = np.concatenate([np.full(half, minor), np.full(half, -major)])
    between /= np.linalg.norm(between)
    gram = np.zeros((num_classes, num_classes))
    gram[:half, :half] = np.sqrt(ratio * major**2) * within
    gram[half:, half:] = np.sqrt(minor**2) * within
    square = major**2 * minor**2 * (ratio + 1) / (major**2 + minor**2)
    gram += np.sqrt(square) * np.outer(between, between)
    return gram / np.linalg.norm(gram)


@pytest.mark.parametrize("gamma", [-1.5, -0.3, 0.0, 0.2, 0.5, 1.0, 1.5])
@pytest.mark.parametrize(("num_classes", "ratio"), [(2, 10), (4, 100), (10, 10), (20, 1000)])
def test_cdt_is_its_closed_form_under_step_imbalance(num_classes, ratio, gamma):
    counts = [ratio] * (num_classes // 2) + [1] * (num_classes // 2)
    classifier, _ = predict_for_loss(build_loss("cdt", counts, loss_gamma=gamma))
    np.testing.assert_allclose(classifier, closed_form(num_classes, ratio, gamma), atol=1e-10)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
@pytest.mark.parametrize("loss", ["cross_entropy", "weighted", "logit_adjusted", "cdt", "ldt", "vs"])
def test_equal_counts_give_the_tight_frame(num_classes, loss):
    classifier, embedding = predict_for_loss(build_loss(loss, [7] * num_classes))
    assert gram_distance(classifier, tight_frame(num_classes)) < 1e-10
    assert gram_distance(embedding, tight_frame(num_classes)) < 1e-10


@pytest.mark.parametrize("counts", [[100, 3], [1000, 100, 10], [5, 5, 5, 4000, 17]])
def test_ldt_with_gamma_one_half_is_the_tight_frame_for_any_counts(counts):
    assert balancing_gamma(counts) == 0.5
    classifier, _ = predict_for_loss(build_loss("ldt", counts, loss_gamma=0.5))
    assert gram_distance(classifier, tight_frame(len(counts))) < 1e-10


def test_only_scales_change_the_geometry_not_offsets_or_weights():
    counts = [300, 40, 5]
    plain = predict(counts)
    for name in ("weighted", "class_balanced", "logit_adjusted", "balanced_softmax"):
        assert gram_distance(predict_for_loss(build_loss(name, counts)).classifier_gram, plain.classifier_gram) == 0
    for name in ("cdt", "ldt", "vs"):
        moved = predict_for_loss(build_loss(name, counts))
        assert gram_distance(moved.classifier_gram, plain.classifier_gram) > 0.05


@pytest.mark.parametrize("counts", [[1000, 100, 10], [10] * 5 + [1] * 5])
@pytest.mark.parametrize("loss", ["cdt", "vs"])
def test_the_balancing_gamma_is_no_worse_than_its_neighbours(counts, loss):
    best = balancing_gamma(counts, loss)
    assert 0 < best < 2

    def distance(gamma):
        gram = predict_for_loss(build_loss("cdt", counts, loss_gamma=gamma)).classifier_gram
        return gram_distance(gram, tight_frame(len(counts)))

    assert distance(best) < min(distance(best - 0.01), distance(best + 0.01), distance(0.0))
    assert balancing_gamma([5, 5, 5], loss) == 0.0


@pytest.mark.parametrize("scale", [{}, {"label_scale": [1.0, 0.8, 0.5, 0.3]}, {"class_scale": [1.0, 0.8, 0.5, 0.3]}])
def test_classifier_and_embeddings_reproduce_the_logits_of_the_svm(scale):
    """With W = (W Wᵀ)^½ and H = W⁺ Z, HᵀH is the embeddings' Gram matrix: both follow from the same Z."""
    classifier, embedding = predict([100, 40, 10, 3], **scale)
    if "class_scale" in scale:
        v = 1 / np.array(scale["class_scale"])
        z = (np.eye(4) - np.outer(v, v) / (v @ v)) * v
    else:
        z = tight_frame(4) / np.array(scale.get("label_scale", np.ones(4)))
    assert gram_distance(z.T @ np.linalg.pinv(classifier, rcond=1e-10, hermitian=True) @ z, embedding) < 1e-10
    if scale:
        assert gram_distance(tight_frame(4) @ np.linalg.pinv(classifier) @ tight_frame(4), embedding) > 0.05


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: predict([5, 0, 2]), "classes without examples have no embedding"),
        (lambda: balancing_gamma([5, 0, 2]), "classes without examples have no embedding"),
        (
            lambda: predict([5, 2], [1.0, 1.0], [1.0, 1.0]),
            "the geometry of class_scale and label_scale together is not known",
        ),
        (lambda: predict([5, 2], class_scale=[1.0, 0.0]), "class_scale must be 2 finite numbers > 0"),
        (lambda: predict([5, 2], label_scale=[1.0]), "label_scale must be 2 finite numbers > 0"),
        (lambda: predict_for_loss(build_loss("focal", [5, 2])), "the geometry of loss='focal' is not known"),
        (lambda: balancing_gamma([5, 2], "focal"), "loss='focal' has no γ"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        call()
