"""A cosine head: its logits depend on the angle between features and class vectors, not on their lengths.

    logits = s cos(f, w_c) = s w_c · f / (‖w_c‖ ‖f‖)

Every forward pass normalises the rows w_c, and after every optimizer step the rows are set to one common length. A
saved weight therefore needs no normalisation. A saved model reproduces the division by ‖f‖ exactly in two ways:

    LayerNorm   if the head's input is the output of a LayerNorm, its weight is fixed at 1 and its bias at 0. Then
                ‖f‖ = √d, and rows of length s / √d make a plain linear head. ViT, DeiT, BEiT, ConvNeXt.
    own class   the model is saved with its code (`modeling_cosine_head.py`), and opens with trust_remote_code=True.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_sharp.model.head import ClassifierHead, check_is_linear, evaluation_mode
from hf_sharp.model.modeling_cosine_head import CosineLinear, model_class
from hf_sharp.registry.limits import check_number


class CosineHead(CosineLinear):
    """The cosine head during training: logits = s cos(f, w_c).

    Args:
        layer: the linear layer to replace; the directions of its rows are kept.
        scale: s > 0.
        learn_scale: whether s is trained, as the mean length of the rows.
        feature_norm: ‖f‖ if all features have the same norm; None to divide by ‖f‖ in every forward pass.

    Example:
        >>> head = CosineHead(nn.Linear(2, 2), scale=10.0)
        >>> head.point_at(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> head(torch.tensor([[5.0, 0.0]])).tolist()
        [[10.0, 0.0]]
    """

    def __init__(
        self, layer: nn.Linear, scale: float, learn_scale: bool = False, feature_norm: float | None = None
    ) -> None:
        super().__init__(layer)
        self.learn_scale, self.feature_norm = learn_scale, feature_norm
        self.set_scale(scale)

    @property
    def scale(self) -> float:
        """The factor of the cosines, s."""
        lengths = self.weight.detach().double().norm(dim=1)
        return float(lengths.mean() if self.learn_scale else self._length) * (self.feature_norm or 1.0)

    def rows(self) -> Tensor:
        """Compute the class vectors, all of one length: (K, d)."""
        lengths = self.weight.norm(dim=1, keepdim=True)
        length = lengths.mean() if self.learn_scale else self._length
        return self.weight * (length / lengths.clamp(min=torch.finfo(lengths.dtype).tiny))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        """Compute the logits (..., K) of features (..., d)."""
        features = self.normalized(input) if self.feature_norm is None else input
        return nn.functional.linear(features, self.rows())

    @torch.no_grad()
    def project(self) -> None:
        """Set the rows of the weight to their common length, after an optimizer step."""
        self.weight.copy_(self.rows())

    @torch.no_grad()
    def point_at(self, directions: Tensor) -> None:
        """Set the directions of the class vectors, (K, d), and keep the scale."""
        scale = self.scale
        self.weight.copy_(directions)
        self.set_scale(scale)

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        """Set s, and keep the directions.

        After training with LDAM, whose logits are cosines (s = 1), set s to the `loss_scale`. The softmax of the saved
        model's logits is then the one that LDAM trained, without its margin.

        Args:
            scale: s > 0.
        """
        self._length = scale / (self.feature_norm or 1.0)
        self.weight.copy_(nn.functional.normalize(self.weight.double()) * self._length)


class CosineHeadCallback(TrainerCallback):
    """Sets the rows of cosine heads to their common length after every optimizer step.

    Without the Trainer: `optimizer.register_step_post_hook(lambda *_: head.project())`.
    """

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Project the rows."""
        for module in model.modules():
            if isinstance(module, CosineHead):
                module.project()


def use_cosine_head(
    model: nn.Module,
    num_classes: int,
    *,
    scale: float = 25.0,
    learn_scale: bool = False,
    allow_custom_code: bool = False,
    inputs: Mapping[str, Tensor] | None = None,
    head: str | None = None,
) -> CosineHead:
    """Replace the head of a model by a cosine head, in place, such that the saved model has the same logits.

        logits = s cos(f, w_c)

    If the head's input is the output of a LayerNorm, as in ViT, DeiT, BEiT and ConvNeXt, the LayerNorm's weight is set
    to 1 and its bias to 0, and both are frozen. f is then a standardised feature, with ‖f‖ = √d up to the LayerNorm's
    ε. The saved model is an ordinary model of its class, and opens in a plain `pipeline()`.

    In other models (BERT, RoBERTa, DistilBERT, DINOv2, Swin, CLIP) no layer divides by ‖f‖. With `allow_custom_code`
    the model gets a new class, and `save_pretrained` saves the code of this class too. `pipeline()` and
    `from_pretrained` then need trust_remote_code=True, and refuse to open the model without it.

    Add `CosineHeadCallback` to the trainer. Call this function before `get_peft_model`, and save the merged model: an
    adapter alone does not contain the changed LayerNorm.

    Args:
        model: an image or sequence classification model, changed in place.
        num_classes: K.
        scale: s > 0; LIFT's 25. For LDAM 1, as its logits must be cosines and it has its own scale.
        learn_scale: whether s is trained, starting from `scale`.
        allow_custom_code: allow a saved model that needs trust_remote_code=True.
        inputs: model inputs for the forward pass that looks for the LayerNorm; None for random ones.
        head: the name of the layer that computes the logits, if it cannot be found automatically.

    Returns:
        The new head.

    Raises:
        ValueError: the scale is not positive, or the model has adapters, no linear head, or cannot be saved exactly.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
        >>> head = use_cosine_head(model, 3, scale=1.0, inputs={"input": torch.randn(2, 4)})
        >>> bool((model(torch.randn(5, 4)).abs() <= 1).all())  # cosines
        True

    Reference:
        Cosine classifiers: arXiv 1804.09458. Scale 25: LIFT arXiv 2309.10019.
    """
    check_number("scale", scale, above=0)
    if hasattr(model, "peft_config"):
        raise ValueError("the model has adapters. Call use_cosine_head before get_peft_model.")
    layer, norm = _layers_of(model, num_classes, example_inputs(model) if inputs is None else inputs, head)
    name = next(path for path, module in model.named_modules() if module is layer)
    check_is_linear(layer)
    feature_norm = None
    if norm is not None:
        feature_norm = math.sqrt(layer.in_features)
        nn.init.ones_(norm.weight).requires_grad_(False)
        if norm.bias is not None:
            nn.init.zeros_(norm.bias).requires_grad_(False)
    else:
        _use_own_class(model, name, allow_custom_code)
    cosine = CosineHead(layer, scale, learn_scale, feature_norm)
    model.set_submodule(name, cosine)
    return cosine


def _layers_of(
    model: nn.Module, num_classes: int, inputs: Mapping[str, Tensor], name: str | None
) -> tuple[nn.Linear, nn.LayerNorm | None]:
    """Find the head, and the LayerNorm whose output, or the first token of it, is the head's input."""
    outputs: list[tuple[nn.LayerNorm, Tensor]] = []
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm) and module.elementwise_affine]
    hooks = [norm.register_forward_hook(lambda norm, _, output: outputs.append((norm, output))) for norm in norms]
    try:
        with torch.no_grad(), evaluation_mode(model), ClassifierHead(model, num_classes, name) as head:
            result = model(**inputs)
            features = head.features_of(result if isinstance(result, Tensor) else result["logits"])
            layer = head.module
    finally:
        for hook in hooks:
            hook.remove()
    for norm, output in reversed(outputs):
        first = output[:, 0] if output.ndim == 3 else output
        if norm.normalized_shape == (layer.in_features,) and torch.equal(first, features):
            return layer, norm
    return layer, None


