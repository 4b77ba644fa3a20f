"""What only a GPU can show: no waiting for the device, peak memory, float16 through accelerate's own scaler."""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from tests.conftest import assert_same_bits, make_images, make_vit, method_id, weights_of
from tests.trainer.test_mixed_precision import METHODS, OverflowIn, Watch
from tests.trainer.test_modes import SHARP

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(make_trainer, model=None, **options):
    trainer = make_trainer(model, use_cpu=False, **options)
    trainer.train()  # makes the optimizer, and warms up
    batch = trainer.data_collator([make_images()[i] for i in range(16)])
    return trainer, {name: value.cuda() for name, value in batch.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("options", SHARP, ids=method_id)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_does_not_wait_for_the_device(make_trainer, options, bf16):
    trainer, batch = on_gpu(make_trainer, max_steps=2, bf16=bf16, **options)
    count = torch.tensor(16, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.training_step(trainer.model, batch, count)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_peak_memory_over_plain_training(make_trainer, options):
    """One copy of the trainable parameters, and for Focal-SAM and ImbSAM at most two."""

    def peak(changes):
        torch.manual_seed(0)
        config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=4, hidden_size=768)
        model = ViTForImageClassification(config)
        trainer, batch = on_gpu(make_trainer, model, max_steps=2, **changes)
        trainer.optimizer.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainer.training_step(trainer.model, batch, torch.tensor(16, device="cuda"))
        torch.cuda.synchronize()
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return (torch.cuda.max_memory_allocated() - before) / size

    copies = 2.05 if options["sharpness"] in ("focal_sam", "imbsam") else 1.05
    assert peak(options) - peak({"sharpness": "none"}) <= copies


@pytest.mark.parametrize("options", METHODS[:3] + METHODS[4:], ids=method_id)  # of two forward passes a step
@pytest.mark.parametrize("passes", [[3], [4], [3, 4]], ids=str)
def test_an_overflow_skips_one_step(make_trainer, options, passes):
    trainer = make_trainer(max_steps=4, fp16=True, use_cpu=False, **options)
    trainer.model.classifier = OverflowIn(trainer.model.classifier, passes)
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    before, *after = watch.scales
    assert after[0] == before / 2
    assert set(after) == {after[0]}
    assert_same_bits(watch.weights[0], watch.weights[1])


@pytest.mark.parametrize("options", SHARP, ids=method_id)
@pytest.mark.parametrize("bf16", [False, True])
def test_compiled(make_trainer, options, bf16):
    def trained(**more):
        torch.compiler.reset()
        # SGD: Adam makes a full step of the rounding noise in gradients that are 0, as those of key biases are.
        optimizer = {"optim": "sgd", "learning_rate": 0.1}
        trainer = make_trainer(make_vit(), max_steps=3, use_cpu=False, bf16=bf16, **optimizer, **options, **more)
        trainer.train()
        return weights_of(trainer.model)

    start, eager, compiled = weights_of(make_vit()), trained(), trained(torch_compile=True)
    moved = torch.cat([(eager[name].cpu() - start[name]).flatten() for name in start])
    apart = torch.cat([(eager[name] - compiled[name]).cpu().flatten() for name in start])
    assert apart.norm() < (0.05 if bf16 else 1e-3) * moved.norm()
