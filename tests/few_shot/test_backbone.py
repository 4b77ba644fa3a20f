"""Backbones of every family, what they were saved as, which features they have, and poolers that nobody trained."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    ViTImageProcessor,
    ViTModel,
)

from hf_sharp.few_shot import Domain, embed, evaluate, load_backbone, make_domain
from tests.conftest import make_bert, make_vit
from tests.recipes.conftest import bert_folder, vit_folder  # noqa: F401
from tests.trainer.test_checkpoint import FAMILIES

IMAGES = ("vit", "deit", "beit", "dinov2", "swin", "convnext", "clip")


def image_inputs(size=8, count=3):
    torch.manual_seed(0)
    return {"pixel_values": torch.randn(count, 3, size, size)}


def prepared(inputs, labels=(0, 1, 2)):
    columns = {name: value.tolist() for name, value in inputs.items()}
    return make_domain(datasets.Dataset.from_dict(columns | {"label": list(labels)}), "prepared")


@pytest.mark.parametrize("family", FAMILIES)
def test_features_of_every_family_are_those_that_the_trained_head_saw(family, tmp_path):
    images = family in IMAGES
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    model.save_pretrained(tmp_path)
    ids = {"input_ids": torch.randint(4, 30, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.int64)}
    inputs = image_inputs(32 if family == "convnext" else 8) if images else ids
    features = load_backbone(tmp_path, features="mean")
    pooled = {"swin", "convnext", "bert", "dinov2", "beit", "clip"}
    again = load_backbone(tmp_path)
    assert again.pooler_is_trained == (family in pooled or family in ("deberta-v2", "distilbert")), "no pooler is fine"
    twice = [load_backbone(tmp_path, features="mean").encode(inputs) for _ in range(2)]
    assert torch.equal(*twice), "nothing in it is random"
    assert features.encode(inputs).shape == (3, 16)
    if family in pooled:
        assert torch.equal(again.encode(inputs), load_backbone(tmp_path).encode(inputs))
        assert again.features == "pooled"
    if family == "vit":
        expected = model.vit(**inputs).last_hidden_state
        torch.testing.assert_close(again.encode(inputs), expected[:, 0])
        torch.testing.assert_close(features.encode(inputs), expected[:, 1:].mean(1))
        assert again.features == "class_token"
    if family == "deit":
        hidden = model.deit(**inputs).last_hidden_state
        torch.testing.assert_close(features.encode(inputs), hidden[:, 2:].mean(1))  # class and distillation tokens
    if family == "bert":
        torch.testing.assert_close(again.encode(inputs), model.bert(**inputs).pooler_output)
    if family == "clip":
        torch.testing.assert_close(load_backbone(model).encode(inputs), again.encode(inputs))


def test_a_pooler_that_automodel_made_is_never_taken(tmp_path):
    make_vit(num_channels=3).save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).pooler is not None, "the trap is there"
    with pytest.raises(ValueError, match=r"no trained pooler.*random weights give no useful features"):
        load_backbone(tmp_path, features="pooled")
    backbone = load_backbone(tmp_path)
    backbone.encode(image_inputs())
    assert backbone.features == "class_token"


def test_a_pooler_that_was_saved_is_taken(tmp_path):
    config = make_vit(num_channels=3).config
    model = ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    for source in (tmp_path, str(tmp_path), model):
        backbone = load_backbone(source)
        torch.testing.assert_close(backbone.encode(image_inputs()), model(**image_inputs()).pooler_output)
        assert backbone.features == "pooled"


def test_missing_weights_of_the_encoder_are_an_error(tmp_path):
    model = make_vit(num_channels=3)
    kept = {name: value for name, value in model.state_dict().items() if "encoder.layer.1" not in name}
    kept = {name: value for name, value in kept.items() if "layers.1." not in name}
    assert len(kept) < len(model.state_dict())
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match=r"lacks weights of its encoder, which would be random: .* and \d+ more"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("model", "features", "said"),
    [
        (
            make_vit(num_channels=3),
            "pooled",
            r"\(ViTModel\) has no pooled features. Choose with features='class_token'",
        ),
        (make_vit(num_channels=3), "best", "unknown features 'best'; expected one of pooled, class_token, mean"),
        ("swin", "class_token", "has no class token. Choose with features='pooled or mean'"),
        ("gpt2", None, "has neither pooled features nor a class token. Choose with features='mean'"),
        ("gpt2", "pooled", "has no pooled features. Choose with features='mean'"),
    ],
)
def test_features_that_a_model_does_not_have(model, features, said):
    inputs = image_inputs()
    if model == "swin":
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model("swin", **FAMILIES["swin"]))
    if model == "gpt2":
        model = GPT2Model(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, bos_token_id=1, eos_token_id=1))
        inputs = {"input_ids": torch.ones(2, 4, dtype=torch.int64)}
    with pytest.raises(ValueError, match=said):
        load_backbone(model, features=features).encode(inputs)


def test_padding_does_not_move_the_mean_of_words(bert_folder, texts):  # noqa: F811
    backbone = load_backbone(bert_folder, features="mean")
    assert len({len(text.split()) for text in texts.dataset["text"]}) > 1, "there is padding"
    together = embed(backbone, texts, batch_size=len(texts))
    torch.testing.assert_close(embed(backbone, texts, batch_size=1), together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("features", [None, "pooled", "mean"])
def test_texts_from_a_folder(bert_folder, texts, features):  # noqa: F811
    backbone = load_backbone(bert_folder, features=features)
    result = evaluate(backbone, texts, "linear", episodes=20, ways=5, shots=3)
    assert result.features == (features or "pooled")
    assert result.accuracy > 0.3, "the first word tells the class: above chance"


def test_images_from_a_folder_are_prepared_by_its_own_processor(vit_folder):  # noqa: F811
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (10, 12), np.uint8)) for _ in range(5)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    data = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 0, 1, 1]}, features=features)
    domain = make_domain(data, "grey")
    backbone = load_backbone(vit_folder)
    processor = ViTImageProcessor.from_pretrained(vit_folder)
    pixels = processor(images=[p.convert("RGB") for p in pictures], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        embed(backbone, domain, batch_size=2), backbone.encode({"pixel_values": pixels}).detach()
    )
    bare = load_backbone(make_vit(num_channels=3))
    with pytest.raises(ValueError, match=r"comes without a processor for 'image'. Pass one with processor="):
        embed(bare, domain)
    whole = load_backbone(make_vit(num_channels=3), processor=processor)
    assert embed(whole, domain).shape == (5, 16)


def test_embedding_takes_no_gradient_and_no_dropout(images):
    model = make_vit(num_labels=6, dropout=0.5).train()
    backbone = load_backbone(model)
    features = embed(backbone, images)
    assert torch.equal(features, embed(backbone, images, batch_size=len(images))) or torch.allclose(
        features, embed(backbone, images, batch_size=len(images)), atol=1e-5
    )
    assert not features.requires_grad
    assert model.training


def test_bfloat16_gives_float32_features(images):
    model = make_vit(num_labels=6, dtype=torch.bfloat16)
    pixels = {"pixel_values": torch.randn(2, 1, 8, 8, dtype=torch.bfloat16)}
    assert load_backbone(model).encode(pixels).dtype == torch.float32
    assert embed(load_backbone(model), images).dtype == torch.float32, "the inputs follow the model's dtype"


def test_an_empty_domain(images):
    with pytest.raises(ValueError, match="'images' has no examples to embed"):
        embed(load_backbone(make_vit(num_labels=6)), images.select([]))


def test_a_bare_bert_object_without_pooler():
    model = BertModel(make_bert().config, add_pooling_layer=False).eval()
    domain = prepared({"input_ids": torch.randint(4, 30, (3, 6))})
    with pytest.raises(ValueError, match="neither pooled features nor a class token"):
        embed(load_backbone(model), domain)
    assert embed(load_backbone(model, features="mean"), domain).shape == (3, 16)
    assert isinstance(domain, Domain)
