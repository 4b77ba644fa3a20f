"""Every mode that the Trainer has, with every method.

The check of most modes: with a radius that goes to 0, the sharpness-aware gradient goes to the plain one, if and only
if both passes run the same network, with the same dropout masks and the same noise.
"""

import inspect
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainingArguments

from hf_sharp import ClassFrequencies, SharpTrainer, SharpTrainingArguments
from tests.conftest import (
    CLASS_COUNTS,
    NUM_CLASSES,
    assert_same_bits,
    make_bert,
    make_images,
    make_vit,
    method_id,
    weights_of,
)
from tests.naive import naive_gradient
from tests.trainer.test_sharp_trainer import METHODS, Watch

SHARP = [
    {"sharpness": "sam", "rho": 0.3},
    {"sharpness": "sam", "rho": 1.0, "adaptive": True},
    {"sharpness": "imbsam", "rho": 0.3, "rare_threshold": 25},
    {"sharpness": "focal_sam", "rho": 0.3, "focal_gamma": 1.5, "focal_lambda": 0.7},
]
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in inspect.signature(TrainingArguments).parameters
)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


def trained_gradients(make_trainer, options, model, data=None, **more):
    trainer = make_trainer(model, data, max_steps=2, learning_rate=1e-3, max_grad_norm=0.0, **more, **options)
    watch = Watch().attach(trainer)
    trainer.train()
    return watch.gradients


def assert_plain_without_a_radius(make_trainer, options, make_model, data=None, **more):
    tiny = options | {"rho": 1e-10}
    if options["sharpness"] == "imbsam":  # whose passes are of fewer examples, and draw other noise than a plain one
        assert_the_rare_examples_see_the_same_noise_twice(make_trainer, tiny, make_model(), data, **more)
        return
    plain = trained_gradients(make_trainer, {"sharpness": "none"}, make_model(), data, **more)
    sharp = trained_gradients(make_trainer, tiny, make_model(), data, **more)
    wide = trained_gradients(make_trainer, options, make_model(), data, **more)
    for one, other, far in zip(plain, sharp, wide, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7 * float(one.abs().max()))
        assert (far - one).norm() > 1e-3 * one.norm(), "with its radius, the method is not plain training"


def assert_the_rare_examples_see_the_same_noise_twice(make_trainer, options, model, data, **more):
    passes = []
    model.classifier.register_forward_hook(lambda module, args, output: passes.append(output.detach()))
    trainer = make_trainer(model, data, max_steps=2, learning_rate=0.0, **more, **options)
    divided, divide = [], trainer.engine.divide
    trainer.engine.divide = lambda *args: divided.append(divide(*args)) or divided[-1]
    trainer.train()
    sizes = [(len(part.division.perturbed), len(part.division.clean)) for part in divided]
    assert any(rare and common for rare, common in sizes)
    by_size = {}
    for logits in passes:
        by_size.setdefault(len(logits), []).append(logits)
    for rare, common in sizes:
        if rare not in (0, common):
            assert any(
                torch.allclose(one, other, rtol=1e-6, atol=1e-7)
                for i, one in enumerate(by_size[rare])
                for other in by_size[rare][i + 1 :]
            )


def double(**options):
    return lambda: make_vit(dtype=torch.float64, **options)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scope", ["micro_batch", "window"])
