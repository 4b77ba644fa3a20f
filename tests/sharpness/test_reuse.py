"""LookSAM: sharpness every k-th step; in between, its component orthogonal to the gradient is reused."""

import copy

import numpy as np
import pytest
import torch

from hf_sharp.sharpness.reuse import ReusedSharpness
from tests.conftest import CLASS_COUNTS, make_images, make_vit
from tests.naive import naive_gradient
from tests.trainer.test_sharp_trainer import Watch


def across(g, g_s):
    """The authors' rule: the component of g_s orthogonal to g, as a unit vector."""
    v = g_s - (g @ g_s) / (g @ g) * g
    return v / v.norm()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("sharpness", ["sam", "focal_sam", "imbsam"])
def test_the_gradients_of_six_steps_equal_the_naive_reference(make_trainer, sharpness, every, accumulation):
    trainer = make_trainer(
        make_vit(dtype=torch.float64),
        make_images(dtype=np.float64),
        sharpness=sharpness,
        sharpness_every=every,
        looksam_alpha=0.6,
        rho=0.3,
        max_steps=6,
        max_grad_norm=0.0,
        gradient_accumulation_steps=accumulation,
    )
    watch, weights = Watch().attach(trainer), []
    step = trainer.training_step

    def training_step(*args):
        if len(weights) == trainer.state.global_step:
            weights.append(copy.deepcopy(trainer.model))
        return step(*args)

    trainer.training_step = training_step
    trainer.train()
    v = None
    for number, (model, window, gradient) in enumerate(zip(weights, watch.windows, watch.gradients, strict=True)):
        g = naive_gradient(model, window, CLASS_COUNTS, "none", 0.0)
        if number % every == 0:
            expected = naive_gradient(model, window, CLASS_COUNTS, sharpness, 0.3)
            if (expected - g).norm() > 1e-9:  # a batch without rare examples keeps the stored direction
                v = across(g, expected)
        else:
            expected = g if v is None else g + 0.6 * g.norm() * v
            assert v is None or (expected - g).norm() > 0.5 * g.norm()
        torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    assert v is not None


def test_the_steps_in_between_take_one_pass(make_trainer):
    trainer = make_trainer(sharpness_every=4, rho=0.3, max_steps=8)
    passes = []
    trainer.model.register_forward_hook(lambda *args: passes.append(trainer.state.global_step))
    trainer.train()
    assert passes == [0, 0, 1, 2, 3, 4, 4, 5, 6, 7]


def test_an_overflow_keeps_the_stored_direction():
    w, reused = torch.zeros(2, requires_grad=True), ReusedSharpness(alpha=0.5)
    for g, g_s in (([1.0, 0.0], [1.0, 2.0]), ([1.0, 0.0], [float("inf"), 1.0]), ([float("nan"), 0.0], [1.0, 1.0])):
        reused.begin([w])
        reused.at_w([w], [torch.tensor(g)], torch.tensor(0.0), 1.0)
        w.grad = torch.tensor(g_s)
        reused.keep([w])
        w.grad = None
        assert reused.direction[0].tolist() == [0.0, 1.0]


def test_gradients_left_over_from_a_failed_window_are_discarded(make_trainer):
    trainer = make_trainer(make_vit(), sharpness_every=2, rho=0.3)
    parameters = list(trainer.model.parameters())
    trainer.engine.reused.begin(parameters)
    assert trainer.engine.reused._plain is not None
    trainer.get_batch_samples(iter([]), 1, torch.device("cpu"))
    assert trainer.engine.reused._plain is None
