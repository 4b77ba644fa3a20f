"""Weights out of a checkpoint, under whatever key names it was saved."""

from __future__ import annotations

import copy
import functools
import os
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel


def is_whole_model(model: Any, folder: str | os.PathLike[str]) -> TypeGuard[PreTrainedModel]:
    """Say whether a folder holds all weights of a transformers model, not an adapter's or another module's."""
    adapter = os.path.isfile(os.path.join(folder, "adapter_config.json"))
    return isinstance(model, PreTrainedModel) and not adapter


def load_weights(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Load a saved model's weights into a model, in place, under whatever key names they were saved.

    Args:
        model: the model to load into.
        folder: a folder that `save_pretrained` or a checkpoint wrote.

    Raises:
        ValueError: a key is missing in the checkpoint or unknown to the model.
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"the checkpoint {os.fspath(folder)!r} is not a folder.")
    saved = copy.deepcopy(model)

    class AsItIs(type(model)):  # type: ignore[misc]
        """Makes `from_pretrained` load into a copy of the model at hand, which its config may not describe in full."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return saved  # not of this class, so that __init__ is not called

    _, report = AsItIs.from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=widest_dtype(model),  # so that no parameter is rounded on its way
        output_loading_info=True,
        local_files_only=True,
    )
    check_keys(os.fspath(folder), report["missing_keys"], report["unexpected_keys"])
    model.load_state_dict(saved.state_dict())


def check_keys(source: str, missing: Any, unexpected: Any) -> None:
    """Raise a ValueError that names the keys which a checkpoint lacks, or has too many."""
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit the model: missing {sorted(missing) or 'nothing'}, unexpected "
            f"{sorted(unexpected) or 'nothing'}. It was saved from another model, or is incomplete."
        )


def widest_dtype(model: nn.Module) -> torch.dtype:
    """Find the type that holds every floating-point parameter of a model without rounding."""
    return functools.reduce(torch.promote_types, {p.dtype for p in model.parameters() if p.is_floating_point()})
