"""Class-aware momentum: against a loop in float64, and in the modes where its running mean can go wrong."""

import numpy as np
import pytest
import torch

from hf_sharp.sharpness.class_momentum import ClassMomentum
from tests.conftest import assert_same_bits, make_images, make_vit, weights_of
from tests.distributed.test_processes import assert_close, train
from tests.processes import run_processes
from tests.sharpness.test_cheaper import batch_of, flat_gradient, gradient_at, ready
from tests.trainer.test_mixed_precision import OverflowIn, in_float16

FOCAL = {"sharpness": "focal_sam", "ascent": "class_momentum", "rho": 0.3, "focal_gamma": 3.0}
IMBSAM = {"sharpness": "imbsam", "ascent": "class_momentum", "rho": 0.3}


def divisions_of(trainer):
    divided, divide = [], trainer.engine.divide
    trainer.engine.divide = lambda *args: divided.append(divide(*args)) or divided[-1]
    return divided


@pytest.mark.parametrize("options", [FOCAL, IMBSAM], ids=["focal_sam", "imbsam"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_gradient_and_the_running_mean_equal_a_loop(make_trainer, options, accumulation):
    trainer = ready(make_trainer, ascent_momentum=0.6, gradient_accumulation_steps=accumulation, **options)
    model, divided = trainer.model, divisions_of(trainer)
    mean, loss_gradient = None, torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for step in range(4):
        trainer.state.global_step = step
        trainer.get_batch_samples(iter([]), 1, torch.device("cpu"))
        own = torch.zeros_like(loss_gradient)
        expected = torch.zeros_like(loss_gradient)
        model.zero_grad()
        for position in range(accumulation):
            batch = batch_of(trainer, start=8 * (step * accumulation + position), size=8)
            trainer.accelerator.gradient_state._set_sync_gradients(position == accumulation - 1)
            trainer.training_step(model, dict(batch), torch.tensor(8 * accumulation))
            perturbed = np.zeros(8)
            rows = divided[-1].division.perturbed
            perturbed[slice(None) if rows is None else rows] = 1
            weights = torch.from_numpy(perturbed) / (8 * accumulation)
            epsilon = None if mean is None else -0.3 * mean / mean.norm()
            inputs = model, batch["pixel_values"], batch["labels"]
            moved = gradient_at(*inputs, weights, epsilon=epsilon)
            own += moved
            expected += moved + gradient_at(*inputs, 1 / (8 * accumulation) - weights)
        torch.testing.assert_close(flat_gradient(model), expected, rtol=1e-9, atol=1e-12)
        mean = 0.4 * own if mean is None else 0.6 * mean + 0.4 * own
        found = torch.cat([m.flatten() for m in trainer.engine.ascent.momentum.mean])
        torch.testing.assert_close(found, mean, rtol=1e-9, atol=1e-12)


def test_for_a_fixed_epsilon_the_expected_gradient_is_that_of_focal_sam(make_trainer):
    trainer = ready(make_trainer, **FOCAL)
    model, batch = trainer.model, batch_of(trainer)
    rng = np.random.default_rng(0)
    mean = [torch.from_numpy(rng.normal(size=p.shape)) for p in model.parameters()]
    flat = torch.cat([m.flatten() for m in mean])
    inputs = model, batch["pixel_values"], batch["labels"]
    each = torch.eye(16, dtype=torch.float64) / 16
    at_w, moved = (
        torch.stack([gradient_at(*inputs, one, epsilon=e) for one in each]) for e in (None, -0.3 * flat / flat.norm())
    )
    c = trainer.engine.planner.coefficients[batch["labels"]]
    exact, draws = (1 - c) @ at_w + c @ moved, 600
    gradients = []
    for position in range(draws):
        trainer.engine.ascent.momentum.mean = [m.clone() for m in mean]
        trainer.engine.position = position
        model.zero_grad()
        trainer.training_step(model, dict(batch), torch.tensor(16))
        gradients.append(flat_gradient(model))
    gradients = torch.stack(gradients)
    error = (gradients.mean(0) - exact).norm()
    expected_error = (gradients.var(0).sum() / draws).sqrt()
    assert error < 2 * expected_error
    assert (at_w.sum(0) - exact).norm() > 5 * error, "and far from the plain gradient"
    assert (moved.sum(0) - exact).norm() > 5 * error, "and from SAM's"


def test_every_example_takes_part_in_one_pass(make_trainer):
    trainer = make_trainer(max_steps=5, **FOCAL)
    sizes = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    trainer.train()
    assert sum(sizes) == 5 * 8


def test_the_weights_are_restored_to_the_last_bit(make_trainer):
    trainer = make_trainer(max_steps=5, learning_rate=0.0, max_grad_norm=0.0, **FOCAL)
    before = weights_of(trainer.model)
    trainer.train()
    assert_same_bits(before, weights_of(trainer.model))


def test_with_a_radius_it_differs_from_plain_training(make_trainer):
    def trained(**options):
        trainer = make_trainer(make_vit(), max_steps=6, **options)
        trainer.train()
        return torch.cat([value.flatten() for value in weights_of(trainer.model).values()])

    plain = trained(sharpness="none")
    assert (trained(**FOCAL) - plain).norm() > 1e-3 * plain.norm()


@pytest.mark.parametrize("passes", [[1], [2], [3], [4]])
def test_an_overflow_does_not_enter_the_running_mean(make_trainer, passes):
    trainer = in_float16(make_trainer(max_steps=5, **FOCAL))
    trainer.model.classifier = OverflowIn(trainer.model.classifier, passes)
    trainer.train()
    assert all(m.isfinite().all() for m in trainer.engine.ascent.momentum.mean)
    assert all(value.isfinite().all() for value in weights_of(trainer.model).values())


def test_an_overflow_leaves_the_mean_unchanged():
    momentum, w = ClassMomentum(beta=0.5), [torch.zeros(2)]
    for gradient, expected in (([2.0, 0.0], [1.0, 0.0]), ([float("inf"), 0.0], [1.0, 0.0]), ([0.0, 2.0], [0.5, 1.0])):
        momentum.add(w, [torch.tensor(gradient)])
        momentum.update()
        assert momentum.mean[0].tolist() == expected


def test_loss_scaling_is_removed_from_the_mean(make_trainer):
    def mean(scale):
        trainer = in_float16(make_trainer(make_vit(), max_steps=3, learning_rate=0.0, **FOCAL), scale)
        trainer.train()
        return torch.cat([m.flatten() for m in trainer.engine.ascent.momentum.mean])

    torch.testing.assert_close(mean(2.0**6), mean(2.0**9), rtol=1e-2, atol=1e-5)


def test_gradients_left_over_from_a_failed_window_are_discarded(make_trainer):
    trainer = ready(make_trainer, **FOCAL)
    momentum = trainer.engine.ascent.momentum
    momentum.add(list(trainer.model.parameters()), [torch.ones_like(p) for p in trainer.model.parameters()])
    trainer.get_batch_samples(iter([]), 1, torch.device("cpu"))
    momentum.update()
    assert momentum.mean is None


def test_resuming_is_exact(make_trainer, tmp_path):
    options = {"max_steps": 8, "save_steps": 4, "save_strategy": "steps", "lr_scheduler_type": "constant", **FOCAL}
    whole = make_trainer(make_vit(dropout=0.1), output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    resumed = make_trainer(make_vit(dropout=0.1), output_dir=str(tmp_path / "whole"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_same_bits(weights_of(whole.model), weights_of(resumed.model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpness": "sam"}, "treats all classes alike. Choose ascent='momentum'"),
        ({"sharpness": "none"}, "ascent='class_momentum' has no effect with sharpness='none'"),
        ({"sharpness": "focal_sam", "focal_lambda": 1.5}, "uses the coefficients as probabilities"),
        ({"sharpness": "focal_sam", "focal_lambda": 1.0, "focal_gamma": 0.0}, "every class has 1. Choose ascent='mom"),
        ({"sharpness": "imbsam", "ascent_momentum": 1.0}, r"ascent_momentum must be in \[0, 1\)"),
        ({"sharpness": "imbsam", "ascent_fraction": 0.5}, "ascent_fraction=0.5 has no effect"),
        ({"sharpness": "focal_sam", "loss": "large_margin"}, "Leave ascent at 'gradient'"),
    ],
)
def test_incompatible_options_are_refused(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(ascent="class_momentum", **options)


def two_processes(out, sync):
    from hf_sharp import SharpTrainer, SharpTrainingArguments

    args = SharpTrainingArguments(
        str(out), max_steps=4, per_device_train_batch_size=4, use_cpu=True, report_to="none", save_strategy="no",
        disable_tqdm=True, learning_rate=1e-2, ascent_sync=sync, gradient_accumulation_steps=2, **FOCAL,
    )  # fmt: skip
    trainer = SharpTrainer(make_vit(), args, train_dataset=make_images())
    trainer.train()
    return weights_of(trainer.model), [m.clone() for m in trainer.engine.ascent.momentum.mean]


@pytest.mark.parametrize("sync", ["local", "global"])
def test_two_processes_have_the_same_weights(tmp_path, sync):
    (first, one), (second, other) = run_processes(two_processes, tmp_path, sync, folder=tmp_path)
    assert_same_bits(first, second)
    same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert same == (sync == "global"), "the running mean is local unless it is averaged"


@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_with_one_mean_equal_one_process_with_a_double_batch(tmp_path, fsdp):
    """With FSDP2 the running mean is sharded like the weights. ImbSAM draws nothing, so both can be compared."""
    options = IMBSAM | {"max_steps": 4, "gradient_accumulation_steps": 2}
    one = train(tmp_path / "one", options | {"per_device_train_batch_size": 8})
    sync = {} if fsdp else {"ascent_sync": "global"}
    ranks = run_processes(train, tmp_path / "two", options | sync, fsdp, folder=tmp_path)
    assert ranks[0]["kinds"] == ({"DTensor"} if fsdp else {"Parameter"})
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])
    assert_close(ranks[0], one)
    plain = train(tmp_path / "plain", options | {"per_device_train_batch_size": 8, "rho": 0.0})
    with pytest.raises(AssertionError):
        assert_close(ranks[0], plain)


def test_sharded_training_resumes_exactly(tmp_path):
    options = FOCAL | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole_run = run_processes(train, tmp_path / "out", options, True, folder=tmp_path)
    checkpoint = str(tmp_path / "out" / "checkpoint-2")
    resumed = run_processes(train, tmp_path / "out", options, True, None, checkpoint, folder=tmp_path)
    for rank in range(2):
        assert len(resumed[rank]["gradients"]) == 2
        assert_same_bits(resumed[rank]["weights"], whole_run[rank]["weights"])


def overflow_in_shards():
    """An overflow in the shards of one process must leave the mean of both unchanged."""
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    momentum = ClassMomentum(beta=0.5)
    found = []
    for value in (1.0, float("inf"), 3.0):
        whole = torch.full((4,), 1.0)
        whole[3] = value  # on the second process
        shard = torch.distributed.tensor.distribute_tensor(whole, mesh, [torch.distributed.tensor.Shard(0)])
        momentum.add([torch.zeros_like(shard)], [shard])
        momentum.update()
        found.append(momentum.mean[0].full_tensor().clone())
    return found


def test_an_overflow_in_the_shards_of_one_process_is_seen_by_both(tmp_path):
    for found in run_processes(in_gloo, overflow_in_shards, folder=tmp_path):
        assert [mean.tolist() for mean in found] == [[0.5] * 4, [0.5] * 4, [0.75, 0.75, 0.75, 1.75]]


def in_gloo(function):
    torch.distributed.init_process_group("gloo")
    return function()