def example_inputs(model: nn.Module) -> Mapping[str, Tensor]:
    """Make random inputs that fit the config of a transformers model; raise a ValueError if that is not possible."""
    if not isinstance(model, transformers.PreTrainedModel):
        raise ValueError(f"{type(model).__name__} is not a model of transformers: give example inputs with inputs=.")
    if model.main_input_name == "input_ids":
        return {name: value.to(model.device) for name, value in model.dummy_inputs.items()}
    if model.main_input_name != "pixel_values":
        raise ValueError(f"{type(model).__name__} takes {model.main_input_name}: give example inputs with inputs=.")
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", None) or 224  # models without this attribute accept any size
    size = size if isinstance(size, (list, tuple)) else [size] * 2
    channels = getattr(config, "num_channels", None) or 3
    pixels = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    return {"pixel_values": pixels.to(model.device, model.dtype)}


def _use_own_class(model: nn.Module, name: str, allow_custom_code: bool) -> None:
    """Replace the model's class by one that is saved with its code."""
    kind = type(model)
    if isinstance(model, transformers.PreTrainedModel) and getattr(transformers, kind.__name__, None) is kind:
        if not allow_custom_code:
            raise ValueError(
                f"the input of {name!r} is not the output of a LayerNorm, and {kind.__name__} has no other layer that "
                "divides by the features' norm, so the saved model would have other logits. Set allow_custom_code=True "
                "(in SharpTrainingArguments and recipes: cosine_custom_code) to save the model with its code, which "
                "needs trust_remote_code=True, or keep the linear head."
            )
        own = model_class(kind)
        model.__class__ = own
        model.config.__class__ = own.config_class
        model.config.cosine_head = name
    elif not hasattr(model.config, "cosine_head"):
        raise ValueError(
            f"the input of {name!r} is not the output of a LayerNorm, and {kind.__name__} is not a class of "
            "transformers, to which a normalisation could be added. Normalise the features in the model itself."
        )
