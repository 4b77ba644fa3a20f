"""Weights come back bit for bit, whatever the model is made of and under whatever names it was saved."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    ViTForImageClassification,
)

from hf_sharp.trainer.checkpoint_files import load_weights
from tests.conftest import assert_same_bits, make_bert, make_vit, weights_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": 3}
FAMILIES = {
    "vit": SMALL | {"image_size": 8, "patch_size": 4},
    "deit": SMALL | {"image_size": 8, "patch_size": 4, "architectures": ["DeiTForImageClassification"]},
    "beit": SMALL | {"image_size": 8, "patch_size": 4},
    "dinov2": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
        "num_labels": 3,
    },
    "swin": {
        "image_size": 8,
        "patch_size": 2,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "window_size": 2,
        "num_labels": 3,
    },
    "convnext": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_labels": 3},
    "deberta-v2": SMALL | {"vocab_size": 30, "max_position_embeddings": 16},
    "clip": {"vision_config": SMALL | {"image_size": 8, "patch_size": 4}, "num_labels": 3},
    "bert": SMALL | {"vocab_size": 30, "max_position_embeddings": 16},
    "roberta": SMALL | {"vocab_size": 30, "max_position_embeddings": 16},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "vocab_size": 30, "num_labels": 3},
}


def scrambled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_bit_for_bit(family, tmp_path):
    images = family in ("vit", "deit", "beit", "dinov2", "swin", "convnext", "clip")
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    model = auto.from_config(AutoConfig.for_model(family, **FAMILIES[family]))
    model.save_pretrained(tmp_path)
    expected = weights_of(model)
    identities = [id(parameter) for parameter in model.parameters()]
    load_weights(scrambled(model), tmp_path)
    assert_same_bits(weights_of(model), expected)
    assert [id(parameter) for parameter in model.parameters()] == identities, "the optimizer holds these"


class WithArgument(ViTForImageClassification):
    def __init__(self, config, extra):
        super().__init__(config)
        self.extra = extra


def custom_head():
    model = make_vit()
    model.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    return model


@pytest.mark.parametrize("make", [custom_head, lambda: WithArgument(make_vit().config, extra=3)])
def test_models_that_their_config_does_not_describe(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    expected = weights_of(model)
    load_weights(scrambled(model), tmp_path)
    assert_same_bits(weights_of(model), expected)


def test_mixed_types_are_not_rounded(tmp_path):
    model = make_vit().to(torch.bfloat16)
    model.classifier.float()
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path)
    expected = weights_of(model)
    load_weights(scrambled(model), tmp_path)
    assert_same_bits(weights_of(model), expected)


def test_shards_are_put_together(tmp_path):
    model = make_bert()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = weights_of(model)
    load_weights(scrambled(model), tmp_path)
    assert_same_bits(weights_of(model), expected)


def test_a_missing_and_an_unexpected_tensor_are_named(tmp_path):
    model = make_vit()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["stray"] = tensors.pop("classifier.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing \['classifier.weight'\], unexpected \['stray'\]"):
        load_weights(model, tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_weights(make_vit(), tmp_path / "nowhere")
