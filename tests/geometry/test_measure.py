"""The measured geometry: against a naive reference, in bounded memory, on real models, and as a callback."""

import resource

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_sharp.geometry import GeometryCallback, GeometryMeter, gram_distance, measure, predict_for_loss
from hf_sharp.model.curvature import measure_curvature
from tests.conftest import assert_same_bits, make_images, make_vit, weights_of
from tests.processes import run_processes
from tests.trainer.test_checkpoint import FAMILIES

RNG = np.random.default_rng(0)


def naive(features, labels, num_classes):
    means = np.stack([features[labels == c].mean(0) for c in range(num_classes)])
    centred = means - means.mean(0)
    within = sum(np.outer(f - means[c], f - means[c]) for f, c in zip(features, labels, strict=True)) / len(labels)
    between = sum(np.outer(m, m) for m in centred) / num_classes
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / num_classes
    return means @ means.T, centred @ centred.T, nc1


@pytest.mark.parametrize("dim", [3, 20])
def test_one_pass_equals_the_naive_reference(dim):
    labels = RNG.integers(0, 5, 200)
    features = RNG.normal(size=(200, dim)) + 3 * RNG.normal(size=(5, dim))[labels] + 50  # far from the origin
    meter = GeometryMeter(5, dim)
    for rows in np.array_split(np.arange(200), 7):
        meter.update(torch.tensor(features[rows]), torch.tensor(labels[rows]))
    meter.update(torch.full((2, dim), 1e3), torch.tensor([-100, -100]))
    weight = torch.tensor(RNG.normal(size=(5, dim)))
    found = meter.compute(weight)
    embedding, centred, nc1 = naive(features, labels, 5)
    np.testing.assert_allclose(found.embedding_gram, embedding, rtol=1e-10)
    np.testing.assert_allclose(found.centred_embedding_gram, centred, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.classifier_gram, weight @ weight.T, rtol=1e-12)
    assert found.nc1 == pytest.approx(nc1, rel=1e-6)
    assert found.class_counts.tolist() == np.bincount(labels).tolist()


def test_collapsed_features_have_nc1_0_and_unseen_classes_are_nan():
    meter = GeometryMeter(4, 6)
    prototypes = torch.tensor(RNG.normal(size=(4, 6)))
    labels = torch.tensor([0, 0, 1, 3, 3, 3])
    meter.update(prototypes[labels], labels)
    found = meter.compute(prototypes)
    assert found.nc1 == pytest.approx(0, abs=1e-12)
    assert np.isnan(found.embedding_gram[2]).all()
    assert np.isfinite(found.embedding_gram[np.ix_([0, 1, 3], [0, 1, 3])]).all()


def _million():
    meter = GeometryMeter(1000, 768)
    generator = torch.Generator().manual_seed(0)
    features, before = torch.randn(500, 768, generator=generator), None
    for number in range(120):
        meter.update(features, torch.randint(0, 1000, (500,), generator=generator))
        if number == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_memory_does_not_grow_with_the_number_of_examples(tmp_path):
    (grown,) = run_processes(_million, folder=tmp_path, processes=1)
    assert grown < 40_000, "KiB; 60,000 features of 768 numbers would be 180,000"


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_every_family_are_found_and_not_changed(family):
    images = family in ("vit", "deit", "beit", "dinov2", "swin", "convnext", "clip")
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    model = auto.from_config(AutoConfig.for_model(family, **FAMILIES[family])).train()
    labels = torch.tensor([0, 1, 2, 0])
    size = 32 if family == "convnext" else 8
    inputs = {"pixel_values": torch.randn(4, 3, size, size)} if images else {"input_ids": torch.randint(4, 30, (4, 6))}
    before, hooks = weights_of(model), sum(len(module._forward_hooks) for module in model.modules())
    found = measure(model, [inputs | {"labels": labels}], progress_bar=False)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 3]
    np.testing.assert_allclose(
        found.classifier_gram, (layers[-1].weight @ layers[-1].weight.T).detach(), rtol=1e-5, atol=1e-7
    )
    assert found.class_counts.tolist() == [2, 1, 1]
    assert_same_bits(weights_of(model), before)
    assert model.training
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks


