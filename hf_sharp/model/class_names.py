"""Initial values of a classifier head from the names of the classes, by CLIP or another model with a text tower.

With t_c the normalised text embedding of class c, e(x) the image embedding of an image and f(x) the head's input:

    exact     e = P f for a fixed P (CLIP's visual projection, or 1):   w_c = s Pᵀ t_c / mean ‖e‖,   b_c = 0
    fitted    e / ‖e‖ ≈ A f + a by ridge regression over images:         w_c = s Aᵀ t_c,              b_c = s a · t_c

The exact form needs a classifier on CLIP's pooled output. `CLIPForImageClassification` is not one: it averages the
patch tokens before CLIP's last LayerNorm. `SiglipForImageClassification` averages patch tokens too. Neither model was
trained to compare these averages with texts, so for them the map is fitted to images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_sharp.model.cosine_head import CosineHead, example_inputs
from hf_sharp.model.head import ClassifierHead, check_is_linear, evaluation_mode
from hf_sharp.model.head_init import Reduce

# Relative to the mean square of the features; it only makes the solution unique.
_RIDGE = 1e-4
_PROMPTS_PER_BATCH = 256


@torch.no_grad()
def class_name_embeddings(
    clip: Any, tokenizer: Any, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)
) -> Tensor:
    """Compute a text embedding for each class: the normalised mean over templates of normalised embeddings.

    Args:
        clip: a model with `get_text_features`: CLIPModel, SiglipModel, MetaClip2Model and others.
        tokenizer: its tokenizer.
        names: K class names, written as in a sentence.
        templates: sentences with `{}` in place of the name.

    Returns:
        (K, p), float64 on the CPU, rows of length 1.

    Raises:
        ValueError: the model has no text tower, there are no names, or a template has no `{}`.

    Reference:
        CLIP arXiv 2103.00020, section 3.1.4 (prompt ensembling).
    """
    if not hasattr(clip, "get_text_features"):
        raise ValueError(
            f"{type(clip).__name__} has no text tower. Load the model with both towers, such as CLIPModel."
        )
    if not names or not templates:
        raise ValueError("at least one class name and one template are needed.")
    if bad := [template for template in templates if "{}" not in template]:
        raise ValueError(f"a template needs {{}} in place of the class name, got {bad[0]!r}.")
    # SigLIP was trained on padded texts only.
    padding = "max_length" if "siglip" in clip.config.model_type else True
    totals = []
    with evaluation_mode(clip):
        for template in templates:
            parts = []
            for start in range(0, len(names), _PROMPTS_PER_BATCH):
                prompts = [template.format(name) for name in names[start : start + _PROMPTS_PER_BATCH]]
                tokens = tokenizer(prompts, padding=padding, truncation=True, return_tensors="pt")
                parts.append(_embeddings(clip.get_text_features(**tokens.to(clip.device))))
            totals.append(normalize(torch.cat(parts)))
    return normalize(torch.stack(totals).mean(0))


@torch.no_grad()
def init_head_from_class_names(
    model: nn.Module,
    clip: Any,
    tokenizer: Any,
    names: Sequence[str],
    templates: Sequence[str] = ("a photo of a {}.",),
    *,
    scale: float = 25.0,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    reduce: Reduce | None = None,
    head: str | None = None,
) -> bool:
    """Set the rows of an image classifier's head from the text embeddings of the class names.

        w_c = s Pᵀ t_c / mean ‖e‖        or, fitted to images,        w_c = s Aᵀ t_c,  b_c = s a · t_c

    Args:
        model: an image classification model whose inputs are those of `clip`.
        clip: a model with `get_text_features` and `get_image_features`, from the same checkpoint for the exact form.
        tokenizer: its tokenizer.
        names: K class names, in the order of the labels.
        templates: as for `class_name_embeddings`.
        scale: s > 0, the factor of the cosines; LIFT's 25. A cosine head keeps its own.
        batches: training images (`pixel_values`, without or with labels), to fit the map if there is no exact one. All
            of them are used; a few thousand are sufficient. With several processes, each passes its own share.
        reduce: sums a tensor over all processes, as for `init_head_from_class_means`; None if there is only one.
        head: the name of the layer that computes the logits, if it cannot be found automatically.

    Returns:
        True for the exact form, False for a fitted map.

    Raises:
        ValueError: the head is not linear or does not have K outputs, a tower is missing, or there is no exact map and
            there are no images to fit one.

    Reference:
        LIFT arXiv 2309.10019, semantic-aware initialisation; its head gets CLIP's pooled output, so the form is exact.
        Fitted maps from any vision model to CLIP: arXiv 2305.06386.
    """
    if not hasattr(clip, "get_image_features"):
        raise ValueError(f"{type(clip).__name__} has no image tower. Load the model with both towers.")
    texts = class_name_embeddings(clip, tokenizer, names, templates)
    sums: tuple[Tensor, Tensor] | None = None
    with evaluation_mode(model), evaluation_mode(clip), ClassifierHead(model, len(names), head) as watched:
        for batch in [example_inputs(model)] if batches is None else batches:
            pixels = batch["pixel_values"]
            outputs = model(pixel_values=pixels.to(next(model.parameters()).device))
            features = watched.features_of(outputs if isinstance(outputs, Tensor) else outputs["logits"])
            features = features.double().cpu()
            images = _embeddings(clip.get_image_features(pixel_values=pixels.to(clip.device, clip.dtype)))
            if sums is None and (projection := _exact_projection(clip, features, images)) is not None:
                _put(watched.module, scale * texts @ projection / images.norm(dim=1).mean(), torch.zeros(len(names)))
                return True
            if batches is None:
                raise ValueError(
                    f"the head's input in {type(model).__name__} is neither the image embedding that "
                    f"{type(clip).__name__} compares with texts, nor that embedding before its projection. Give "
                    "training images with batches= to fit a map between the two, or use init_head_from_class_means."
                )
            inputs = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
            new = inputs.T @ inputs, inputs.T @ normalize(images)
            sums = new if sums is None else (sums[0] + new[0], sums[1] + new[1])
    if sums is None:
        raise ValueError("there are no images to fit the map on.")
    gram, products = sums if reduce is None else (reduce(part.to(clip.device)).cpu() for part in sums)
    ridge = _RIDGE * gram.diagonal()[:-1].mean() * torch.eye(len(gram), dtype=gram.dtype)
    ridge[-1, -1] = 0  # the constant is not shrunk
    rows = scale * texts @ torch.linalg.solve(gram + ridge, products).T
    _put(watched.module, rows[:, :-1], rows[:, -1])
    return False


def _put(layer: nn.Linear, rows: Tensor, bias: Tensor) -> None:
    if isinstance(layer, CosineHead):
        layer.point_at(rows)
        return
    check_is_linear(layer)
    layer.weight.copy_(rows)
    if layer.bias is not None:
        layer.bias.copy_(bias)


def _embeddings(output: Any) -> Tensor:
    return (output if isinstance(output, Tensor) else output.pooler_output).double().cpu()


def _exact_projection(clip: Any, features: Tensor, images: Tensor) -> Tensor | None:
    """Return P with image embedding = P features, the identity or the visual projection; None if neither fits."""
    candidates = [torch.eye(features.shape[1], dtype=features.dtype)]
    if (layer := getattr(clip, "visual_projection", None)) is not None:
        candidates.append(layer.weight.double().cpu())
    for projection in candidates:
        if projection.shape == (images.shape[1], features.shape[1]):
            error = (features @ projection.T - images).norm() / images.norm()
            if error < (1e-2 if clip.dtype in (torch.float16, torch.bfloat16) else 1e-4):
                return projection
    return None
