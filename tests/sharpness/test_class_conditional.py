"""CC-SAM against a naive loop over classes, its edge cases, its classifier head, and the trainer."""

import copy
import random
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hf_sharp.losses import LOSSES, build_loss
from hf_sharp.losses.registry import loss_options
from hf_sharp.model.head import ClassifierHead
from hf_sharp.sharpness import class_conditional_losses
from hf_sharp.sharpness.coefficients import method_options
from tests import draws, naive
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_bert, make_images, make_vit, weights_of
from tests.distributed.test_processes import train
from tests.processes import run_processes
from tests.trainer.test_modes import TOKENS, lora
from tests.trainer.test_sharp_trainer import Watch

COUNTS = torch.tensor([400, 60, 9, 1])
K, D = 4, 5


def ce(logits, labels):
    return cross_entropy(logits, labels, reduction="none", ignore_index=-100)


def setting(n=12, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    weight, bias, features = rng.normal(size=(K, D)), rng.normal(size=K), rng.normal(size=(n, D))
    labels = rng.choice(K, n, p=[0.5, 0.3, 0.15, 0.05])
    tensors = [torch.tensor(value, dtype=dtype) for value in (weight, bias, features)]
    return (weight, bias, features, labels), [*tensors, torch.tensor(labels)]


def naive_ce(z, y):
    return naive.naive_loss_cross_entropy([z], [y], None)[0]


@pytest.mark.parametrize(("r", "phi"), [(1e-6, 0.5), (0.05, 0.5), (1.0, 0.3), (1.0, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_losses_equal_a_loop_over_classes(r, phi, seed):
    arrays, (weight, bias, features, labels) = setting(seed=seed)
    w, b, f, y = (array.tolist() for array in arrays)
    perturbations = naive.naive_head_perturbations(naive_ce, y, COUNTS.tolist(), f, w, b, r)
    expected = naive.naive_class_conditional_losses(naive_ce, y, f, w, b, perturbations, phi)
    expected = np.array(expected, dtype=float)
    logits = features @ weight.T + bias
    losses, sharpness = class_conditional_losses(
        ce, logits, labels, features, [weight, bias], COUNTS, cc_radius=r, cc_phi=phi
    )
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-10)
    gap = (expected - ce(logits, labels).numpy()).mean() / phi
    assert sharpness.item() == pytest.approx(gap, rel=1e-6, abs=1e-13)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.needs_features])
@pytest.mark.parametrize("seed", range(6))
def test_any_loss_equals_the_naive_reference_on_random_draws(name, seed):
    rng = random.Random(seed)
    options, of_loss = (
        draws.draw_options(*named, rng) for named in (("cc_sam", method_options("cc_sam")), (name, loss_options(name)))
    )
    counts = draws.draw_counts(rng)
    labels, inputs = draws.draw_batch(rng, len(counts))
    del inputs["logits"]
    loss, reference = build_loss(name, counts, **of_loss), naive.reference("loss", name, loss_options(name))

    def losses(labels, features, weight, bias):
        return class_conditional_losses(
            loss, features @ weight.T + bias, labels, features, [weight, bias], torch.tensor(counts), **options
        )[0]

    def naive_loss(z, y):
        return reference([z], [y], counts, **of_loss)[0]

    kept = draws.counted(labels, labels)
    exact = naive.exact(inputs) | {"features": draws.counted(labels, naive.exact(inputs["features"]))}
    radius, phi = options.get("cc_radius", 1e-6), options.get("cc_phi", 0.5)
    perturbations = naive.naive_head_perturbations(naive_loss, kept, counts, **exact, cc_radius=radius)  # a constant
    naive_losses = partial(naive.naive_class_conditional_losses, naive_loss, perturbations=perturbations, cc_phi=phi)
    draws.assert_equal(losses, naive_losses, labels, inputs, rng)


def test_autocast_does_not_reduce_the_precision():
    _, (weight, bias, features, labels) = setting(dtype=torch.float32)
    logits = features @ weight.T + bias
    inputs = (ce, logits, labels, features, [weight, bias], COUNTS)
    expected, _ = class_conditional_losses(*inputs, cc_radius=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = class_conditional_losses(*inputs, cc_radius=1.0)
    assert torch.equal(losses, expected)


def test_gradients_take_delta_as_a_constant():
    """∇ of (1 − φ) ℓ(θ, f) + φ ℓ(θ + δ, f), with respect to weight, bias and features."""
    arrays, (weight, bias, features, labels) = setting()
    w, b, f, y = (array.tolist() for array in arrays)
    for tensor in (weight, bias, features):
        tensor.requires_grad_()
    r, phi = 0.5, 0.4
    losses, _ = class_conditional_losses(
        ce, features @ weight.T + bias, labels, features, [weight, bias], COUNTS, cc_radius=r, cc_phi=phi
    )
    gradients = torch.autograd.grad(losses.mean(), (weight, bias, features))
    deltas = naive.naive_head_perturbations(naive_ce, y, COUNTS.tolist(), f, w, b, r)
    total = 0
    for j, label in enumerate(labels.tolist()):
        d_weight, d_bias = (torch.from_numpy(np.array(delta, dtype=float)) for delta in deltas[label])
        at_head = ce((features[j] @ weight.T + bias)[None], labels[j : j + 1])
        moved = ce((features[j] @ (weight + d_weight).T + bias + d_bias)[None], labels[j : j + 1])
        total = total + ((1 - phi) * at_head + phi * moved).sum() / len(labels)
    for mine, expected in zip(gradients, torch.autograd.grad(total, (weight, bias, features)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


def test_absent_classes_single_examples_and_ignored_labels():
    _, (weight, bias, features, _) = setting(n=5)
    labels = torch.tensor(
        [0, 0, 3, -100, 0]
    )  # classes 1 and 2 are absent; class 3 has one example, here and in training
    logits = features @ weight.T + bias
    losses, _ = class_conditional_losses(ce, logits, labels, features, [weight, bias], COUNTS, cc_radius=0.1)
    assert torch.isfinite(losses).all()
    assert losses[3] == 0
    kept = [0, 1, 2, 4]
    alone, _ = class_conditional_losses(
        ce, logits[kept], labels[kept], features[kept], [weight, bias], COUNTS, cc_radius=0.1
    )
    torch.testing.assert_close(losses[kept], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_gradient_moves_nothing(dtype):
    weight, features = torch.zeros(2, 3, dtype=dtype), torch.zeros(4, 3, dtype=dtype)
    labels = torch.zeros(4, dtype=torch.long)
    certain = torch.tensor([[200.0, -200.0]], dtype=dtype).repeat(4, 1).requires_grad_()
    losses, sharpness = class_conditional_losses(ce, certain, labels, features, [weight], torch.tensor([5, 5]))
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros(4, dtype=dtype))
    assert sharpness == 0
    assert torch.isfinite(certain.grad).all()


def test_with_radius_0_or_phi_0_it_is_the_plain_loss():
    _, (weight, bias, features, labels) = setting()
    logits = features @ weight.T + bias
    for options in ({"cc_radius": 0.0}, {"cc_phi": 0.0, "cc_radius": 1.0}):
        losses, _ = class_conditional_losses(ce, logits, labels, features, [weight, bias], COUNTS, **options)
        torch.testing.assert_close(losses, ce(logits, labels), rtol=1e-12, atol=1e-12)


def test_a_rarer_class_is_perturbed_more():
    _, (weight, bias, features, _) = setting(n=2)
    features[1] = features[0]
    gaps = []
    for label in (0, 2):  # 400 and 9 examples
        labels = torch.full((2,), label)
        logits = torch.zeros(2, K, dtype=torch.float64)
        counts = COUNTS
        _, gap = class_conditional_losses(ce, logits, labels, features, [weight, bias], counts, cc_radius=1e-4)
        gaps.append(gap.item())
    assert gaps[1] / gaps[0] == pytest.approx((399 / 8) ** 0.25, rel=1e-2)


# ---- the head ----------------------------------------------------------------------------------------------------


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x, scale=1.0):
        return self.head(self.first(x)) * scale


def test_the_head_is_the_last_layer_that_ran_and_its_output_the_logits():
    model = Two()
    head = ClassifierHead(model, 4)
    assert set(head.candidates) == {"first", "head"}
    x = torch.ones(2, 3)
    features = head.features_of(model(x))
    assert head.module is model.head
    torch.testing.assert_close(features, model.first(x))
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(head.features_of(model(x)), features)
    head.close()
    model(x)
    with pytest.raises(ValueError, match="not the output of a linear layer"):
        head.features_of(model(x))


def test_logits_that_are_no_output_of_a_linear_layer():
    model = Two()
    head = ClassifierHead(model, 4)
    with pytest.raises(ValueError, match=r"not the output of a linear layer .* looked at 'first', 'head'.*head="):
        head.features_of(model(torch.ones(2, 3), scale=2.0))


@pytest.mark.parametrize(("name", "message"), [(None, "no linear layer of the model with 7"), ("nope", "head='nope'")])
def test_an_unknown_head(name, message):
    with pytest.raises(ValueError, match=message + r".*first \(4\), head \(4\)"):
        ClassifierHead(Two(), 7 if name is None else 4, name)


def test_with_another_loss_the_ascent_follows_its_gradient():
    loss = build_loss("logit_adjusted", COUNTS)
    _, (weight, bias, features, labels) = setting()
    logits = features @ weight.T + bias
    _, gap = class_conditional_losses(loss, logits, labels, features, [weight, bias], COUNTS, cc_radius=0.01)
    assert gap > 0


# ---- in the trainer ----------------------------------------------------------------------------------------------

CC_SAM = {"sharpness": "cc_sam", "cc_radius": 1e-2}


def test_the_gradient_in_the_trainer_equals_the_formula(make_trainer):
    trainer = make_trainer(
        make_vit(dtype=torch.float64), make_images(dtype=np.float64), max_steps=1, max_grad_norm=0.0, **CC_SAM
    )
    watch = Watch().attach(trainer)
    before = copy.deepcopy(trainer.model)
    for module in before.modules():
        module._forward_hooks.clear()
    trainer.train()
    (batch,) = watch.windows[0]
    features = before.vit(batch["pixel_values"]).last_hidden_state[:, 0]
    head = [before.classifier.weight, before.classifier.bias]
    losses, _ = class_conditional_losses(
        ce, before.classifier(features), batch["labels"], features, head, torch.tensor(CLASS_COUNTS), cc_radius=1e-2
    )
    losses.mean().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in before.parameters()])
    torch.testing.assert_close(watch.gradients[0], expected, rtol=1e-9, atol=1e-12)
    plain = make_trainer(
        make_vit(dtype=torch.float64), make_images(dtype=np.float64), max_steps=1, max_grad_norm=0.0, sharpness="none"
    )
    watch = Watch().attach(plain)
    plain.train()
    assert (watch.gradients[0] - expected).norm() > 1e-4 * expected.norm(), "CC-SAM is not plain training"


def test_it_logs_sharpness_and_no_radius(make_trainer):
    trainer = make_trainer(max_steps=3, logging_steps=1, gradient_accumulation_steps=2, **CC_SAM)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert all(log["sharpness"] > 0 for log in logs)
    assert not any("rho" in log or "ascent_grad_norm" in log for log in logs)
    assert trainer.evaluate(make_images())["eval_loss"] > 0


@pytest.mark.parametrize("make", [make_vit, make_bert, lambda: lora()], ids=["vit", "bert", "lora"])
def test_heads_are_found_in_real_models_and_training_resumes(make, make_trainer, tmp_path):
    data = TOKENS if make is make_bert else None
    options = CC_SAM | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / "out")}
    whole = make_trainer(make(), data, **options)
    whole.train()
    resumed = make_trainer(make(), data, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert_same_bits(weights_of(resumed.model), weights_of(whole.model))


def test_two_processes(tmp_path):
    """Every process's classes are those of its own micro-batch; gradients are averaged as in plain training."""
    ranks = run_processes(train, tmp_path / "two", CC_SAM, folder=tmp_path)
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])
    assert all("sharpness" in log for log in ranks[0]["logs"] if "loss" in log)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.1}, "rho=0.1 has no effect with sharpness='cc_sam'"),
        ({"ascent_scope": "window"}, "ascent_scope='window' has no effect"),
        ({"cc_phi": 1.5}, "cc_phi must be a number >= 0 and <= 1, got 1.5"),
        ({"cc_radius": -1.0}, "cc_radius must be a finite number >= 0"),
        ({"head": "vit"}, "head='vit' is not a linear layer with 4 outputs"),
        ({"torch_compile_backend": "aot_eager"}, "which torch.compile does not allow"),
    ],
)
def test_bad_options(make_trainer, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(**(CC_SAM | options))


@pytest.mark.parametrize("name", ["head", "cc_radius", "cc_phi"])
def test_its_options_are_refused_with_other_methods(make_trainer, name):
    with pytest.raises(ValueError, match=f"{name}=.* has no effect with sharpness='sam'"):
        make_trainer(**{name: "classifier" if name == "head" else 0.25})


@pytest.mark.parametrize("gap", [5.0, 25.0, 30.0, 35.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_with_certain_predictions_is_hardly_perturbed(gap, dtype):
    # ‖δ‖ grows as ‖g‖^(−1/2): for a gradient that is only rounding error, δ would be longer than the head.
    features = torch.tensor([[gap, 0.0], [0.0, gap]], dtype=dtype)
    head = [torch.eye(2, dtype=dtype), torch.zeros(2, dtype=dtype)]
    labels, counts = torch.tensor([0, 1]), torch.tensor([90, 10])
    losses, sharpness = class_conditional_losses(ce, features, labels, features, head, counts)
    assert losses.max() < 1.01 * ce(features, labels).max() + 1e-9
    assert sharpness < 1e-4
