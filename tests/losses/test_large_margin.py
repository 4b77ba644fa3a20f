"""The large-margin loss against its naive reference, alone and inside SharpTrainer."""

import re

import datasets
import numpy as np
import pytest
import torch

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.losses import LargeMarginLoss, build_loss
from tests import naive
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_bert, make_images, make_vit, weights_of
from tests.processes import run_processes

K, D, N = 4, 5, 12


def seen(running):
    """Running centroids by class, without those of classes that were not seen."""
    return {c: row.tolist() for c, row in enumerate(running) if not np.isnan(row).any()}


def naive_terms(f, w, b, y, running, margins=None, lm_delta_d=6.0, **options):
    """What the naive reference adds to cross-entropy, one value per example; 0 for ignored ones."""
    margins = [lm_delta_d] * len(w) if margins is None else margins
    counted, values = y >= 0, np.zeros(len(y))
    head = w.tolist(), b.tolist()
    of_counted = y[counted].tolist(), f[counted].tolist()
    values[counted] = naive.naive_large_margin_terms(*of_counted, *head, seen(running), list(margins), **options)
    return values


def naive_centroids(f, y, running, momentum=0.99):
    """The running centroids after a batch; NaN for classes that were not seen."""
    after = np.array(running)
    for c, centroid in naive.naive_centroids(f[y >= 0].tolist(), y[y >= 0].tolist(), seen(running), momentum).items():
        after[c] = centroid
    return after


def naive_gradients(f, w, b, y, running, **options):
    """Gradients of the sum of the naive values, by central differences."""
    gradients = []
    for tensor in (f, w, b):
        gradient = np.zeros_like(tensor)
        for index in np.ndindex(*tensor.shape):
            kept, sides = tensor[index], []
            for step in (1e-6, -1e-6):
                tensor[index] = kept + step
                sides.append(naive_terms(f, w, b, y, running, **options).sum())
            tensor[index] = kept
            gradient[index] = (sides[0] - sides[1]) / 2e-6
        gradients.append(gradient)
    return gradients


def example(seed=0, labels=None):
    rng = np.random.default_rng(seed)
    f, w, b = rng.normal(size=(N, D)), rng.normal(size=(K, D)), rng.normal(size=K)
    y = rng.integers(0, K, N) if labels is None else np.array(labels)
    running = rng.normal(size=(K, D))
    running[1] = np.nan  # class 1 was never seen
    return f, w, b, y, running


def built(running=None, class_counts=None, **options):
    loss = LargeMarginLoss(K, D, class_counts=class_counts, **options).double()
    if running is not None:
        loss.centroids = torch.tensor(running)
    return loss


def tensors(f, w, b, y):
    return [torch.tensor(array, requires_grad=array.dtype == float) for array in (f, w, b, y)]


CASES = [
    {},
    {"lm_aggregation": "mean"},
    {"lm_momentum": 0.3, "lm_weight": 0.7},
    {"lm_alpha": 2.0, "lm_beta": 0.0},
    {"lm_gamma": 1.5, "lm_delta_v": 0.0, "lm_delta_d": 1.0},
]
LABELS = [None, [2] * N, [0] * 11 + [3], [1, -100, 1, 0, -100, 0, 3, 3, 3, 2, 1, 0]]


@pytest.mark.parametrize("labels", LABELS, ids=["random", "one class", "one example of a class", "ignored"])
@pytest.mark.parametrize("options", CASES)
def test_values_gradients_and_centroids_equal_the_naive_reference(options, labels):
    f, w, b, y, running = example(labels=labels)
    loss = built(running, **options)
    features, weight, bias, classes = tensors(f, w, b, y)
    values = loss.discriminative(classes, features, weight, bias)
    expected = naive_terms(f, w, b, y, running, **options)
    np.testing.assert_allclose(values.detach(), expected, rtol=1e-10, atol=1e-12)
    assert (expected[y < 0] == 0).all()
    after = naive_centroids(f, y, running, options.get("lm_momentum", 0.99))
    np.testing.assert_allclose(loss.centroids, after, rtol=1e-12)
    gradients = torch.autograd.grad(values.sum(), [features, weight, bias], materialize_grads=True)
    for gradient, by_differences in zip(gradients, naive_gradients(f, w, b, y, running, **options), strict=True):
        np.testing.assert_allclose(gradient, by_differences, rtol=1e-6, atol=1e-7)