def test_bad_input():
    with pytest.raises(ValueError, match="no `labels`, only 'pixel_values'"):
        measure(make_vit(), [{"pixel_values": torch.zeros(1, 1, 8, 8)}], progress_bar=False)
    with pytest.raises(ValueError, match="there are no examples to measure"):
        measure(make_vit(), [], progress_bar=False)
    ignored = {"pixel_values": torch.zeros(1, 1, 8, 8), "labels": torch.tensor([-100])}
    with pytest.raises(ValueError, match="there are no examples to measure"):
        measure(make_vit(), [ignored], progress_bar=False)


def test_features_that_are_not_finite_have_no_nc1():
    batch = {"pixel_values": torch.full((4, 1, 8, 8), torch.nan), "labels": torch.arange(4)}
    assert np.isnan(measure(make_vit(), [batch], progress_bar=False).nc1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    batch = {"pixel_values": torch.randn(4, 1, 8, 8), "labels": torch.arange(4, dtype=dtype)}
    found = measure(make_vit(), [batch], progress_bar=False)
    assert found.class_counts.tolist() == [1, 1, 1, 1]
    report = measure_curvature(make_vit(), [batch], [200, 50, 9, 9], directions=2, probes=2, tolerance=0.5)
    assert report["few"]["examples"] == 2


def test_ratios_and_angles():
    meter = GeometryMeter(3, 2)
    meter.update(torch.eye(2), torch.tensor([0, 1]))
    found = meter.compute(torch.tensor([[4.0, 0.0], [0.0, 2.0], [1.0, 1.0]]))
    assert found.head_to_tail_norm_ratio([100, 10, 10]) == pytest.approx(4 / ((2 + 2**0.5) / 2))
    np.testing.assert_allclose(found.minimum_angles(), [45, 45, 45], rtol=1e-6)


def test_the_callback_logs_at_every_evaluation(make_trainer):
    trainer = make_trainer(
        eval_dataset=make_images(seed=1), loss="cdt", sharpness="none", eval_strategy="steps", eval_steps=2
    )
    trainer.add_callback(GeometryCallback(trainer))
    trainer.train()
    logged = [log for log in trainer.state.log_history if "geometry_nc1" in log]
    assert len(logged) == 2
    names = {"classifier_distance", "embedding_distance", "centred_embedding_distance", "nc1", "norm_ratio"}
    assert {f"geometry_{name}" for name in names | {"minimum_angle"}} <= logged[0].keys()
    rows = trainer.train_dataset
    expected = measure(trainer.model, [{"pixel_values": rows["pixel_values"][:], "labels": rows["label"][:]}])
    predicted = predict_for_loss(trainer.class_loss)
    assert logged[-1]["geometry_classifier_distance"] == pytest.approx(
        gram_distance(expected.classifier_gram, predicted.classifier_gram)
    )
    assert logged[-1]["geometry_nc1"] == pytest.approx(expected.nc1, rel=1e-4)


def test_the_callback_without_a_prediction(make_trainer, caplog):
    trainer = make_trainer(train_dataset=make_images([40, 22, 9, 0, 3]), model=make_vit(num_labels=5), sharpness="none")
    callback = GeometryCallback(trainer, max_examples=50)
    assert "No distance to a predicted geometry: classes without examples" in caplog.text
    trainer.add_callback(callback)
    trainer.evaluate(trainer.train_dataset)
    assert callback.last.class_counts.sum() == 50


def test_the_callbacks_sample_has_every_class(make_trainer, caplog):
    trainer = make_trainer(train_dataset=make_images([60, 9, 2, 1]), loss="cdt", sharpness="none")
    callback = GeometryCallback(trainer, max_examples=8)
    trainer.add_callback(callback)
    trainer.evaluate(trainer.train_dataset)
    assert callback.last.class_counts.tolist()[1:] == [1, 1, 1]
    assert "geometry_classifier_distance" in trainer.state.log_history[-1]
    callback.dataset = [callback.dataset[i] for i in range(len(callback.dataset))][:3]
    for _ in range(2):
        trainer.evaluate(trainer.train_dataset)
    assert caplog.text.count("not every class is among the measured examples") == 1


def test_modules_in_evaluation_mode_stay_in_it():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).train()
    model[0].eval()
    measure(model, [{"input": torch.randn(4, 3), "labels": torch.tensor([0, 1, 0, 1])}], num_classes=2)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes(label):
    data = [{"input": torch.randn(2, 4), "labels": torch.tensor([0, label])}]
    with pytest.raises(ValueError, match=r"labels from -?\d to \d; expected class indices from 0 to 2, or -100"):
        measure(nn.Sequential(nn.Linear(4, 3)), data, num_classes=3)
