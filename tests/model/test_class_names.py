"""Heads from class names: text embeddings, the exact form, the fitted map, and refused input."""

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPConfig, CLIPForImageClassification, CLIPModel, CLIPVisionModel, set_seed

from hf_sharp.model.class_names import class_name_embeddings, init_head_from_class_names
from hf_sharp.model.cosine_head import CosineHead
from tests.conftest import make_vit
from tests.recipes.conftest import bert_folder  # noqa: F401

NAMES = ["w1", "w2 w3", "w7"]
TEMPLATES = ["w10 {} w11", "{} w12"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def make_clip():
    set_seed(0)
    text = SMALL | {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = SMALL | {"image_size": 8, "patch_size": 4, "hidden_size": 24}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    for parameter in clip.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return clip


class OnPooledOutput(nn.Module):
    """A classifier on CLIP's pooled output, as LIFT's, before or after the projection."""

    def __init__(self, clip, project):
        super().__init__()
        self.vision, self.projection = clip.vision_model, clip.visual_projection if project else nn.Identity()
        self.classifier = nn.Linear(12 if project else 24, 3)
        self.config = clip.config

    def forward(self, pixel_values):
        return self.classifier(self.projection(self.vision(pixel_values).pooler_output))


@pytest.fixture
def tokenizer(bert_folder):  # noqa: F811
    return AutoTokenizer.from_pretrained(bert_folder, model_max_length=16)


def image_batches(number=10, size=4):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(number, 3, 8, 8, generator=generator)
    return [{"pixel_values": part} for part in pixels.split(size)]


def naive_embeddings(clip, tokenizer):
    rows = []
    for name in NAMES:
        embeddings = []
        for template in TEMPLATES:
            tokens = tokenizer(template.replace("{}", name), return_tensors="pt")
            with torch.no_grad():
                embeddings.append(normalize(clip.get_text_features(**tokens).pooler_output)[0])
        rows.append(normalize(torch.stack(embeddings).mean(0), dim=0))
    return torch.stack(rows).double()


def cosines(clip, tokenizer, pixels):
    with torch.no_grad():
        images = clip.get_image_features(pixel_values=pixels).pooler_output.double()
    return images, normalize(images) @ naive_embeddings(clip, tokenizer).T


def test_embeddings_are_normalised_means_over_templates(tokenizer):
    clip = make_clip().train()
    found = class_name_embeddings(clip, tokenizer, NAMES, TEMPLATES)
    torch.testing.assert_close(found, naive_embeddings(clip.eval(), tokenizer), rtol=1e-4, atol=1e-5)
    assert found.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("project", [False, True])
def test_the_exact_form_is_zero_shot_classification(project, tokenizer):
    clip = make_clip()
    model = OnPooledOutput(clip, project)
    batches = image_batches()
    assert init_head_from_class_names(model, clip, tokenizer, NAMES, TEMPLATES, scale=10.0, batches=batches)
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    images, cosine = cosines(clip, tokenizer, pixels)
    norms = images.norm(dim=1, keepdim=True)
    with torch.no_grad():
        logits = model(pixels).double()
    torch.testing.assert_close(logits, 10 * cosine * norms / norms[:4].mean(), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits.argmax(1), cosine.argmax(1))


def test_patch_averages_are_refused_without_images_and_mapped_with_them(tokenizer):
    clip = make_clip()
    clip.config.num_labels = 3
    model = CLIPForImageClassification(clip.config).eval()
    model.vision_model.load_state_dict(clip.vision_model.state_dict())
    before = model.classifier.weight.detach().clone()
    with pytest.raises(ValueError, match="CLIPForImageClassification is neither the image embedding that CLIPModel"):
        init_head_from_class_names(model, clip, tokenizer, NAMES, TEMPLATES)
    assert torch.equal(model.classifier.weight, before)
    batches = image_batches(12)
    assert not init_head_from_class_names(model, clip, tokenizer, NAMES, TEMPLATES, batches=batches)
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    with torch.no_grad():
        logits = model(pixels).logits.double()
    _, cosine = cosines(clip, tokenizer, pixels)
    # With fewer images than features, the map reproduces their cosines up to the ridge.
    torch.testing.assert_close(logits, 25 * cosine, rtol=0.02, atol=0.05)


def test_a_fitted_map_is_the_ridge_regression(tokenizer):
    clip, model = make_clip(), make_vit(num_labels=3, num_channels=3).eval()
    batches = image_batches(60, 7)
    assert not init_head_from_class_names(model, clip, tokenizer, NAMES, TEMPLATES, scale=2.0, batches=batches)
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    with torch.no_grad():
        features = model.vit(pixels).last_hidden_state[:, 0].double()
        logits = model(pixels).logits.double()
    images, _ = cosines(clip, tokenizer, pixels)
    inputs = torch.cat([features, torch.ones(60, 1)], 1)
    penalty = (1e-4 * (features**2).sum(0).mean()).sqrt() * torch.eye(17)[:16]  # not of the constant
    rows, targets = torch.cat([inputs, penalty]), torch.cat([normalize(images), torch.zeros(16, 12)])
    solution = torch.linalg.lstsq(rows, targets).solution
    expected = 2 * inputs @ solution @ naive_embeddings(clip, tokenizer).T
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_cosine_head_gets_the_directions(tokenizer):
    clip = make_clip()
    model = OnPooledOutput(clip, project=False)
    model.classifier = CosineHead(model.classifier, scale=6.0)
    assert init_head_from_class_names(model, clip, tokenizer, NAMES, TEMPLATES, batches=image_batches())
    expected = naive_embeddings(clip, tokenizer).float() @ clip.visual_projection.weight
    cosine = nn.functional.cosine_similarity(model.classifier.weight, expected)
    assert cosine.tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert model.classifier.scale == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip": CLIPVisionModel(make_clip().config.vision_config)}, "CLIPVisionModel has no image tower"),
        ({"templates": ["w1"]}, "a template needs {} in place of the class name, got 'w1'"),
        ({"names": []}, "at least one class name and one template are needed"),
        ({"names": ["w1", "w2"]}, "no linear layer of the model with 2 outputs"),
        ({"batches": []}, "there are no images to fit the map on"),
    ],
)
def test_bad_input(options, said, tokenizer):
    clip = make_clip()
    arguments = {"model": OnPooledOutput(clip, True), "clip": clip, "names": NAMES, "templates": TEMPLATES} | options
    with pytest.raises(ValueError, match=re.escape(said)):
        init_head_from_class_names(tokenizer=tokenizer, **arguments)


def test_a_model_without_a_text_tower():
    with pytest.raises(ValueError, match="ViTForImageClassification has no text tower"):
        class_name_embeddings(make_vit(), None, NAMES)
