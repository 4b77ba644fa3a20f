"""Backbones: any Hugging Face vision or text encoder, and its features.

pooled         the model's own pooled output, if the pooler was trained
class_token    the last hidden state of the class token
mean           the mean of the last hidden states: over patches, over tokens without padding, or over the feature map
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from hf_sharp.few_shot.domain import PREPARED_COLUMNS, Domain
from hf_sharp.model.head import evaluation_mode
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.nearest import check_name

FEATURES = ("pooled", "class_token", "mean")
_CLASS_TOKENS = ("cls_token", "class_embedding")


class Backbone:
    """An encoder with its image processor or tokenizer, and the kind of features to take from it.

    Args:
        model: the encoder, without a classification head.
        processor: the image processor or tokenizer; None if inputs are already prepared.
        features: one of `FEATURES`; None takes the pooled output if the pooler was trained, else the class token.
        pooler_is_trained: whether the weights of the pooler were loaded.
        name: the name of the model, for error messages.

    Raises:
        ValueError: the kind of features is unknown, or pooled features are asked for and the pooler is not trained.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any = None,
        features: str | None = None,
        pooler_is_trained: bool = True,
        name: str = "the model",
    ) -> None:
        if features is not None:
            check_name("features", features, FEATURES)
        if features == "pooled" and not pooler_is_trained:
            raise ValueError(
                f"{name} has no trained pooler: the checkpoint lacks its weights, and random weights give no useful "
                "features. Choose class_token or mean."
            )
        self.model, self.processor, self.features = model, processor, features
        self.pooler_is_trained, self.name = pooler_is_trained, name

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def prepare(self, domain: Domain, rows: Any) -> dict[str, Tensor]:
        """Convert examples to inputs of the model.

        Args:
            domain: the examples.
            rows: the rows to use.

        Returns:
            The inputs, on the model's device.

        Raises:
            ValueError: the examples are not prepared, and there is no processor.
        """
        columns = domain.dataset.with_format(None)[np.asarray(rows)]
        if domain.column in PREPARED_COLUMNS:
            names = [domain.column, *(name for name in ("attention_mask",) if name in columns)]
            inputs = {name: torch.as_tensor(np.asarray(columns[name])) for name in names}
        elif self.processor is None:
            raise ValueError(f"{self.name} comes without a processor for {domain.column!r}. Pass one with processor=.")
        elif self._reads_images:
            mode = "L" if getattr(getattr(self.model, "config", None), "num_channels", 3) == 1 else "RGB"
            images = [image.convert(mode) for image in columns[domain.column]]
            inputs = dict(self.processor(images=images, return_tensors="pt"))
        else:
            inputs = dict(self.processor(columns[domain.column], truncation=True, padding=True, return_tensors="pt"))
        kind = next(self.model.parameters()).dtype
        return {
            name: value.to(self.device, kind if value.is_floating_point() else None) for name, value in inputs.items()
        }

    def encode(self, inputs: Mapping[str, Tensor], model: nn.Module | None = None) -> Tensor:
        """Compute features, with their graph, from inputs.

        Args:
            inputs: the output of `prepare`.
            model: an adapted copy of the model; None takes the model itself.

        Returns:
            (N, d) features, float32.

        Raises:
            ValueError: the model does not have the chosen kind of features, or neither of the default kinds.
        """
        outputs = (self.model if model is None else model)(**inputs)
        features = self._take(outputs, inputs)
        return features.flatten(1).float()

    @property
    def _reads_images(self) -> bool:
        return getattr(self.model, "main_input_name", "pixel_values") == "pixel_values"

    def _take(self, outputs: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        hidden = outputs["last_hidden_state"]
        pooled = outputs.get("pooler_output") if self.pooler_is_trained else None
        first = self._prefix_length() if hidden.ndim == 3 else 0
        has_class_token = first > 0 if self._reads_images else hidden.ndim == 3 and self._begins_with_class_token()
        if self.features is None:
            self.features = "pooled" if pooled is not None else "class_token"
            if pooled is None and not has_class_token:
                self.features = None
                raise ValueError(self._without("neither pooled features nor a class token", "mean"))
        if self.features == "pooled":
            if pooled is None:
                raise ValueError(self._without("no pooled features", "class_token" if has_class_token else "mean"))
            return pooled
        if self.features == "class_token":
            if not has_class_token:
                raise ValueError(self._without("no class token", "mean" if pooled is None else "pooled or mean"))
            return hidden[:, 0]
        if hidden.ndim == 4:  # a feature map
            return hidden.mean((2, 3))
        if self._reads_images:
            return hidden[:, first:].mean(1)
        mask = inputs.get("attention_mask", torch.ones_like(hidden[..., 0]))[..., None].to(hidden)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def _prefix_length(self) -> int:
        names = {name.rpartition(".")[2] for name, _ in self.model.named_parameters()}
        if not self._reads_images or not names & set(_CLASS_TOKENS):
            return 0
        registers = getattr(getattr(self.model, "config", None), "num_register_tokens", 0) or 0
        return 1 + ("distillation_token" in names) + registers

    def _begins_with_class_token(self) -> bool:
        has = getattr(self.processor, "cls_token", None) is not None
        return has and getattr(self.processor, "padding_side", "right") == "right"

    def _without(self, what: str, other: str) -> str:
        return f"{self.name} ({type(self.model).__name__}) has {what}. Choose with features={other!r}."


def load_backbone(source: Any, processor: Any = None, features: str | None = None) -> Backbone:
    """Make a backbone from a model, a folder, or a name on the Hub.

    Args:
        source: an encoder; a model with a classification head, whose encoder is used; a folder or Hub name of either;
            or a `Backbone`, which is returned.
        processor: the image processor or tokenizer; None for the one that is saved with the model.
        features: `pooled`, `class_token` or `mean`; None takes the pooled output if the pooler was trained, else the
            class token.

    Returns:
        The backbone. A model object is neither moved nor changed. Its pooler is assumed to be trained, because it
        cannot be seen whether `AutoModel` created a new one.

    Raises:
        ValueError: the folder lacks weights of the encoder; or as for `Backbone`.

    Example:
        >>> backbone = load_backbone("google/vit-base-patch16-224")  # doctest: +SKIP
        >>> backbone.pooler_is_trained  # it has a head but no pooler  # doctest: +SKIP
        False
    """
    if isinstance(source, Backbone):
        return source
    if isinstance(source, nn.Module):
        return Backbone(encoder_of(source), processor, features, True, type(source).__name__)
    name = str(source)
    # AutoModel initialises missing weights at random, with only a warning.
    loaded, info = AutoModel.from_pretrained(name, output_loading_info=True)
    model = encoder_of(loaded)
    inside = next(path for path, module in loaded.named_modules() if module is model)
    prefix = f"{inside}." if inside else ""
    absent = sorted(
        key.removeprefix(prefix)
        for key in [*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])]
        if key.startswith(prefix)
    )
    pooler = [key for key in absent if "pooler" in key.split(".")]
    if others := [key for key in absent if key not in pooler]:
        raise ValueError(
            f"{name!r} lacks weights of its encoder, which would be random: {', '.join(others[:4])}"
            f"{f' and {len(others) - 4} more' if len(others) > 4 else ''}. Expected a complete checkpoint of "
            f"{type(loaded).__name__}."
        )
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if processor is None:
        auto: Any = AutoImageProcessor if model.main_input_name == "pixel_values" else AutoTokenizer
        processor = _saved_processor(auto, name)
    return Backbone(model.to(device).eval(), processor, features, not pooler, name)


