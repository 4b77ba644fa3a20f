"""Image and text classifiers of transformers whose head computes cosines. This file does not need hf_sharp.

    logits = w_c · f / ‖f‖ + b_c,   rows w_c of one length s: s times the cosine between features and class vector

b is 0 in training; a correction after it may change b, and the rows.

`CosineBertForSequenceClassification` is `BertForSequenceClassification` with such a head, and `CosineBertConfig` is its
config. The same holds for all other classifiers of transformers. `save_pretrained` copies this file into the model's
folder, and `from_pretrained(..., trust_remote_code=True)` imports it from there. The model type, such as "cosine-bert",
is unknown to transformers, so the model cannot be opened by mistake without the normalisation.
"""

from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn


class CosineLinear(nn.Linear):
    """A linear layer of normalised features: logits = W f / ‖f‖ + b. The bias is 0 in training."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, False, layer.weight.device, layer.weight.dtype)
        self.weight = layer.weight  # the parameter itself, which an optimizer may hold
        if layer.bias is not None:  # a buffer, so that checkpoints have the tensors of the original class
            del self.bias
            self.register_buffer("bias", torch.zeros_like(layer.bias.data))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.Linear)
        """Compute the logits (..., K) of features (..., d)."""
        logits = nn.functional.linear(self.normalized(input), self.weight)
        return logits if self.bias is None else logits + self.bias

    def normalized(self, input: Tensor) -> Tensor:  # noqa: A002
        """Compute f / ‖f‖ of features (..., d), of which the logits are a linear function; 0 if f is 0."""
        return nn.functional.normalize(input, dim=-1, eps=max(1e-12, torch.finfo(input.dtype).tiny))


@cache
def config_class(base: Any) -> Any:
    """Make the config class of a classifier with a cosine head, for example of `BertConfig`."""
    name = f"Cosine{base.__name__}"
    model_type = f"cosine-{base.model_type}"
    return type(name, (base,), {"model_type": model_type, "_auto_class": "AutoConfig", "__module__": __name__})


@cache
def model_class(base: Any) -> Any:
    """Make the class of a classifier with a cosine head, for example of `BertForSequenceClassification`.

    `config.cosine_head` is the name of the layer that computes the logits.
    """

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        base.__init__(self, config, *args, **kwargs)
        self.set_submodule(config.cosine_head, CosineLinear(self.get_submodule(config.cosine_head)))

    task = "ImageClassification" if base.main_input_name == "pixel_values" else "SequenceClassification"
    body = {"__init__": __init__, "__module__": __name__, "config_class": config_class(base.config_class)}
    return type(f"Cosine{base.__name__}", (base,), body | {"_auto_class": f"AutoModelFor{task}"})


def __getattr__(name: str) -> Any:
    base: Any = getattr(transformers, name.removeprefix("Cosine"), None)
    if not name.startswith("Cosine") or base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return (config_class if name.endswith("Config") else model_class)(base)