def test_dropout(make_trainer, options, device, scope):
    more = {"use_cpu": device == "cpu", "gradient_accumulation_steps": 2}
    options = options | {"ascent_scope": scope}
    assert_plain_without_a_radius(make_trainer, options, double(dropout=0.3), make_images(dtype=np.float64), **more)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_with_dropout(make_trainer, options, device, reentrant):
    images = make_images(dtype=np.float64)
    more = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}, "use_cpu": device == "cpu"}
    assert_plain_without_a_radius(make_trainer, options, double(dropout=0.3), images, **more)
    with_it = trained_gradients(make_trainer, options, double(dropout=0.3)(), images, **more)
    without = trained_gradients(make_trainer, options, double(dropout=0.3)(), images, use_cpu=device == "cpu")
    for one, other in zip(with_it, without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


TOKENS = [
    {"input_ids": [2 + label, 7, 11 + i % 5, 3], "attention_mask": [1, 1, 1, 1], "label": label}
    for label, count in enumerate(CLASS_COUNTS)
    for i in range(count)
]


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_neftune_noise_is_the_same_in_both_passes(make_trainer, options):
    make_model = lambda: make_bert().double()  # noqa: E731
    assert_plain_without_a_radius(make_trainer, options, make_model, TOKENS, neftune_noise_alpha=5.0)
    without = trained_gradients(make_trainer, options, make_model(), TOKENS)
    noisy = trained_gradients(make_trainer, options, make_model(), TOKENS, neftune_noise_alpha=5.0)
    assert not torch.equal(without[0], noisy[0])


@pytest.mark.parametrize("options", SHARP, ids=method_id)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_gives_the_gradient_of_eager(make_trainer, options, backend):
    images = make_images(dtype=np.float64)

    def make():
        model = double()()
        model.set_attn_implementation("eager")  # torch 2.11 cannot compile the other one in float64 on a CPU
        return model

    def both(method):
        eager = trained_gradients(make_trainer, method, make(), images)
        torch.compiler.reset()
        return zip(
            eager, trained_gradients(make_trainer, method, make(), images, torch_compile_backend=backend), strict=True
        )

    # Inductor's float64 has the accuracy of float32 on some CPUs.
    error = max((one - other).abs().max().item() for one, other in both({"sharpness": "none"}))
    assert error < 1e-6
    for one, other in both(options):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10 + 20 * error)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_a_model_that_comes_compiled_gives_the_gradient_of_eager(make_trainer, options):
    images = make_images(dtype=np.float64)
    eager = trained_gradients(make_trainer, options, double()(), images)
    torch.compiler.reset()
    torch._functorch.config.donated_buffer = True  # torch's default, whatever other tests set
    model = double()()
    model.compile(backend="aot_eager")
    for one, other in zip(eager, trained_gradients(make_trainer, options, model, images), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


class Waves(nn.Module):
    """A model of whose activations inductor reuses the memory in the backward pass, on a CPU too."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(64, 64), nn.Linear(64, NUM_CLASSES)

    def forward(self, inputs):
        waves = torch.cos(torch.exp(self.inner(inputs))) @ self.inner.weight
        return self.outer(torch.sin(waves))


def test_a_graph_compiled_for_one_backward_pass_does_not_serve_two(tmp_path, monkeypatch):
    """Its first pass overwrites what a second one needs, and inductor's cache on the disk outlives the process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    torch._functorch.config.donated_buffer = True
    torch.manual_seed(0)
    model = Waves()
    inputs = torch.randn(64, 64)
    expected = torch.autograd.grad(model(inputs).mean(), model.inner.weight)[0]
    model.compile()
    with torch.compiler.config.patch(cache_key_tag=""):
        model(inputs).mean().backward()  # as in a plain training before
        counts = ClassFrequencies.from_counts(CLASS_COUNTS)
        args = SharpTrainingArguments(str(tmp_path), sharpness="focal_sam", report_to="none", use_cpu=True)
        SharpTrainer(model=model, args=args, class_frequencies=counts)
        output = model(inputs).mean()
        for keep in (True, False):
            model.zero_grad()
            output.backward(retain_graph=keep)
            torch.testing.assert_close(model.inner.weight.grad, expected)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
@pytest.mark.parametrize(
    "optim", ["sgd", "adafactor", "adamw_torch_fused", "rmsprop", "adagrad", "schedule_free_adamw", "schedule_free_sgd"]
)
def test_optimizers(make_trainer, options, optim):
    more = {"optim": optim, "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    images = make_images(dtype=np.float64)

    def trained(changes):
        trainer = make_trainer(double()(), images, images, **(more | changes))
        trainer.train()
        return [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]

    plain = trained({"sharpness": "none"})
    assert trained(options | {"rho": 1e-10}) == pytest.approx(plain, rel=1e-6)
    assert trained(options) != pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_parameter_groups_with_rates_of_their_own(make_trainer, options):
    """One ε for all of them; a group with rate 0 stays where it is, and still counts in the norm."""
    model = make_vit(dtype=torch.float64)
    parts = [
        list(model.vit.embeddings.parameters()),
        list(model.vit.layers.parameters() if hasattr(model.vit, "layers") else model.vit.encoder.parameters()),
    ]
    taken = {id(parameter) for part in parts for parameter in part}
    parts.append([parameter for parameter in model.parameters() if id(parameter) not in taken])
    rates = [0.0, 1e-2, 1e-1]
    optimizer = torch.optim.SGD([{"params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True)])
    before = weights_of(model)
    copy = make_vit(dtype=torch.float64)
    trainer = make_trainer(
        model,
        make_images(dtype=np.float64),
        max_steps=1,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        trainer={"optimizers": (optimizer, None)},
        **options,
    )
    watch = Watch().attach(trainer)
    trainer.train()
    adaptive = {"eta": 0.01} if options.get("adaptive") else {}
    coefficients = {name: value for name, value in options.items() if name.startswith(("focal_", "rare_"))}
    expected = naive_gradient(
        copy, watch.windows[0], CLASS_COUNTS, options["sharpness"], options["rho"], **adaptive, **coefficients
    )
    torch.testing.assert_close(watch.gradients[0], expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    after = weights_of(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any("embeddings" in name for name in moved)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_the_gradient_is_clipped_once_and_as_a_whole(make_trainer, options):
    images = make_images(dtype=np.float64)
    free = trained_gradients(make_trainer, options, double()(), images)[0]
    trainer = make_trainer(double()(), images, max_steps=1, max_grad_norm=0.1, logging_steps=1, **options)
    watch = Watch().attach(trainer)
    trainer.train()
    assert watch.gradients[0].norm().item() == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(watch.gradients[0], free * (0.1 / free.norm()), rtol=1e-4, atol=1e-8)
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(free.norm().item(), rel=1e-6)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
@pytest.mark.parametrize("scope", ["micro_batch", "window"])
def test_auto_find_batch_size_starts_again_with_less(make_trainer, options, scope):
    data = make_images([8, 4, 2, 2], dtype=np.float64)  # in one batch of 16, as later in two of 8
    common = {"max_steps": 3, "ascent_scope": scope, "lr_scheduler_type": "constant", "logging_steps": 1, **options}
    trainer = make_trainer(double()(), data, auto_find_batch_size=True, per_device_train_batch_size=12, **common)
    step, seen = trainer.training_step, []

    def too_large(model, inputs, num_items_in_batch=None):
        seen.append(len(inputs["labels"]))
        if seen[-1] > 10:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. planted")
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = too_large
    trainer.train()
    assert seen[0] == 12
    assert 1 < max(seen[1:]) <= 10
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert len(losses) == 3
    found = make_trainer(double()(), data, per_device_train_batch_size=seen[1], **common)
    found.train()
    assert losses[0] == pytest.approx(found.state.log_history[0]["loss"], rel=1e-9)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_the_cache_is_emptied_as_often_as_asked(make_trainer, options, monkeypatch):
    emptied = []
    monkeypatch.setattr("hf_sharp.trainer.training_loop.clear_device_cache", lambda *_: emptied.append(1))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(1))
    if options["sharpness"] == "imbsam":
        options = options | {"rare_threshold": 50}
    make_trainer(max_steps=4, torch_empty_cache_steps=2, **options).train()
    assert len(emptied) == 2


def test_label_smoothing_is_refused(make_trainer):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1 is not supported"):
        make_trainer(label_smoothing_factor=0.1)


class NormsInIt(nn.Module):
    """Batch statistics, which one pass updates."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, pixel_values, labels=None):
        return {"logits": self.head(self.body(pixel_values))}


@pytest.mark.parametrize("options", [METHODS[0], *SHARP], ids=method_id)
def test_running_statistics_are_updated_once_per_micro_batch(make_trainer, options):
    trainer = make_trainer(NormsInIt(), max_steps=3, gradient_accumulation_steps=2, learning_rate=0.0, **options)
    seen = []
    step = trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        seen.append(inputs["pixel_values"])
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = training_step
    trainer.train()
    assert trainer.model.body[2].num_batches_tracked == 6
    expected = NormsInIt()
    with torch.no_grad():
        for pixels in seen:
            expected(pixels)
    torch.testing.assert_close(trainer.model.body[2].running_mean, expected.body[2].running_mean)
    torch.testing.assert_close(trainer.model.body[2].running_var, expected.body[2].running_var)


# ---- PEFT --------------------------------------------------------------------------------------------------------


def lora(model=None, **options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj", "query", "value"], modules_to_save=["classifier"], **options
    )
    return get_peft_model(make_vit() if model is None else model, config)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_lora_perturbs_and_copies_adapters_and_head_alone(make_trainer, options, monkeypatch):
    from hf_sharp.sharpness import ascent, step

    touched = []

    def perturbed(parameters, epsilon):
        touched.append({id(parameter) for parameter in parameters})
        return ascent.perturbed(parameters, epsilon)

    monkeypatch.setattr(step, "perturbed", perturbed)
    model = lora()
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert 0 < len(trainable) < len(list(model.parameters()))
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    trainer = make_trainer(model, max_steps=3, **options)
    trainer.train()
    assert touched
    assert all(ids == trainable for ids in touched)
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_parameters() if name in frozen)


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_lora_merges_and_its_checkpoint_opens(make_trainer, options, tmp_path):
    from peft import PeftModel

    model = lora()
    trainer = make_trainer(model, max_steps=3, **options)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    pixels = make_images()[:8]["pixel_values"]
    expected = model.eval()(pixel_values=pixels).logits
    opened = PeftModel.from_pretrained(make_vit(), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(opened(pixel_values=pixels).logits, expected, rtol=0, atol=0)
    merged = opened.merge_and_unload()
    torch.testing.assert_close(merged(pixel_values=pixels).logits, expected, rtol=1e-4, atol=1e-4)
    assert trainer.evaluate(make_images())["eval_balanced_accuracy"] >= 0.25


@pytest.mark.parametrize("options", [METHODS[0], *SHARP], ids=method_id)
def test_lora_goes_on_from_a_checkpoint_exactly(make_trainer, options, tmp_path):
    more = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **options}
    whole = make_trainer(lora(lora_dropout=0.1), **more)
    whole.train()
    resumed = make_trainer(lora(lora_dropout=0.1), **more)
    resumed.train(resume_from_checkpoint=os.path.join(whole.args.output_dir, "checkpoint-2"))
    assert_same_bits(weights_of(resumed.model), weights_of(whole.model))


@pytest.mark.parametrize("lost", ["lora_B", "classifier"])
def test_an_adapter_that_lacks_tensors_is_refused(make_trainer, lost):
    more = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "sharpness": "sam"}
    trainer = make_trainer(lora(), **more)
    trainer.train()
    checkpoint = os.path.join(trainer.args.output_dir, "checkpoint-2")
    file = os.path.join(checkpoint, "adapter_model.safetensors")
    save_file({name: value for name, value in load_file(file).items() if lost not in name}, file)
    with pytest.raises(ValueError, match=rf"does not fit the model: missing \['.*{lost}.*unexpected nothing"):
        make_trainer(lora(), **more).train(resume_from_checkpoint=checkpoint)