def test_gradients_to_ten_digits_by_the_chain_rule():
    """Compactness and size with respect to the features, more accurately than differences are."""
    f, w, b, y, running = example(seed=3)
    mu = 0.6
    features, weight, bias, classes = tensors(f, w, b, y)
    values = built(running, lm_momentum=mu, lm_beta=0.0, lm_gamma=0.2).discriminative(classes, features, weight, bias)
    (gradient,) = torch.autograd.grad(values.sum(), features)
    expected = np.zeros_like(f)
    present = sorted(set(y.tolist()))
    for c in present:
        rows = np.flatnonzero(y == c)
        first = np.isnan(running[c]).any()
        centre = f[rows].mean(0) if first else (1 - mu) * f[rows].mean(0) + mu * running[c]
        part = N / (len(present) * len(rows))
        through = (1.0 if first else 1 - mu) / len(rows)  # ∂ centre / ∂ f_i
        for i in rows:
            away = f[i] - centre
            distance = np.linalg.norm(away)
            pull = part * 2 * max(0.0, distance - 0.5) * away / distance
            expected[i] += pull
            expected[rows] -= through * pull
        expected[rows] += part * len(rows) * 0.2 * through * centre / np.linalg.norm(centre)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)


def test_the_mean_over_the_batch_is_the_mean_over_its_classes():
    f, w, b, y, running = example(labels=[0] * 9 + [1, 2, 2])
    loss = built(running, lm_beta=0.0, lm_gamma=0.0, lm_momentum=0.5)
    features, weight, bias, classes = tensors(f, w, b, y)
    value = loss.discriminative(classes, features, weight, bias).mean().item()
    per_class = []
    for c in (0, 1, 2):
        rows = f[y == c]
        centre = rows.mean(0) if c == 1 else 0.5 * rows.mean(0) + 0.5 * running[c]
        per_class.append(np.mean([max(0.0, np.linalg.norm(row - centre) - 0.5) ** 2 for row in rows]))
    assert value == pytest.approx(np.mean(per_class), rel=1e-12)


def test_the_gradient_of_the_margin_is_not_scaled_by_the_momentum():
    f, w, b, y, running = example()
    gradients = {}
    for momentum in (0.0, 0.99):
        loss = built(running, lm_momentum=momentum, lm_alpha=0.0, lm_gamma=0.0)
        features, weight, bias, classes = tensors(f, w, b, y)
        values = loss.discriminative(classes, features, weight, bias)
        (gradients[momentum],) = torch.autograd.grad(values.sum(), features)
    assert gradients[0.0].norm() > 1
    torch.testing.assert_close(gradients[0.0], gradients[0.99], rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(20))
def test_without_compactness_and_margin_loss_classes_are_further_apart_than_wide(seed):
    rng = np.random.default_rng(seed)
    delta_v, delta_d = 0.5, 1.01
    w, b = rng.normal(size=(K, 8)), 0.1 * rng.normal(size=K)
    centres = 5 * np.linalg.pinv(w) @ (np.eye(K) - 1 / K)  # logits far apart
    y = np.repeat(np.arange(K), 6)
    noise = rng.normal(size=(len(y), 8))
    noise *= rng.uniform(0.5, 0.98, (len(y), 1)) * delta_v / np.linalg.norm(noise, axis=1, keepdims=True)
    f = centres.T[y] + noise
    loss = LargeMarginLoss(K, 8, lm_gamma=0.0, lm_delta_v=delta_v, lm_delta_d=delta_d).double()
    scale = 1.0
    features, weight, bias, classes = tensors(f, w, b, y)
    while True:  # move the classes apart until the loss is 0
        moved = features + (scale - 1) * torch.tensor(centres.T[y])
        loss.centroids = scale * torch.tensor(centres.T)
        if loss.discriminative(classes, moved, weight, bias).max() == 0:
            break
        scale *= 1.5
        assert scale < 1e6
    between = torch.cdist(moved, moved)
    same = classes[:, None] == classes
    assert between[same].max() < between[~same].min()


