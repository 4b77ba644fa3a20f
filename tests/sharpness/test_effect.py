"""The hint at a radius that does nothing."""

import pytest
import torch

from hf_sharp.sharpness.effect import AscentEffect
from tests.conftest import assert_same_bits, make_vit, weights_of
from tests.distributed.test_processes import train
from tests.processes import run_processes

KINDS = [
    {"sharpness": "sam"},
    {"sharpness": "focal_sam"},
    {"sharpness": "sam", "ascent": "momentum"},
    {"sharpness": "imbsam", "rare_threshold": 25, "per_device_train_batch_size": 8},
    {"sharpness": "imbsam", "rare_threshold": 25, "ascent_scope": "window", "gradient_accumulation_steps": 4},
]


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize(("rho", "hinted"), [(1e-6, True), (3.0, False)])
def test_a_radius_that_does_nothing_is_hinted_at_once(make_trainer, caplog, options, rho, hinted):
    make_trainer(make_vit(), rho=rho, max_steps=30, logging_steps=4, **options).train()
    assert caplog.text.count("has no measurable effect") == hinted


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_measuring_changes_nothing(make_trainer, monkeypatch, options):
    def trained(due):
        monkeypatch.setattr(AscentEffect, "is_due", lambda self, step: due and not self.measured and step >= 2)
        trainer = make_trainer(make_vit(dropout=0.2), rho=0.3, max_steps=6, **options)
        trainer.train()
        assert trainer.engine.effect.measured == due
        return weights_of(trainer.model)

    assert_same_bits(trained(True), trained(False))


def test_the_effect_is_the_change_in_units_of_the_batchs_noise():
    effect, model = AscentEffect(), torch.nn.Linear(1, 1)
    for change, hint in ((0.05, "0.05 times the noise"), (0.2, None)):  # against a noise of √2 / √2
        values = iter([torch.tensor([1.0, 3.0]), torch.tensor([1.0, 3.0]) + change])
        effect.measure(model, lambda values=values: next(values))
        found = effect.pop_hint(0.1)
        assert (found is None) if hint is None else hint in found
        assert effect.pop_hint(0.1) is None


@pytest.mark.parametrize("options", [{"sharpness": "focal_sam"}, *KINDS[-2:]], ids=str)
def test_what_is_measured_is_the_mean_change_of_the_ascents_examples(make_trainer, monkeypatch, options):
    rho, seen = 0.05, []
    measure = AscentEffect.measure

    def compared(self, model, losses, change=None, **more):
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        before = losses().mean()
        gradients = torch.autograd.grad(before, weights)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight += rho * gradient / norm
            seen.append((change.item(), (losses().mean() - before).item()))
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= rho * gradient / norm
        measure(self, model, losses, change, **more)

    monkeypatch.setattr(AscentEffect, "measure", compared)
    make_trainer(make_vit(), rho=rho, max_steps=14, **options).train()
    ((found, expected),) = seen
    assert found == pytest.approx(expected, rel=1e-2)


def measurements(out, options):
    """How often a training measures the effect of its ascent, which would be hinted at with such a radius."""
    measure, done = AscentEffect.measure, []
    AscentEffect.measure = lambda self, *args, **more: done.append(1) or measure(self, *args, **more)
    try:
        train(out, options | {"rho": 1e-6, "max_steps": 12}, dtype=torch.float32)
    finally:
        AscentEffect.measure = measure
    return len(done)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_several_processes_do_not_measure(options, tmp_path):
    # Processes may ascend in different steps, and a pass of one alone would break the order of their broadcasts.
    assert measurements(tmp_path / "one", options) == 1
    assert run_processes(measurements, tmp_path / "two", options, folder=tmp_path) == [0, 0]
