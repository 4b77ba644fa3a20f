"""Cheaper variants: ascent on a fraction of the examples, stochastic sampling, and ascent along the momentum."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from hf_sharp.sharpness import class_coefficients
from hf_sharp.sharpness.passes import Division, divide
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_images, make_vit, weights_of
from tests.naive import naive_gradient

STOCHASTIC = {"sharpness": "focal_sam", "rho": 0.3, "focal_sampling": "stochastic"}


def gradient_at(model, pixels, labels, weights, epsilon=None):
    """∇ Σ_j weights_j ℓ_j at w + ε, as one vector, on a copy of the model."""
    model = copy.deepcopy(model)
    model._forward_pre_hooks.clear()
    if epsilon is not None:
        with torch.no_grad():
            for p, e in zip(model.parameters(), epsilon.split([p.numel() for p in model.parameters()]), strict=True):
                p += e.view_as(p)
    losses = nn.functional.cross_entropy(model(pixel_values=pixels).logits, labels, reduction="none")
    return torch.cat([g.flatten() for g in torch.autograd.grad((weights * losses).sum(), list(model.parameters()))])


def ready(make_trainer, **options):
    options = {"max_grad_norm": 0.0, "max_steps": 100} | options
    trainer = make_trainer(make_vit(dtype=torch.float64), make_images(dtype=np.float64), **options)
    trainer.create_optimizer_and_scheduler(100)
    trainer.state.max_steps = 100
    return trainer


def batch_of(trainer, start=0, size=16):
    rows = trainer.train_dataset[start : start + size]
    batch = {"pixel_values": rows["pixel_values"], "labels": rows["label"]}
    return batch | {"host_labels": batch["labels"].numpy()}


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def seen_by(trainer):
    """The images of every forward pass."""
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    return seen


def rows_of(images, batch):
    """The rows of the batch that these images are."""
    same = (images[:, None] == batch["pixel_values"]).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


# ---- the examples of each pass -----------------------------------------------------------------------------------


def test_examples_are_divided_by_their_coefficient():
    c = np.array([0.0, 1.0, 0.5, 1.0, 0.0])
    perturbed, clean, size = divide(c)
    assert perturbed.tolist() == [1, 2, 3]
    assert clean.tolist() == [0, 2, 4]
    assert size == 3
    assert divide(np.zeros(3))[0].tolist() == []
    assert divide(np.zeros(3))[1] is None
    assert divide(np.ones(3))[0] is None
    assert divide(np.zeros(3), every_pass=True)[0].tolist() == [0]
    assert Division.whole(c)[:2] == (None, None)
    assert Division.whole(np.ones(2)).perturbed is None
    assert len(Division.whole(np.ones(2)).clean) == 0


@pytest.mark.parametrize(("fraction", "size"), [(0.25, 2), (0.5, 4), (0.01, 1), (0.99, 8), (1.0, 8)])
def test_the_examples_of_the_ascent_are_drawn_uniformly(fraction, size):
    c, drawn = np.r_[np.ones(8), 0.0], np.zeros(9)
    for seed in range(400):
        perturbed, clean, ascent_size = divide(c, fraction, np.random.default_rng(seed))
        assert ascent_size == size
        assert sorted(perturbed) == list(range(8))
        assert clean.tolist() == [8]
        drawn[perturbed[:ascent_size]] += 1
    expected = 400 * size / 8
    assert drawn[8] == 0
    assert (np.abs(drawn[:8] - expected) <= 5 * np.sqrt(expected * (1 - size / 8))).all()


# ---- ascent_fraction ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"sharpness": "sam"}, {"sharpness": "imbsam"}, {"sharpness": "focal_sam"}], ids=str
)
def test_ascent_on_a_fraction_and_descent_on_all_examples(make_trainer, options):
    trainer = ready(make_trainer, rho=0.3, ascent_fraction=0.25, **options)
    before, batch, seen = copy.deepcopy(trainer.model), batch_of(trainer), seen_by(trainer)
    loss = trainer.training_step(trainer.model, dict(batch), torch.tensor(16))
    coefficients = class_coefficients(options["sharpness"], CLASS_COUNTS)
    c = coefficients[batch["labels"]]
    perturbed = int((c > 0).sum())
    share = rows_of(seen[0], batch)
    assert len(share) == max(round(perturbed / 4), 1)
    assert (c[share] > 0).all()
    ascent = torch.zeros(16, dtype=torch.float64)
    ascent[share] = c[share] * perturbed / len(share) / 16
    pixels, labels = batch["pixel_values"], batch["labels"]
    g = gradient_at(before, pixels, labels, ascent)
    expected = gradient_at(before, pixels, labels, (1 - c) / 16)
    expected += gradient_at(before, pixels, labels, c / 16, epsilon=0.3 * g / g.norm())
    torch.testing.assert_close(
        flat_gradient(trainer.model), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )
    assert_same_bits(weights_of(trainer.model), weights_of(before))
    examples = len(share) + perturbed + (0 if options["sharpness"] == "sam" else int((c < 1).sum()))
    assert sum(map(len, seen)) == examples
    at_w = nn.functional.cross_entropy(before(pixel_values=pixels).logits, labels, reduction="none")
    torch.testing.assert_close(loss, (ascent * at_w).sum() + ((1 - c) * at_w).mean())


def test_every_micro_batch_draws_new_examples_reproducibly(make_trainer):
    def shares(**options):
        trainer = ready(make_trainer, rho=0.3, ascent_fraction=0.25, **options)
        batch, seen, drawn = batch_of(trainer), seen_by(trainer), []
        for step in range(4):
            trainer.state.global_step = step // 2
            if step % 2 == 0:
                trainer.engine.position = 0
            seen.clear()
            trainer.training_step(trainer.model, dict(batch), torch.tensor(16))
            drawn.append(rows_of(seen[0], batch).tolist())
        return drawn

    first = shares()
    assert len({tuple(rows) for rows in first}) == 4, "micro-batches and steps differ"
    assert shares() == first
    assert shares(seed=7) != first


# ---- focal_sampling="stochastic" ---------------------------------------------------------------------------------


def test_each_example_is_in_one_descent_pass(make_trainer):
    trainer = ready(make_trainer, ascent_fraction=0.5, **STOCHASTIC)
    before, batch, seen = copy.deepcopy(trainer.model), batch_of(trainer), seen_by(trainer)
    trainer.training_step(trainer.model, dict(batch), torch.tensor(16))
    ascent, clean, perturbed = (rows_of(images, batch) for images in seen)
    assert sorted([*clean.tolist(), *perturbed.tolist()]) == list(range(16))
    assert perturbed.tolist()[: len(ascent)] == ascent.tolist()
    assert len(ascent) == round(len(perturbed) / 2)
    pixels, labels = batch["pixel_values"], batch["labels"]
    ones = torch.ones(16, dtype=torch.float64)
    g = gradient_at(before, pixels[ascent], labels[ascent], ones[: len(ascent)])
    expected = gradient_at(before, pixels[clean], labels[clean], ones[: len(clean)] / 16)
    expected += gradient_at(
        before, pixels[perturbed], labels[perturbed], ones[: len(perturbed)] / 16, epsilon=0.3 * g / g.norm()
    )
    torch.testing.assert_close(
        flat_gradient(trainer.model), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )


def test_the_expected_gradient_is_that_of_focal_sam(make_trainer):
    trainer = ready(make_trainer, **STOCHASTIC)
    batch = batch_of(trainer)
    c = class_coefficients("focal_sam", CLASS_COUNTS)[batch["labels"]].numpy()
    epsilon = torch.from_numpy(np.random.default_rng(0).normal(size=sum(p.numel() for p in trainer.model.parameters())))
    epsilon *= 0.3 / epsilon.norm()
    each = torch.eye(16, dtype=torch.float64) / 16
    inputs = trainer.model, batch["pixel_values"], batch["labels"]
    at_w, moved = (torch.stack([gradient_at(*inputs, one, epsilon=e) for one in each]).numpy() for e in (None, epsilon))
    exact = (1 - c) @ at_w + c @ moved
    draws = 4000
    total, squares = np.zeros_like(exact), np.zeros_like(exact)
    for position in range(draws):
        trainer.engine.position = position
        perturbed, clean, _ = trainer.engine.divide({"labels": batch["labels"]}, batch["host_labels"]).division
        taken = np.zeros(16)
        taken[perturbed] = 1
        assert (taken[clean] == 0).all()
        assert taken.sum() + len(clean) == 16
        gradient = taken @ moved + (1 - taken) @ at_w
        total += gradient
        squares += (gradient - exact) ** 2
    error = np.linalg.norm(total / draws - exact)
    expected_error = np.sqrt(squares.sum() / draws / draws)
    assert error < 2 * expected_error, "the mean over the draws is the exact gradient"
    without = np.linalg.norm(at_w.sum(0) - exact)
    assert error < without / 5, "and far from the gradient without sharpness"


def test_coefficients_above_one_are_refused_as_probabilities(make_trainer):
    with pytest.raises(ValueError, match="Choose focal_lambda <= 1"):
        make_trainer(**STOCHASTIC, focal_lambda=1.5)


def test_labels_of_a_stream_are_read_from_the_batch(make_trainer):
    trainer = ready(make_trainer, **STOCHASTIC)
    batch = batch_of(trainer)
    division = trainer.engine.divide(batch, batch["host_labels"]).division
    same = trainer.engine.divide(batch, None).division
    assert np.array_equal(division.perturbed, same.perturbed)


# ---- examples that depend on one another -------------------------------------------------------------------------


def make_resnet():
    torch.manual_seed(0)
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    return ResNetForImageClassification(config)


@pytest.mark.parametrize("options", [STOCHASTIC, {"ascent_fraction": 0.5}], ids=str)
@pytest.mark.parametrize("why", ["BatchNorm", "large_margin"])
def test_a_fraction_of_examples_that_depend_on_one_another_is_refused(make_trainer, options, why):
    more = {"loss": "large_margin"} if why == "large_margin" else {}
    with pytest.raises(ValueError, match=f"(?s){why}.*depends on the others"):
        make_trainer(make_resnet() if why == "BatchNorm" else None, **options, **more)


def test_imbsam_with_batch_norm_takes_the_whole_batch(make_trainer):
    trainer = make_trainer(
        make_resnet(), make_images(dtype=np.float64), sharpness="imbsam", rho=0.3, max_grad_norm=0.0, max_steps=1
    )
    before, seen, gradients, batches = copy.deepcopy(trainer.model).train(), seen_by(trainer), [], []
    step = trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        batches.append(inputs)
        loss = step(model, inputs, num_items_in_batch)
        gradients.append(flat_gradient(model))
        return loss

    trainer.training_step = training_step
    trainer.train()
    assert [len(images) for images in seen] == [8, 8]
    expected = naive_gradient(before, batches, CLASS_COUNTS, "imbsam", 0.3)
    torch.testing.assert_close(gradients[0], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


# ---- ascent="momentum" -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_momentum_ascent_equals_the_formula_in_one_pass(make_trainer, optim, adaptive):
    more = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    more |= {"adaptive": True, "rho": 1.0} if adaptive else {"rho": 0.3}
    trainer = ready(make_trainer, ascent="momentum", optim=optim, **more)
    model, seen = trainer.model, seen_by(trainer)
    for step in range(3):
        batch = batch_of(trainer, start=16 * step)
        before = copy.deepcopy(model)
        state = [dict(trainer.optimizer.state.get(p, {})) for p in model.parameters()]
        trainer.training_step(model, dict(batch), torch.tensor(16))
        assert_same_bits(weights_of(model), weights_of(before))
        epsilon = None
        if step:
            m = torch.cat([s["exp_avg" if optim == "adamw_torch" else "momentum_buffer"].flatten() for s in state])
            t = torch.cat([(p.abs() + 0.01).flatten() for p in before.parameters()])
            t = t.detach() if adaptive else torch.ones_like(m)
            epsilon = -more["rho"] * t**2 * m / (t * m).norm()
        ones = torch.full((16,), 1 / 16, dtype=torch.float64)
        expected = gradient_at(before, batch["pixel_values"], batch["labels"], ones, epsilon)
        torch.testing.assert_close(flat_gradient(model), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
        trainer.optimizer.step()
        model.zero_grad()
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "sgd"}, "SGD keeps none"),
        ({"optim": "adafactor"}, "Adafactor keeps none"),
        ({"optim": "rmsprop"}, "RMSprop keeps none"),
        ({"optim": "schedule_free_adamw", "lr_scheduler_type": "constant"}, "keeps none"),
    ],
    ids=str,
)
def test_an_optimizer_without_a_first_moment_is_refused_before_training(make_trainer, options, message):
    trainer = make_trainer(ascent="momentum", **options)
    steps = []
    trainer.training_step = lambda *args: steps.append(1)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert not steps


def test_an_error_in_the_pass_restores_the_weights(make_trainer):
    trainer = ready(make_trainer, ascent="momentum", rho=0.3)
    batch = batch_of(trainer)
    trainer.training_step(trainer.model, dict(batch), torch.tensor(16))
    trainer.optimizer.step()
    before = weights_of(trainer.model)

    def explode(*args):
        assert any(not torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
        raise RuntimeError

    hook = trainer.model.register_forward_hook(explode)
    with pytest.raises(RuntimeError):
        trainer.training_step(trainer.model, dict(batch), torch.tensor(16))
    hook.remove()
    assert_same_bits(weights_of(trainer.model), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpness": "focal_sam", "ascent": "momentum"}, "works with sharpness='sam' only"),
        ({"sharpness": "none", "ascent": "momentum"}, "has no effect"),
        ({"ascent": "momentum", "ascent_fraction": 0.5}, "has no effect with ascent='momentum'"),
        ({"ascent": "momentum", "sharpness_every": 2}, "has no effect with ascent='momentum'"),
        ({"ascent": "momentum", "rho_schedule": "learned"}, "leave ascent at 'gradient'"),
        ({"sharpness_every": 2, "rho_schedule": "learned"}, "leave sharpness_every at 1"),
        ({"sharpness_every": 0}, "sharpness_every must be an integer >= 1"),
        ({"looksam_alpha": 0.5}, "has no effect with sharpness_every=1"),
        ({"sharpness_every": 2, "looksam_alpha": -1.0}, "finite number >= 0"),
        ({"ascent_fraction": 0.0}, "> 0 and <= 1"),
        ({"ascent_fraction": 1.5}, "> 0 and <= 1"),
        ({"focal_sampling": "stochastic"}, "has no effect with sharpness='sam'"),
        ({"sharpness": "focal_sam", "focal_sampling": "random"}, "unknown focal_sampling"),
    ],
    ids=str,
)
def test_invalid_options_are_errors_before_training(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)