def test_frequency_aware_margins_keep_their_mean_and_are_wider_for_rare_classes():
    f, w, b, y, running = example()
    counts = [625, 81, 16, 1]
    loss = built(running, class_counts=counts, lm_frequency_margins=True)
    margins = np.array([1 / 5, 1 / 3, 1 / 2, 1])
    margins *= 6 / margins.mean()
    features, weight, bias, classes = tensors(f, w, b, y)
    values = loss.discriminative(classes, features, weight, bias)
    np.testing.assert_allclose(values.detach(), naive_terms(f, w, b, y, running, margins=margins), rtol=1e-10)


def test_the_loss_is_cross_entropy_plus_the_margin_terms_and_importance_multiplies_both():
    f, w, b, y, running = example()
    importance = [1.0, 2.0, 3.0, 4.0]
    loss = build_loss("large_margin", [9, 5, 3, 1], feature_dim=D, class_importance=importance)
    loss.centroids = torch.tensor(running)
    features, weight, bias, classes = tensors(f, w, b, y)
    logits = features @ weight.T + bias
    values = loss(logits, classes, features=features, weight=weight, bias=bias)
    ce = torch.nn.functional.cross_entropy(logits, classes, reduction="none").detach().numpy()
    expected = np.array(importance)[y] * (ce + naive_terms(f, w, b, y, running))
    np.testing.assert_allclose(values.detach(), expected, rtol=1e-6)
    assert loss.config == {
        "name": "large_margin",
        "feature_dim": D,
        "lm_weight": 1.0,
        "lm_alpha": 1.0,
        "lm_beta": 1.0,
        "lm_gamma": 0.001,
        "lm_delta_v": 0.5,
        "lm_delta_d": 6.0,
        "lm_momentum": 0.99,
        "lm_aggregation": "max",
        "lm_frequency_margins": False,
        "class_importance": importance,
    }
    assert build_loss(class_counts=[9, 5, 3, 1], **loss.config).config == loss.config


