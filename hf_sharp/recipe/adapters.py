"""Parameter-efficient fine-tuning in the recipes: PEFT adapters in the encoder, and a fully trained head."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_sharp.model.cosine_head import CosineHead
from hf_sharp.registry.json_text import read_json
from hf_sharp.registry.limits import check_number
from hf_sharp.trainer.head_start import make_cosine_head
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)

_RANK = 8


@dataclass
class AdapterArguments:
    """Options of adapters that are trained instead of the encoder's weights."""

    peft: dict | str | None = field(
        default=None,
        metadata={
            "help": "Train only PEFT adapters and the head: lora, or a YAML or JSON mapping with the type of adapter "
            "and the options of its PEFT config."
        },
    )
    peft_rank: int | None = field(default=None, metadata={"help": f"LoRA: the rank of the adapters; {_RANK}."})
    peft_alpha: float | None = field(
        default=None, metadata={"help": "LoRA: alpha; adapters are scaled by alpha / rank. Default: twice the rank."}
    )
    peft_targets: list[str] | None = field(
        default=None,
        metadata={
            "help": "Ends of the names of the layers to adapt. Default: all linear layers of the encoder, or, for "
            "ln_tuning, its norms."
        },
    )
    peft_merge: bool = field(
        default=True, metadata={"help": "Merge the adapters into the weights of the saved model, for pipeline()."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.peft, str) and (self.peft.lstrip().startswith("{") or self.peft.endswith(".json")):
            self.peft = read_json("peft", self.peft)
        if isinstance(self.peft, str):
            self.peft = None if self.peft.lower() == "none" else {"type": self.peft}
        if isinstance(self.peft, dict) and "type" not in self.peft:
            raise ValueError(f"peft needs a type, such as lora; it has {', '.join(map(repr, self.peft)) or 'nothing'}.")
        names = ("peft_rank", "peft_alpha", "peft_targets")
        unused = [name for name in names if getattr(self, name) is not None]
        if self.peft is None and (unused or not self.peft_merge):
            raise ValueError(f"{(unused or ['peft_merge'])[0]} has no effect without peft. Add --peft lora.")
        of_lora = [name for name in unused if name != "peft_targets"]
        if isinstance(self.peft, dict) and str(self.peft["type"]).lower() != "lora" and of_lora:
            raise ValueError(
                f"{of_lora[0]} is an option of lora. Put the options of {self.peft['type']!r} into the mapping peft."
            )
        for name, whole in (("peft_rank", True), ("peft_alpha", False)):
            check_number(name, getattr(self, name), above=0, whole=whole, optional=True)

    def options(self) -> dict[str, Any]:
        """Collect the options of the PEFT config, without its type."""
        mapping = dict(self.peft) if isinstance(self.peft, dict) else {}
        options: dict[str, Any] = {}
        if str(mapping.pop("type", "")).lower() == "lora":
            rank = self.peft_rank or mapping.get("r") or _RANK
            options = {"r": rank, "lora_alpha": self.peft_alpha or mapping.get("lora_alpha") or 2 * rank}
        if self.peft_targets is not None:
            options["target_modules"] = list(self.peft_targets)
        return mapping | options


def add_adapters(
    model: PreTrainedModel, num_classes: int, adapters: AdapterArguments, args: SharpTrainingArguments
) -> Any:
    """Freeze a classifier and add adapters to its encoder; the head and a pooler, if any, stay trainable.

    If a cosine head is asked for, it is made first, because it changes the model that gets the adapters.

    Args:
        model: the classifier, changed in place.
        num_classes: K.
        adapters: the options of the adapters.
        args: `cosine_head` and its options, and whether FSDP is used.

    Returns:
        The PEFT model, or `model` if no adapters were asked for.

    Raises:
        ValueError: PEFT is not installed, the type is unknown or has no layers to adapt, an option does not exist, or
            the adapters could not be saved as asked.

    Reference:
        LoRA: Hu et al., arXiv 2106.09685. For long tails: LIFT, arXiv 2309.10019.
    """
    if not isinstance(adapters.peft, dict):
        return model
    kind, peft = str(adapters.peft["type"]), _import_peft()
    config_class = _config_class(peft, kind)
    if args.cosine_head and not adapters.peft_merge:
        raise ValueError(
            "peft_merge=false would save an adapter without the LayerNorm that cosine_head changes, so that the saved "
            "adapter would give other predictions. Leave peft_merge on, or cosine_head off."
        )
    make_cosine_head(model, num_classes, args)
    heads = head_modules(model)
    options = adapters.options()
    known = {item.name for item in fields(config_class) if item.init}
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"peft: {unknown[0]!r} is not an option of {kind!r}; its options are {', '.join(sorted(known))}."
        )
    options.setdefault("modules_to_save", heads)
    options.setdefault("target_modules", _layers(model, heads, norms=kind.upper() == "LN_TUNING"))
    if kind.upper() == "IA3":  # PEFT knows the layers whose inputs are scaled, instead of outputs, for some models only
        options.setdefault("feedforward_modules", [])
    try:
        return peft.get_peft_model(model, config_class(**options))
    except ValueError as error:  # raised by PEFT
        raise ValueError(
            f"adapters of type {kind!r} cannot be added to {type(model).__name__}: {error} Name layers with "
            "--peft_targets, and set the other options in the mapping peft."
        ) from error


