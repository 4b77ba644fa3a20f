"""Reorder or reinitialize the rows of a model's head, one row per class.

A parameter has one row per class if its shape changes with the number of classes. This test works for linear layers,
convolutions and heads of several layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel


def class_axes(model: PreTrainedModel) -> dict[str, int]:
    """Find the parameters and buffers with one row per class, and the axis of the classes.

    Args:
        model: a classifier of transformers with K classes.

    Returns:
        The name of each such tensor, mapped to its class axis.

    Raises:
        ValueError: no tensor's shape depends on the number of classes.
    """
    shapes = []
    for more in (0, 1):
        config = copy.deepcopy(model.config)
        config.num_labels = int(model.config.num_labels or 0) + more
        with torch.device("meta"):
            shapes.append({name: value.shape for name, value in type(model)(config).state_dict().items()})
    axes = {}
    for name, shape in shapes[0].items():
        if shape != shapes[1][name]:
            axes[name] = next(axis for axis in range(len(shape)) if shape[axis] != shapes[1][name][axis])
    if not axes:
        raise ValueError(f"no layer of {type(model).__name__} depends on the number of classes; it has no head.")
    return axes


@torch.no_grad()
def permute_classes(model: PreTrainedModel, order: Sequence[int] | np.ndarray) -> None:
    """Reorder the rows of the head, in place.

    Args:
        model: a classifier of transformers with K classes.
        order: (K,) a permutation: row i of the new head is row `order[i]` of the old one.
    """
    state, index = model.state_dict(), torch.as_tensor(list(order))
    for name, axis in class_axes(model).items():
        state[name].copy_(state[name].index_select(axis, index.to(state[name].device)))


@torch.no_grad()
def renew_head(model: PreTrainedModel) -> None:
    """Reinitialize the head in place, as transformers initializes a new one.

    Args:
        model: a classifier of transformers.
    """
    for module in {model.get_submodule(name.rpartition(".")[0]) for name in class_axes(model)}:
        for value in [module, *module.parameters(recurse=False), *module.buffers(recurse=False)]:
            setattr(value, "_is_hf_initialized", False)  # noqa: B010 (what transformers sets)
        model._initialize_weights(module)