def test_equal_class_vectors_and_features_on_their_centroid_have_finite_gradients():
    loss = LargeMarginLoss(K, D)
    features, weight = torch.zeros(6, D, requires_grad=True), torch.zeros(K, D, requires_grad=True)
    values = loss(features @ weight.T, torch.tensor([0, 0, 1, 2, 3, 3]), features=features, weight=weight)
    gradients = torch.autograd.grad(values.sum(), [features, weight])
    assert values.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_evaluation_moves_no_centroids_and_needs_no_features():
    f, w, b, y, running = example()
    loss = built(running).eval()
    features, weight, bias, classes = tensors(f, w, b, y)
    logits = features @ weight.T + bias
    expected = torch.nn.functional.cross_entropy(logits, classes, reduction="none")
    assert torch.equal(loss(logits, classes), expected)
    loss(logits, classes, features=features, weight=weight, bias=bias)
    np.testing.assert_array_equal(loss.centroids, running)
    frozen = torch.tensor(running)
    loss.train()(logits, classes, features=features, weight=weight, bias=bias, centroids=frozen)
    np.testing.assert_array_equal(loss.centroids, running)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_features_are_computed_in_float32(autocast):
    f, w, b, y, _ = example()
    features, weight, bias, classes = (
        t.detach().to(torch.bfloat16) if t.is_floating_point() else t for t in tensors(f, w, b, y)
    )
    loss = LargeMarginLoss(K, D)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = loss.discriminative(classes, features, weight, bias)
    assert values.dtype == torch.float32
    exact = [t.double().numpy() for t in (features, weight, bias)]
    expected = naive_terms(*exact, y, np.full((K, D), np.nan))
    np.testing.assert_allclose(values, expected, rtol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lm_weight": -1.0}, "lm_weight must be a finite number >= 0, got -1.0"),
        ({"lm_delta_d": float("nan")}, "lm_delta_d must be a finite number"),
        ({"lm_momentum": 1.0}, "lm_momentum must be a number >= 0 and < 1"),
        ({"lm_aggregation": "sum"}, "unknown lm_aggregation 'sum'; expected one of max, mean"),
        ({"lm_frequency_margins": True}, "lm_frequency_margins needs class_counts"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LargeMarginLoss(K, D, **options)


def test_bad_shapes():
    f, w, b, y, _ = example()
    features, weight, _, classes = tensors(f, w, b, y)
    loss, logits = built(), features @ weight.T
    for inputs in ({}, {"features": features}, {"features": features[:, :2], "weight": weight}):
        with pytest.raises(ValueError, match=r"expected features= of shape \(12, 5\)"):
            loss(logits, classes, **inputs)
    with pytest.raises(ValueError, match="needs feature_dim"):
        build_loss("large_margin", [3, 2])


# ---- inside SharpTrainer ---------------------------------------------------------------------------------------------


METHODS = [
    {"sharpness": "none"},
    {"sharpness": "sam"},
    {"sharpness": "sam", "adaptive": True},
    {"sharpness": "imbsam", "rare_threshold": 10},
    {"sharpness": "focal_sam"},
    {"sharpness": "cc_sam"},
]
LARGE = {"loss": "large_margin", "lm_delta_d": 2.0, "lm_momentum": 0.5}


def batch_of(trainer, size=8, start=0):
    rows = [trainer.train_dataset[i] for i in range(start, start + size)]
    return trainer.data_collator(rows)


def features_of(trainer, batch):
    trainer.model.eval()
    with torch.no_grad():
        return trainer.model.vit(batch["pixel_values"]).last_hidden_state[:, 0].numpy()


@pytest.mark.parametrize("options", METHODS, ids=lambda o: "asam" if o.get("adaptive") else o["sharpness"])
def test_centroids_move_once_per_micro_batch_with_every_method(make_trainer, options):
    rho = {} if options["sharpness"] in ("none", "cc_sam") else {"rho": 0.3}
    trainer = make_trainer(**options, **LARGE, **rho)
    trainer.create_optimizer()
    expected = np.full((K, 16), np.nan)
    for start in (0, 8, 16):
        batch = batch_of(trainer, start=start)
        expected = naive_centroids(features_of(trainer, batch), batch["labels"].numpy(), expected, momentum=0.5)
        trainer.training_step(trainer.model, batch, torch.tensor(8))
        np.testing.assert_allclose(trainer.class_loss.centroids, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_sam_is_that_of_the_whole_loss_at_the_perturbed_weights(make_trainer):
    """Both passes use the centroids that the first one computed."""
    model = make_vit(dtype=torch.float64)
    trainer = make_trainer(model, sharpness="sam", rho=0.2, **LARGE)
    trainer.create_optimizer()
    first, batch = batch_of(trainer), batch_of(trainer, start=8)
    for one in (first, batch):
        one["pixel_values"] = one["pixel_values"].double()
    trainer.training_step(model, first, torch.tensor(8))
    centroids = trainer.class_loss.centroids.clone()
    assert not centroids.isnan().all()
    model.zero_grad()

    def gradient():
        hidden = model.vit(batch["pixel_values"]).last_hidden_state[:, 0]
        loss = LargeMarginLoss(K, 16, lm_delta_d=2.0, lm_momentum=0.5)
        head = {"features": hidden, "weight": model.classifier.weight, "bias": model.classifier.bias}
        value = loss(model.classifier(hidden), batch["labels"], centroids=centroids, **head).mean()
        return torch.autograd.grad(value, list(model.parameters()), allow_unused=True)

    at_w = gradient()
    norm = torch.stack([(g**2).sum() for g in at_w if g is not None]).sum().sqrt()
    weights = weights_of(model)
    with torch.no_grad():
        for parameter, g in zip(model.parameters(), at_w, strict=True):
            if g is not None:
                parameter += 0.2 * g / norm
    expected = gradient()
    model.load_state_dict(weights)
    trainer.training_step(model, batch, torch.tensor(8))
    for parameter, g in zip(model.parameters(), expected, strict=True):
        if g is not None:
            torch.testing.assert_close(parameter.grad, g, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("options", METHODS[::3], ids=["none", "imbsam"])
def test_resuming_restores_the_centroids(make_trainer, tmp_path, options):
    def made(folder):
        out = {"output_dir": str(tmp_path / folder), "save_strategy": "steps", "save_steps": 3, "max_steps": 7}
        return make_trainer(make_vit(dropout=0.1), **options, **LARGE, **out)

    whole, resumed = made("whole"), made("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_bits(weights_of(resumed.model), weights_of(whole.model))
    torch.testing.assert_close(resumed.class_loss.centroids, whole.class_loss.centroids, rtol=0, atol=0, equal_nan=True)
    (tmp_path / "whole" / "checkpoint-3" / "method_0.pt").unlink()
    with pytest.raises(ValueError, match=r"method_0\.pt is missing"):
        made("again").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))


def test_the_centroids_are_kept_when_reweighting_starts(make_trainer):
    trainer = make_trainer(reweight_after=0.5, max_steps=6, **LARGE)
    trainer.train()
    assert not trainer.class_loss.centroids[:2].isnan().any()


def _half_of_the_batch():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    f, w, b, y, running = example(seed=5)
    loss = built(running, lm_momentum=0.5)
    features, weight, bias, classes = tensors(f, w, b, y)
    mine = slice(0, 4) if rank == 0 else slice(4, N)
    loss.discriminative(classes[mine], features[mine], weight, bias)
    return loss.centroids


def test_the_centroids_are_averaged_over_processes(tmp_path):
    ranks = run_processes(_half_of_the_batch, folder=tmp_path)
    f, _, _, y, running = example(seed=5)
    expected = naive_centroids(f, y, running, momentum=0.5)
    for centroids in ranks:
        np.testing.assert_allclose(centroids, expected, rtol=1e-12)


def _trained(options, folder):
    args = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-2}
    args |= {"per_device_train_batch_size": 4, "max_steps": 5, "ddp_find_unused_parameters": False}
    arguments = SharpTrainingArguments(str(folder), **args, **options)
    trainer = SharpTrainer(make_vit(), arguments, train_dataset=make_images())
    trainer.train()
    return weights_of(trainer.model), trainer.class_loss.centroids.nan_to_num(-1.0)


@pytest.mark.parametrize("options", METHODS[3:], ids=lambda o: o["sharpness"])
def test_two_processes_keep_the_same_weights_and_centroids_even_if_one_makes_a_single_pass(tmp_path, options):
    ranks = run_processes(_trained, options | LARGE, tmp_path, folder=tmp_path)
    assert_same_bits(ranks[0][0], ranks[1][0])
    assert torch.equal(ranks[0][1], ranks[1][1])


def test_bert_and_evaluation(make_trainer):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(K), CLASS_COUNTS)
    rows = {"input_ids": rng.integers(4, 50, (len(labels), 8)).tolist(), "label": labels.tolist()}
    trainer = make_trainer(make_bert(), datasets.Dataset.from_dict(rows).with_format("torch"), **LARGE)
    trainer.train()
    assert trainer.class_loss.centroids.shape == (K, 16)
    before = trainer.class_loss.centroids.clone()
    metrics = trainer.evaluate(trainer.train_dataset)
    assert np.isfinite(metrics["eval_loss"])
    torch.testing.assert_close(trainer.class_loss.centroids, before, rtol=0, atol=0, equal_nan=True)


def test_held_out_examples_of_a_learned_radius_move_no_centroids(make_trainer):
    trainer = make_trainer(rho_schedule="learned", rho_update_every=1, rho=0.3, **LARGE)
    trainer.create_optimizer_and_scheduler(4)
    expected = np.full((K, 16), np.nan)
    for step in range(3):
        trainer.state.global_step = step
        batch = batch_of(trainer, start=8 * step)
        expected = naive_centroids(features_of(trainer, batch), batch["labels"].numpy(), expected, momentum=0.5)
        trainer.training_step(trainer.model, batch, torch.tensor(8))
    assert trainer.engine.learned_radius.draws == 2
    np.testing.assert_allclose(trainer.class_loss.centroids, expected, rtol=1e-4, atol=1e-5)


def test_absent_classes_do_not_change_the_margins_of_the_others():
    alone, among = (
        build_loss("large_margin", counts, feature_dim=2, lm_frequency_margins=True).margin
        for counts in ([90, 10], [90, 10, 0, 0])
    )
    torch.testing.assert_close(among[:2], alone)