def merge_adapters(trainer: SharpTrainer, merge: bool = True) -> dict[str, Any]:
    """Merge the adapters of a trained model into its weights, if it has any.

    Args:
        trainer: a trainer after training; its model is replaced by the merged model.
        merge: False keeps the adapters separate, so that only they are saved.

    Returns:
        The `adapter` record of the results: type, options and number of trained parameters, and whether it is merged.
        Empty for a model without adapters.
    """
    model: Any = trainer.model
    if not hasattr(model, "peft_config"):
        return {}
    config = next(iter(model.peft_config.values()))
    names = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora")
    record = {name: value for name in names if (value := getattr(config, name, None))}
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    record |= {"type": config.peft_type.value, "trained_parameters": trained, "merged": merge}
    if merge:
        try:
            trainer.model = trainer.model_wrapped = model.merge_and_unload()
        except (NotImplementedError, AttributeError, ValueError) as error:  # PEFT raises these before it merges a layer
            logger.warning("The adapters cannot be merged, and are saved alone (--peft_merge false): %s", error)
            record["merged"] = False
    return {"adapter": record}


def check_merging(trainer: SharpTrainer, merge: bool) -> None:
    """Raise a ValueError before training if the adapters could not be merged after training."""
    if merge and trainer.is_fsdp_enabled and hasattr(trainer.model, "peft_config"):
        raise ValueError("adapters cannot be merged into a model that FSDP2 has sharded. Add --peft_merge false.")


def head_modules(model: PreTrainedModel) -> list[str]:
    """List the layers to train fully: those outside the encoder, and those of a pooler inside it.

    Args:
        model: an image or sequence classifier.

    Returns:
        The names of single layers, because most types of adapters cannot be merged if larger modules are trained
        fully. Layers without trainable parameters are left out.
    """
    encoder = getattr(model, model.base_model_prefix, None)
    outside = [name for name, child in model.named_children() if child is not encoder and not _encodes(child)]
    poolers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "pooler"]
    layers = {
        ".".join(filter(None, (head, name))): layer
        for head in (*outside, *poolers)
        for name, layer in model.get_submodule(head).named_modules()
    }
    return [name for name, layer in layers.items() if any(weight.requires_grad for weight in layer.parameters(False))]


def _encodes(module: nn.Module) -> bool:
    # Also recognizes an encoder that is not where base_model_prefix says, such as CLIP's vision_model.
    return isinstance(module, PreTrainedModel) or any(isinstance(part, nn.ModuleList) for part in module.modules())


def _layers(model: nn.Module, heads: list[str], norms: bool) -> list[str]:
    inside = {id(part) for name in heads for part in model.get_submodule(name).modules()}
    layers = [
        name
        for name, module in model.named_modules()
        if (_is_norm(module) if norms else isinstance(module, nn.Linear))
        and not isinstance(module, CosineHead)
        and id(module) not in inside
    ]
    if not layers:
        raise ValueError(
            f"peft: {type(model).__name__} has no {'LayerNorms' if norms else 'linear layers'} outside its head. Name "
            "the layers with --peft_targets."
        )
    return layers


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith("RMSNorm")


def _import_peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ValueError("--peft needs PEFT: pip install 'hf-sharp[peft]'.") from error


def _config_class(peft: Any, kind: str) -> Any:
    mapping = {
        getattr(name, "value", name): config for name, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    usable = {
        name: config
        for name, config in mapping.items()
        if {"target_modules", "modules_to_save"} <= {item.name for item in fields(config)}
    }
    if kind.upper() not in mapping:
        raise ValueError(f"unknown type of peft {kind!r}; PEFT has {', '.join(sorted(map(str.lower, usable)))}.")
    if kind.upper() not in usable:
        raise ValueError(
            f"peft type {kind!r} adapts no layers of a classifier. Choose lora, or another type with layers."
        )
    return usable[kind.upper()]
