"""float16 with loss scaling, bfloat16 autocast, and weights of few bits. The CPU here does what a GPU does."""

import copy
import itertools

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from hf_sharp.sharpness import Examples, MicroBatch, sharpness_aware_backward
from hf_sharp.sharpness.ascent import vanishing_share
from tests.conftest import assert_same_bits, make_images, make_vit, method_id, weights_of

METHODS = [
    {"sharpness": "sam", "rho": 0.05},
    {"sharpness": "sam", "rho": 0.5, "adaptive": True},
    {"sharpness": "imbsam", "rho": 0.05, "rare_threshold": 50},
    {"sharpness": "imbsam", "rho": 0.05},
    {"sharpness": "focal_sam", "rho": 0.05},
]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def in_float16(trainer, init_scale=2.0**10):
    """Do on the CPU what accelerate does with fp16=True on a GPU, which refuses the CPU by name."""
    accelerator = trainer.accelerator
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler(trainer.args.device.type, init_scale=init_scale)
    return trainer


class OverflowIn(nn.Module):
    """A head whose logits overflow in the backward pass of chosen forward passes."""

    def __init__(self, head, passes):
        super().__init__()
        self.head, self.passes, self.count = head, set(passes), 0

    def forward(self, features):
        logits = self.head(features)
        if self.training:
            self.count += 1
            if self.count in self.passes:
                logits.register_hook(lambda gradient: gradient * float("inf"))
        return logits


class Watch(TrainerCallback):
    def __init__(self, trainer):
        self.trainer, self.scales, self.weights, self.moments = trainer, [], [], []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.scales.append(self.trainer.accelerator.scaler.get_scale())
        self.weights.append(weights_of(model))
        self.moments.append(copy.deepcopy(optimizer.state_dict()["state"]))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("passes", "name"), [([3], "first"), ([4], "second"), ([3, 4], "both")])
@pytest.mark.parametrize("options", METHODS[:3] + METHODS[4:], ids=method_id)
def test_an_overflow_in_any_pass_skips_one_step_and_halves_the_scale_once(
    make_trainer, options, passes, name, accumulation
):
    trainer = in_float16(
        make_trainer(max_steps=4, gradient_accumulation_steps=accumulation, logging_steps=1, **options)
    )
    # Two passes per micro-batch: the third and fourth are those of the second one.
    trainer.model.classifier = OverflowIn(trainer.model.classifier, passes)
    watch = Watch(trainer)
    trainer.add_callback(watch)
    before = weights_of(trainer.model)
    trainer.train()
    skipped = 1 if accumulation == 1 else 0
    assert watch.scales == [512.0 if step >= skipped else 1024.0 for step in range(4)]
    states = [before, *watch.weights]
    head = "classifier.head.weight"
    changed = [not torch.equal(one[head], other[head]) for one, other in itertools.pairwise(states)]
    assert changed == [step != skipped for step in range(4)]
    assert_same_bits(states[skipped], states[skipped + 1])
    moments = watch.moments[skipped]
    if skipped:
        assert str(moments) == str(watch.moments[0])
    else:
        assert all(not value.any() for state in moments.values() for value in state.values())
    assert all(torch.isfinite(value).all() for value in watch.weights[-1].values())
    logs = [log for log in trainer.state.log_history if "rho" in log]
    assert all(torch.isfinite(torch.tensor(log.get("ascent_grad_norm", 0.0))) for log in logs)


@pytest.mark.parametrize("options", METHODS, ids=method_id)
def test_loss_scaling_changes_nothing_but_rounding(make_trainer, options, tmp_path):
    """With powers of two, scaling is exact where nothing underflows: only the float16 forward pass is left."""

    def trained(scale):
        trainer = in_float16(make_trainer(max_steps=4, learning_rate=1e-3, logging_steps=1, **options), scale)
        trainer.train()
        return weights_of(trainer.model), [log["ascent_grad_norm"] for log in trainer.state.log_history if "rho" in log]

    weights, norms = trained(2.0**6)
    other_weights, other_norms = trained(2.0**9)
    assert norms == pytest.approx(other_norms, rel=1e-2)
    for name, value in weights.items():
        torch.testing.assert_close(value, other_weights[name], rtol=0, atol=2e-3, msg=name)


@pytest.mark.parametrize("options", METHODS, ids=method_id)
def test_float16_and_bfloat16_go_where_float32_goes(make_trainer, options):
    def trained(kind):
        trainer = make_trainer(max_steps=8, learning_rate=1e-3, logging_steps=1, bf16=kind == "bfloat16", **options)
        if kind == "float16":
            in_float16(trainer)
        trainer.train()
        return [
            (log["loss"], log["ascent_grad_norm"]) for log in trainer.state.log_history if "ascent_grad_norm" in log
        ]

    for kind, tolerance in (("float16", 0.02), ("bfloat16", 0.1)):
        for one, other in zip(trained(kind), trained("float32"), strict=True):
            assert one == pytest.approx(other, rel=tolerance), kind


@pytest.mark.parametrize("device", DEVICES)
def test_an_overflow_that_the_second_pass_does_not_see_is_in_the_gradient_too(device):
    """A mask hides the part of the model that overflowed: without care the step would be taken, from no ascent."""
    w = nn.Linear(2, 1, bias=False, device=device)
    passes = []

    def losses():
        passes.append(1)
        if len(passes) == 1:
            return (w.weight * 1.0).mul(float("inf")).clamp(max=3.0).sum(1) + w.weight.sum(1) * float("inf")
        return w(torch.ones(3, 2, device=device))[:, 0]

    batch = MicroBatch(lambda rows: losses(), Examples(None, torch.ones(1, device=device)))
    sharpness_aware_backward(w, [batch], 0.1, reduce=torch.mean)
    assert not torch.isfinite(w.weight.grad).all()


@pytest.mark.parametrize("options", METHODS, ids=method_id)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_few_bits_come_back_bit_for_bit(make_trainer, options, dtype):
    trainer = make_trainer(make_vit(dtype=dtype), make_images(), max_steps=3, **options)
    step = trainer.training_step
    compared = []

    def training_step(model, inputs, num_items_in_batch=None):
        before = weights_of(model)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        loss = step(model, inputs, num_items_in_batch)
        assert_same_bits(weights_of(model), before)
        compared.append(loss)
        return loss

    trainer.training_step = training_step
    trainer.train()
    assert len(compared) == 3


@pytest.mark.parametrize(
    ("rho", "dtype", "told"),
    [
        (1e-4, torch.bfloat16, True),
        (30.0, torch.bfloat16, False),
        (1e-4, torch.float32, False),
    ],
)
def test_a_perturbation_lost_to_rounding_is_told_once(make_trainer, caplog, rho, dtype, told):
    trainer = make_trainer(make_vit(dtype=dtype), rho=rho, max_steps=4, logging_steps=1, learning_rate=0.0)
    step = trainer.training_step
    trainer.training_step = lambda model, inputs, n=None: step(
        model, inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}, n
    )
    trainer.train()
    lost = [record for record in caplog.records if "lost to rounding in bfloat16" in record.getMessage()]
    assert len(lost) == told


def test_the_share_that_vanishes():
    weights = [torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.bfloat16), torch.ones(2)]
    epsilon = [torch.tensor([1e-3, 1e-2, 0.0, 1e-9], dtype=torch.bfloat16), torch.tensor([1e-9, 1e-3])]
    assert vanishing_share(weights, epsilon).item() == pytest.approx(2 / 5)  # 1e-3 and 1e-9; a 0 is no entry of ε
