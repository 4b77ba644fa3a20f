"""The cosine head: its logits, its training, and models that open with the same logits without hf_sharp."""

import copy
import json
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_sharp.losses import build_loss
from hf_sharp.model import modeling_cosine_head
from hf_sharp.model.confidence import fold_temperature
from hf_sharp.model.cosine_head import CosineHead, CosineHeadCallback, use_cosine_head
from hf_sharp.model.costs import fold_costs
from hf_sharp.model.head import ClassifierHead
from hf_sharp.model.posthoc import adjust_head, choose_strength, collect_features
from tests.conftest import assert_same_bits, make_bert, make_images, make_vit, weights_of
from tests.recipes.conftest import bert_folder, vit_folder  # noqa: F401
from tests.trainer.test_checkpoint import FAMILIES

IMAGES = ("vit", "deit", "beit", "dinov2", "swin", "convnext", "clip")
WITH_LAYER_NORM = ("vit", "deit", "beit", "convnext")


@pytest.fixture(autouse=True)
def modules_cache(tmp_path, monkeypatch):
    """transformers copies the code of a model to this cache before importing it."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))


def make(family):
    set_seed(0)
    auto = AutoModelForImageClassification if family in IMAGES else AutoModelForSequenceClassification
    model = auto.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    size = 32 if family == "convnext" else 8
    if family in IMAGES:
        return model, auto, {"pixel_values": torch.randn(4, 3, size, size)}
    return model, auto, {"input_ids": torch.randint(4, 30, (4, 6))}


def features_and_logits(model, inputs, num_classes=3):
    with torch.no_grad(), ClassifierHead(model, num_classes) as head:
        logits = model(**inputs).logits
        return head.features_of(logits), logits


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_cosines_and_the_saved_model_gives_the_same(family, tmp_path):
    model, auto, inputs = make(family)
    kind, custom = type(model), family not in WITH_LAYER_NORM
    head = use_cosine_head(model, 3, scale=7.0, allow_custom_code=custom)
    features, logits = features_and_logits(model, inputs)
    expected = 7 * cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert logits.std() > 0.1, "otherwise this test proves little"
    model.save_pretrained(tmp_path / "model")
    opened = auto.from_pretrained(tmp_path / "model", trust_remote_code=custom).eval()
    assert type(opened).__name__ == ("Cosine" if custom else "") + kind.__name__
    with torch.no_grad():
        torch.testing.assert_close(opened(**inputs).logits, logits, rtol=1e-5, atol=1e-5)
    if custom:
        with pytest.raises(ValueError, match="contains custom code which must be executed"):
            auto.from_pretrained(tmp_path / "model", trust_remote_code=False)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITH_LAYER_NORM])
def test_a_head_without_a_layer_norm_is_refused_unless_code_may_be_saved(family):
    model, _, _ = make(family)
    with pytest.raises(ValueError, match=rf"{type(model).__name__} has no other layer that divides"):
        use_cosine_head(model, 3)
    assert not any(isinstance(module, CosineHead) for module in model.modules())


# ---- pipelines -------------------------------------------------------------------------------------------------------


def test_pipelines_without_hf_sharp_give_the_probabilities_of_the_cosines(
    vit_folder,  # noqa: F811
    bert_folder,  # noqa: F811
    tmp_path,
):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    processor, tokenizer = AutoImageProcessor.from_pretrained(vit_folder), AutoTokenizer.from_pretrained(bert_folder)
    models = {"images": make_vit(num_channels=3).eval(), "texts": make_bert().eval()}
    for name, part in (("images", processor), ("texts", tokenizer)):
        use_cosine_head(models[name], 4, scale=5.0, allow_custom_code=name == "texts")
        models[name].save_pretrained(tmp_path / name)
        part.save_pretrained(tmp_path / name)
    code = (
        "import sys, json; sys.modules['hf_sharp'] = None\n"
        "from transformers import pipeline\n"
        "images = pipeline('image-classification', 'images')('image.png', top_k=4)\n"
        "texts = pipeline('text-classification', 'texts', trust_remote_code=True)('w1 w5', top_k=4)\n"
        "print(json.dumps([images, texts]))"
    )
    env = {"HF_MODULES_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    inputs = processor(image, return_tensors="pt"), tokenizer("w1 w5", return_tensors="pt")
    for answers, model, batch in zip(json.loads(done.stdout.splitlines()[-1]), models.values(), inputs, strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        with torch.no_grad():
            expected = model(**batch).logits.softmax(1)[0]
        assert [scores[f"LABEL_{c}"] for c in range(4)] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_cosine_model_with_its_own_code_is_corrected_like_the_one_that_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = make_bert().eval()
    use_cosine_head(model, 4, scale=5.0, allow_custom_code=True)
    model.save_pretrained(tmp_path / "saved")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert type(opened.classifier).__module__.startswith("transformers_modules.")
    batches = [{"input_ids": torch.arange(12).reshape(4, 3) % 9, "labels": torch.arange(4)}]
    features, _, _ = collect_features(opened, batches, 4)
    assert torch.allclose(features.norm(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-6)
    adjusted = adjust_head(opened, [50, 9, 3, 1], "logit_adjustment")
    with torch.no_grad():
        gained = (adjusted(**batches[0]).logits - opened(**batches[0]).logits)[0]
    assert torch.allclose(gained, -torch.tensor([50, 9, 3, 1]).div(63).log(), atol=1e-5)


# ---- training --------------------------------------------------------------------------------------------------------


def train(model, tmp_path, **options):
    defaults = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "weight_decay": 0.1}
    defaults |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    args = TrainingArguments(str(tmp_path / "out"), **(defaults | {"dataloader_pin_memory": False} | options))
    data = make_images().rename_column("label", "labels")
    trainer = Trainer(model, args, train_dataset=data, callbacks=[CosineHeadCallback()])
    return trainer, data


@pytest.mark.parametrize("learn_scale", [False, True])
def test_rows_have_one_length_after_every_step(learn_scale, tmp_path):
    model = make_vit()
    head = use_cosine_head(model, 4, scale=8.0, learn_scale=learn_scale)
    before, norm = head.weight.detach().clone(), model.vit.layernorm
    trainer, data = train(model, tmp_path)
    trainer.train()
    lengths = 4 * head.weight.detach().norm(dim=1)  # times √d
    torch.testing.assert_close(lengths, lengths.mean().expand(4))
    assert lengths[0].item() == pytest.approx(head.scale)
    assert (abs(head.scale - 8.0) > 1e-3) == learn_scale
    assert cosine_similarity(head.weight, before).min() < 0.9999, "the directions are trained"
    assert torch.equal(norm.weight, torch.ones(16))
    assert torch.equal(norm.bias, torch.zeros(16))
    model.save_pretrained(tmp_path / "model")
    opened = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    pixels = data["pixel_values"][:]
    with torch.no_grad():
        torch.testing.assert_close(opened(pixels).logits, model.eval()(pixels).logits, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_cosine():
    model = make_vit(dtype=torch.float64)
    head = use_cosine_head(model, 4, scale=3.0, learn_scale=True)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[1.0], [2.0], [0.5], [1.5]]))  # as at a perturbed point
    pixels, labels = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    nn.functional.cross_entropy(model(pixels).logits, labels).backward()
    weight = head.weight.detach().clone().requires_grad_()
    features = model.vit(pixels).last_hidden_state[:, 0].detach()
    scale = 4 * weight.norm(dim=1).mean()
    cosines = cosine_similarity(features[:, None], weight[None], dim=-1)
    nn.functional.cross_entropy(scale * cosines, labels).backward()
    torch.testing.assert_close(head.weight.grad, weight.grad)


@pytest.mark.parametrize("sharpness", ["none", "sam"])
def test_training_resumes_bit_for_bit(make_trainer, sharpness, tmp_path):
    states = []
    for stop in (False, True):

        def trainer_of(seed, stop=stop):
            model = make_vit(seed=seed)
            use_cosine_head(model, 4, learn_scale=True)
            options = {"save_strategy": "steps", "save_steps": 2, "output_dir": str(tmp_path / str(stop))}
            return make_trainer(
                model=model, sharpness=sharpness, trainer={"callbacks": [CosineHeadCallback()]}, **options
            )

        trainer = trainer_of(0)
        trainer.train()
        if stop:
            trainer = trainer_of(1)
            trainer.train(resume_from_checkpoint=str(tmp_path / "True" / "checkpoint-2"))
        states.append(weights_of(trainer.model))
    assert_same_bits(*states)


def test_ldam_trains_on_cosines_and_the_scale_is_folded_in_afterwards():
    model = make_vit()
    head = use_cosine_head(model, 4, scale=1.0)
    loss = build_loss("ldam", [40, 22, 9, 3])
    pixels, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
    cosines = model(pixels).logits
    assert cosines.abs().max() <= 1 + 1e-6
    loss(cosines, labels).mean().backward()
    assert head.weight.grad.abs().max() > 0
    head.set_scale(loss.loss_scale)
    torch.testing.assert_close(model(pixels).logits, 30 * cosines, rtol=1e-5, atol=1e-5)
    assert head.scale == pytest.approx(30)


def test_a_step_hook_replaces_the_callback():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    head = use_cosine_head(model, 3, scale=2.0, inputs={"input": torch.randn(2, 4)})
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    optimizer.register_step_post_hook(lambda *_: head.project())
    nn.functional.cross_entropy(model(torch.randn(9, 4)), torch.arange(9) % 3).backward()
    optimizer.step()
    assert (head.weight.norm(dim=1) * math.sqrt(8)).tolist() == pytest.approx([2.0] * 3)


def test_lora_is_merged_into_a_model_with_the_same_logits(tmp_path):
    model = make_vit()
    use_cosine_head(model, 4, scale=6.0)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", modules_to_save=["classifier"], r=2))
    trainer, data = train(adapted, tmp_path)
    trainer.train()
    merged = adapted.merge_and_unload().eval()
    lengths = 4 * merged.classifier.weight.norm(dim=1)
    assert lengths.tolist() == pytest.approx([6.0] * 4, rel=1e-5)
    merged.save_pretrained(tmp_path / "model")
    opened = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    pixels = data["pixel_values"][:]
    with torch.no_grad():
        torch.testing.assert_close(opened(pixels).logits, merged(pixels).logits, rtol=1e-5, atol=1e-5)


# ---- copies and later use --------------------------------------------------------------------------------------------


def test_a_saved_model_can_be_corrected_and_trained_again(tmp_path):
    model = make_vit(num_channels=3)
    use_cosine_head(model, 4)
    model.save_pretrained(tmp_path / "model")
    opened = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert adjust_head(opened, [40, 22, 9, 3]).classifier.bias.abs().max() > 0
    again = use_cosine_head(opened, 4)
    torch.testing.assert_close(again.weight, model.classifier.weight)
    with pytest.raises(ValueError, match="the head is a CosineHead, which does not compute W f"):
        adjust_head(opened, [40, 22, 9, 3])


@pytest.mark.parametrize("make_model", [make_vit, make_bert])
def test_models_can_be_copied(make_model):
    model = make_model()
    use_cosine_head(model, 4, allow_custom_code=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert torch.equal(twin.classifier.weight, model.classifier.weight)
    assert modeling_cosine_head.CosineBertConfig is modeling_cosine_head.CosineBertConfig
    with pytest.raises(AttributeError, match="has no attribute 'CosineNothing'"):
        _ = modeling_cosine_head.CosineNothing


def test_bfloat16(tmp_path):
    model = make_vit(num_channels=3, dtype=torch.bfloat16).eval()
    head = use_cosine_head(model, 4, scale=5.0)
    pixels = torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)
    logits = model(pixels).logits
    assert logits.dtype == head.weight.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    opened = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    torch.testing.assert_close(opened(pixels).logits, logits, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_of_zeros_have_logits_of_zero(dtype):
    layer = modeling_cosine_head.CosineLinear(nn.Linear(3, 2, dtype=dtype))
    features = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    logits = layer(features)
    logits.sum().backward()
    assert logits[0].tolist() == [0, 0]
    assert features.grad.isfinite().all()


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(4, 3)
        self.config = AutoConfig.for_model("vit")

    def forward(self, x):
        return self.classifier(x)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (make_vit(), {"scale": 0.0}, "scale must be a finite number > 0, got 0.0"),
        (make_vit(), {"num_classes": 5}, "no linear layer of the model with 5 outputs"),
        (nn.Linear(4, 4), {}, "Linear is not a model of transformers: give example inputs"),
        (Unknown(), {"num_classes": 3, "inputs": {"x": torch.randn(2, 4)}}, "Unknown is not a class of transformers"),
        (get_peft_model(make_vit(), LoraConfig(target_modules="all-linear")), {}, "before get_peft_model"),
    ],
)
def test_bad_input(model, options, said):
    with pytest.raises(ValueError, match=said):
        use_cosine_head(model, **({"num_classes": 4} | options))


# ---- corrections after training ------------------------------------------------------------------------------------


@pytest.fixture
def saved_bert(tmp_path):
    """A BERT with a cosine head, as it opens after training, and a function that saves and opens a changed one."""
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(**small, vocab_size=20, max_position_embeddings=16, num_labels=3))
    use_cosine_head(model, 3, scale=10.0, allow_custom_code=True)

    def again(model):
        model.save_pretrained(tmp_path / "model")
        config = type(model.config).from_pretrained(tmp_path / "model")
        return (
            modeling_cosine_head.model_class(BertForSequenceClassification)
            .from_pretrained(tmp_path / "model", config=config)
            .eval()
        )

    return again(model), again


INPUTS = {"input_ids": torch.arange(1, 19).reshape(6, 3)}
CLASS_COUNTS = [70, 20, 10]


@torch.no_grad()
def cosine_logits(model):
    return model(**INPUTS).logits


def test_a_bias_of_zeros_changes_no_bit(saved_bert):
    model, again = saved_bert
    layer = model.classifier
    features = torch.randn(5, 8)
    assert torch.equal(layer(features), nn.functional.linear(nn.functional.normalize(features, dim=-1), layer.weight))
    torch.testing.assert_close(cosine_logits(again(model)), cosine_logits(model), rtol=0, atol=0)


def test_corrections_of_a_cosine_head_are_exact_and_survive_saving(saved_bert):
    model, again = saved_bert
    before = cosine_logits(model)
    shares = torch.tensor(CLASS_COUNTS) / 100
    changed = {
        "logit_adjustment": (adjust_head(model, CLASS_COUNTS, strength=0.5), before - 0.5 * shares.log()),
        "temperature": (fold_temperature(model, 2.0, 3), before / 2),
        "costs": (fold_costs(model, [[0, 1, 1], [1, 0, 1], [9, 9, 0]]), before + torch.tensor([1, 1, 9]).log()),
        "no least shift": (adjust_head(model, CLASS_COUNTS, "least_shift", strength=0.0), before),
    }
    for name, (adjusted, expected) in changed.items():
        torch.testing.assert_close(cosine_logits(adjusted), expected, msg=name)
        assert torch.equal(cosine_logits(again(adjusted)), cosine_logits(adjusted)), name
    rows = adjust_head(model, CLASS_COUNTS, "least_shift").classifier.weight
    cosines = nn.functional.normalize(rows, dim=1) @ nn.functional.normalize(rows, dim=1).T
    torch.testing.assert_close(cosines, 1.5 * torch.eye(3) - 0.5)


def test_the_strength_is_chosen_by_the_logits_of_the_adjusted_model(saved_bert):
    model, _ = saved_bert
    data = [INPUTS | {"labels": torch.tensor([0, 1, 2, 2, 1, 0])}]
    _, scores = choose_strength(model, data, CLASS_COUNTS, metric="accuracy", strengths=[0.0, 0.1, 1.0, 5.0])
    for strength, score in scores.items():
        predicted = cosine_logits(adjust_head(model, CLASS_COUNTS, strength=strength)).argmax(1)
        assert score == (predicted == data[0]["labels"]).double().mean()
    assert len(set(scores.values())) > 1


@pytest.mark.parametrize("method", ["tau_norm", "predicted_norm"])
def test_rows_of_one_length_have_no_lengths_to_correct(method, saved_bert):
    with pytest.raises(ValueError, match=f"{method} corrects the lengths of the head's rows.*Choose logit_adjustment"):
        adjust_head(saved_bert[0], CLASS_COUNTS, method)


def test_a_cosine_head_in_training_is_not_corrected(saved_bert):
    model, _ = saved_bert
    model.set_submodule("classifier", CosineHead(nn.Linear(8, 3), 10.0))
    with pytest.raises(ValueError, match="the head is a CosineHead, which does not compute"):
        adjust_head(model, CLASS_COUNTS)
