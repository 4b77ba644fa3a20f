"""LoRA adapters, through PEFT."""

from __future__ import annotations

import importlib
import re
from typing import Any

from torch import nn

from hf_sharp.few_shot.backbone import encoder_of


def add_lora(model: nn.Module, rank: int, alpha: int) -> Any:
    """Freeze a model and add LoRA adapters to every linear layer of its encoder; a classification head stays trainable.

    Args:
        model: an encoder, or a model with an encoder and a classification head. It is changed in place.
        rank: the rank of the adapters.
        alpha: LoRA's scale; the adapters' output is multiplied by alpha / rank.

    Returns:
        The PEFT model; `merge_and_unload()` merges the adapters into the weights.

    Raises:
        ImportError: PEFT is not installed.

    Reference:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.
    """
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ImportError("LoRA adapters need PEFT: pip install peft.") from error
    encoder = encoder_of(model)
    heads = [name for name, child in model.named_children() if encoder not in set(child.modules())]
    heads = [] if encoder is model else heads
    inside_heads = rf"({'|'.join(map(re.escape, heads))})(\..*)?" if heads else None
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules="all-linear", exclude_modules=inside_heads, modules_to_save=heads
    )
    return peft.get_peft_model(model, config)