@torch.no_grad()
def embed(backbone: Backbone, domain: Domain, batch_size: int = 64, progress_bar: bool = False) -> Tensor:
    """Compute the features of every example of a domain once, so that episodes only have to look them up.

    Args:
        backbone: the backbone. It is put into evaluation mode for the computation.
        domain: the examples.
        batch_size: examples per batch.
        progress_bar: whether to show a progress bar.

    Returns:
        (N, d) features, float32, on the backbone's device.

    Raises:
        ValueError: the domain is empty; or as for `Backbone.encode`.
    """
    if not len(domain):
        raise ValueError(f"the domain {domain.name!r} has no examples to embed.")
    check_number("batch_size", batch_size, least=1, whole=True)
    starts = range(0, len(domain), batch_size)
    kept = torch.empty(0)
    with evaluation_mode(backbone.model):
        for start in tqdm(starts, desc=f"embedding {domain.name}", unit="batch", disable=not progress_bar, leave=False):
            rows = np.arange(start, min(start + batch_size, len(domain)))
            features = backbone.encode(backbone.prepare(domain, rows))
            if start == 0:
                kept = torch.empty(len(domain), features.shape[1], device=features.device)
            kept[start : start + len(rows)] = features
    return kept


def encoder_of(model: nn.Module) -> nn.Module:
    """Return the encoder inside a model: without PEFT's wrapper, classification head or, for CLIP, text tower.

    Args:
        model: the model.

    Returns:
        The encoder; the model itself if it is one.
    """
    whole: Any = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    inside = whole.base_model if isinstance(whole, PreTrainedModel) else whole
    return getattr(inside, "vision_model", inside)


def _saved_processor(auto: Any, name: str) -> Any:
    try:
        return auto.from_pretrained(name)
    except (OSError, ValueError):
        # Prepared inputs need no processor; otherwise `Backbone.prepare` reports that it is missing.
        if not Path(name).is_dir():
            raise
        return None
