"""The model of a recipe: from scratch, or pretrained with its head aligned to the classes of the data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from hf_sharp.data.class_names import are_indices, match_names, real_names
from hf_sharp.data.local_names import ORDER, near_here, refuse_no_model
from hf_sharp.model.class_rows import permute_classes, renew_head
from hf_sharp.model.modeling_cosine_head import model_class
from hf_sharp.recipe.arguments import ModelArguments
from hf_sharp.recipe.boundary import stage

logger = logging.getLogger(__name__)

_LOADED: set[str] = set()  # models whose loading this process has already logged
_REMEDY = "For a new head on the data's classes add --new_head true; to rename the data's classes use --class_names."


_CLASSIFIERS: dict[str, tuple[Any, str]] = {
    "AutoModelForImageClassification": (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "pictures"),
    "AutoModelForSequenceClassification": (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "texts"),
}
_RECIPES = {"pictures": "image_classification.py", "texts": "text_classification.py"}


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Turn exceptions of loading a model into one line that says what a model's name can be."""
    expected = f"Expected a folder with its files, or a name on the Hub.{near_here(name)}"
    with stage(f"the model {name!r} cannot be loaded", expected):
        yield


def class_for(auto: Any, name: str, trust_remote_code: bool = False) -> tuple[Any, PreTrainedConfig]:
    """Find the class that opens a checkpoint, and its config, without running code from its folder unless trusted.

    A cosine head of hf_sharp is saved with its code, but its class is taken from this package.

    Args:
        auto: the transformers class, such as `AutoModelForImageClassification`.
        name: the model's folder or Hub name.
        trust_remote_code: whether to run code that comes with the weights.

    Returns:
        The class, which has `from_pretrained`, and the config.

    Raises:
        ValueError: the model does not exist, is for another task, or needs its own code, which is not trusted.
    """
    refuse_no_model(name)
    if Path(name).is_dir() and not Path(name, "config.json").exists():
        raise ValueError(f"the model {name!r} cannot be loaded: the folder has no config.json. {ORDER}")
    values, _ = PreTrainedConfig.get_config_dict(name)
    own = str((values.get("architectures") or [""])[0])
    if "auto_map" not in values:
        config = AutoConfig.from_pretrained(name)
        known, what = _CLASSIFIERS.get(getattr(auto, "__name__", ""), ((config.model_type,), ""))
        if config.model_type not in known:
            others = [other for kinds, other in _CLASSIFIERS.values() if config.model_type in kinds]
            hint = f", or train on {others[0]} with recipes/{_RECIPES[others[0]]}" if others else ""
            raise ValueError(
                f"the model {name!r} ({config.model_type}) does not classify {what}. Name another model{hint}."
            )
        return auto, config
    base = getattr(transformers, own.removeprefix("Cosine"), None)
    if own.startswith("Cosine") and "cosine_head" in values and base is not None:
        kind = model_class(base)
        return kind, kind.config_class.from_pretrained(name)
    if not trust_remote_code:
        raise ValueError(
            f"the model {name!r} needs its own code ({', '.join(map(str, values['auto_map'].values()))}), which "
            "could do anything on this machine. If you trust its authors, add --trust_remote_code true."
        )
    return auto, AutoConfig.from_pretrained(name, trust_remote_code=True)


def load_model(auto: Any, model: ModelArguments, class_names: Sequence[str]) -> PreTrainedModel:
    """Load a pretrained model for named classes, or make one from its config.

    The rows of a pretrained head are aligned with the classes by name. The head is newly initialized if the checkpoint
    has none, if its classes have no names and a different number, if it is for regression or multi-label
    classification, or with `new_head`.

    Args:
        auto: the transformers class, such as `AutoModelForImageClassification`.
        model: the options of the model.
        class_names: K names, in the order of the class indices.

    Returns:
        The model, with the names in its config.

    Raises:
        ValueError: the checkpoint cannot be loaded, or its head is for other classes.
    """
    head = head_options(class_names)
    if not model.model_name_or_path:
        config = model.make_config(**head)
        with stage("no model can be made from model_config"):
            return auto.from_config(config)
    name = model.model_name_or_path
    with loading(name):
        kind, config = class_for(auto, name, model.trust_remote_code)
        names = _names(config)
        order = None
        if not model.new_head:
            order = match_names(class_names, names, "the data", f"the model {name!r}", remedy=_REMEDY)
            if order is None and names is not None and len(names) == len(class_names) and are_indices(class_names):
                head = head_options(names)
        trusted = {"trust_remote_code": True} if model.trust_remote_code else {}
        with _log_level_once(name) as tell:
            loaded = kind.from_pretrained(
                name, **trusted, ignore_mismatched_sizes=True, problem_type="single_label_classification", **head
            )
            if model.new_head or _another_task(config):
                logger.log(tell, "%s: the head is new, for %d classes.", name, len(class_names))
                renew_head(loaded)
            elif order is not None:
                logger.log(tell, "%s: the head's rows were put into the order of the data's classes, by name.", name)
                permute_classes(loaded, order)
    return loaded


@contextmanager
def _log_level_once(name: str) -> Iterator[int]:
    """Yield the log level for messages on a model: a warning the first time; later, all messages are hidden."""
    level = transformers_logging.get_verbosity()
    try:
        if name in _LOADED:
            transformers_logging.set_verbosity_error()
        yield logging.DEBUG if name in _LOADED else logging.WARNING
    finally:
        transformers_logging.set_verbosity(level)
    _LOADED.add(name)


def head_options(class_names: Sequence[str]) -> dict[str, Any]:
    """Make the config options of a classification head for named classes."""
    return {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }


def _another_task(config: PreTrainedConfig) -> bool:
    return config.num_labels == 1 or config.problem_type in ("regression", "multi_label_classification")


def _names(config: PreTrainedConfig) -> list[str] | None:
    if _another_task(config) or not any("Classification" in word for word in config.architectures or ()):
        return None  # the head will be new anyway
    return real_names(config.id2label, int(config.num_labels or 0))
