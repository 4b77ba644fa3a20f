"""Training of backbones: the images, the checkpoint that validation episodes choose, and adapters."""

import copy

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, TrainerControl, TrainerState, ViTImageProcessor

from hf_sharp import SharpTrainingArguments
from hf_sharp.few_shot import evaluate, load_backbone, make_domain
from hf_sharp.few_shot import training as module
from hf_sharp.few_shot.adapters import add_lora
from hf_sharp.few_shot.training import DomainImages, EpisodeValidation, train_backbone
from tests.conftest import assert_same_bits, make_vit, weights_of
from tests.trainer.test_checkpoint import FAMILIES

PROCESSOR = ViTImageProcessor(size={"height": 8, "width": 8}, do_convert_rgb=True)


def pictures(name, classes=6, per_class=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    images = [
        Image.fromarray(np.clip(rng.normal(30 * label + 20, 25, (8, 8, 3)), 0, 255).astype(np.uint8))
        for label in labels
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    return make_domain(datasets.Dataset.from_dict({"image": images, "label": labels}, features=features), name)


def arguments(folder, steps=6):
    return SharpTrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
    )


def test_the_classes_of_several_domains_are_numbered_one_after_the_other():
    one, two = pictures("one", 3, 2), pictures("two", 4, 2)
    images = DomainImages([one.select(one.labels != 1), two], PROCESSOR)
    assert images.class_names == ["one/0", "one/2", "two/0", "two/1", "two/2", "two/3"]
    assert [images[row]["label"] for row in range(len(images))] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    pixels = PROCESSOR(images=[two.dataset[0]["image"]], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(images[4]["pixel_values"], pixels)


@pytest.mark.parametrize("accuracies", [[0.3, 0.9, 0.9], [0.5, 0.2, 0.6], [0.4, 0.1, 0.2]])
def test_the_saved_weights_are_those_of_the_best_validation(accuracies, tmp_path, monkeypatch):
    """Every validation records the weights it saw; the saved ones must be those of the best."""
    domain, seen, values = pictures("x"), [], iter(accuracies)

    def fake(backbone, domain, **options):
        seen.append(copy.deepcopy(backbone.model.state_dict()))
        return values_result(next(values))

    def values_result(accuracy):
        return type("Result", (), {"accuracy": accuracy, "interval": 0.0})()

    monkeypatch.setattr(module, "evaluate", fake)
    validation = EpisodeValidation([domain], PROCESSOR, every=2)
    model = make_vit(num_labels=6, num_channels=3)
    results = train_backbone(model, DomainImages([domain], PROCESSOR), PROCESSOR, arguments(tmp_path), validation)
    assert results["validation_accuracies"] == dict(zip((2, 4, 6), accuracies, strict=True))
    best = int(np.argmax(accuracies))
    assert results["saved_step"] == 2 * (best + 1)
    saved = load_backbone(tmp_path).model.state_dict()
    for name, expected in seen[best].items():
        assert torch.equal(saved[name], expected)
    assert not torch.equal(seen[0]["embeddings.cls_token"], seen[2]["embeddings.cls_token"])


def test_validation_does_not_change_the_training(tmp_path):
    domain = pictures("x")
    images = DomainImages([domain], PROCESSOR)
    models = [make_vit(num_labels=6, num_channels=3, dropout=0.1) for _ in range(2)]
    last = type("Last", (EpisodeValidation,), {"on_train_end": lambda *args, **kwargs: None})
    for model, validation in zip(models, (None, last([domain], PROCESSOR, 2, 5)), strict=True):
        train_backbone(model, images, PROCESSOR, arguments(tmp_path), validation)
    assert_same_bits(weights_of(models[1]), weights_of(models[0]))
    assert not models[1].training or all(m.training for m in models[1].modules())


def test_validation_is_the_average_of_prototype_over_the_domains():
    domains = [pictures("one"), pictures("two", 5, seed=1)]
    model = make_vit(num_labels=6, num_channels=3)
    validation = EpisodeValidation(domains, PROCESSOR, 10, episodes=4, seed=3, ways=5, shots=2)
    state = TrainerState(global_step=7, max_steps=23)
    validation.on_step_end(None, state, TrainerControl(), model=model)
    assert validation.accuracies == {}, "not a step to validate at"
    state.global_step = 23  # the last step, though not a multiple of 10
    validation.on_step_end(None, state, TrainerControl(), model=model)
    backbone = load_backbone(model, PROCESSOR)
    expected = [evaluate(backbone, d, episodes=4, seed=3, ways=5, shots=2).accuracy for d in domains]
    assert validation.accuracies == {23: pytest.approx(np.mean(expected))}


def test_adapters_are_validated_and_merged(tmp_path):
    pytest.importorskip("peft")
    domain = pictures("x")
    validation = EpisodeValidation([domain], PROCESSOR, 3, 5)
    model = make_vit(num_labels=6, num_channels=3)
    before = weights_of(model)
    images = DomainImages([domain], PROCESSOR)
    results = train_backbone(model, images, PROCESSOR, arguments(tmp_path), validation, lora_rank=2)
    assert list(results["validation_accuracies"]) == [3, 6]
    merged = AutoModelForImageClassification.from_pretrained(tmp_path)
    backbone = load_backbone(merged, PROCESSOR)
    accuracy = evaluate(backbone, domain, episodes=5, seed=0).accuracy
    assert accuracy == results["validation_accuracies"][results["saved_step"]], "the merged weights are the chosen ones"
    moved = {name for name, value in weights_of(merged).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("classifier") or before[name].ndim == 2 for name in moved)


@pytest.mark.parametrize("family", ["vit", "swin", "clip", "dinov2"])
def test_heads_of_every_family_stay_trainable_and_have_no_adapters(family):
    pytest.importorskip("peft")
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    adapted = add_lora(model, rank=2, alpha=4)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    heads = [name for name in trainable if "lora_" not in name]
    assert heads
    assert all("classifier" in name for name in heads)
    assert not [name for name in trainable if "lora_" in name and "classifier" in name]
    assert len([name for name in trainable if "lora_" in name]) >= 4
