"""Opens a PEFT adapter that was saved alone, and merges it into its base model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from hf_sharp.recipe.models import class_for, head_options
from hf_sharp.recipe.recorded import recorded

_ADAPTER = "adapter_config.json"


def base_of_adapter(name: str) -> str | None:
    """Return the name of an adapter's base model.

    Args:
        name: the folder of a model.

    Returns:
        The base model's folder or Hub name; None if the folder contains a complete model, or is not a folder.

    Raises:
        ValueError: the adapter does not name its base model.
    """
    file = Path(name, _ADAPTER)
    if not file.is_file() or Path(name, "config.json").is_file():
        return None
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"the model {name!r} is an adapter that names no base model, such as that of a model trained from scratch. "
            "Train again with --peft_merge true, or merge it where its base model is: model.merge_and_unload()."
        )
    return str(base)


def open_merged(auto: Any, name: str, base: str, trust_remote_code: bool = False) -> Any:
    """Open the base model of an adapter with the classes of the training, and merge the adapter into it.

    Args:
        auto: the transformers class, such as `AutoModelForImageClassification`.
        name: the adapter's folder.
        base: the base model, as `base_of_adapter` returns it.
        trust_remote_code: whether to run code that comes with the base model.

    Returns:
        The merged model, on the CPU.

    Raises:
        ValueError: PEFT is not installed or cannot merge the adapter, or the base model is for another task or needs
            code that is not trusted.
    """
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ValueError(
            f"the model {name!r} is an adapter, which PEFT opens: pip install 'hf-sharp[peft]'."
        ) from error
    kind, _ = class_for(auto, base, trust_remote_code)
    names = recorded(name).get("model", {}).get("class_names")
    options: dict[str, Any] = head_options(names) if names else {}
    options |= {"trust_remote_code": True} if trust_remote_code else {}
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # hide its warning of a new head, because the adapter contains the head
    try:
        model = kind.from_pretrained(
            base, ignore_mismatched_sizes=True, problem_type="single_label_classification", **options
        )
        return peft.PeftModel.from_pretrained(model, name).merge_and_unload()
    except NotImplementedError as error:
        raise ValueError(
            f"the model {name!r} is an adapter of a type that PEFT cannot merge into the base model, as this command "
            "needs it. Use peft.PeftModel.from_pretrained in a script."
        ) from error
    finally:
        transformers_logging.set_verbosity(level)


def merged_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the record of a training, changed for a model whose adapters were merged.

    Args:
        record: the record, as `recorded` returns it.

    Returns:
        A copy in which the model's library and the state of its adapters are changed.
    """
    merged = dict(record)
    if "model" in merged:
        merged["model"] = merged["model"] | {"library": "transformers"}
    if "adapter" in merged:
        merged["adapter"] = merged["adapter"] | {"merged": True}
    return merged
