"""Converts what users have, such as logits on a GPU, to NumPy arrays. Works without torch."""

from __future__ import annotations

from typing import Any

import numpy as np


def as_array(values: Any, dtype: Any = None) -> np.ndarray:
    """Convert values to a NumPy array.

    Args:
        values: anything that NumPy takes; or a torch tensor on any device, in any dtype, with or without gradients.
        dtype: the array's dtype; None keeps that of the values (float32 for bfloat16, which NumPy does not have).

    Returns:
        The array. It may share memory with the values.

    Example:
        >>> import torch
        >>> as_array(torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True))
        array([1., 2.], dtype=float32)
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values, dtype)


def holds_bool(values: Any) -> bool:
    """Tell whether True or False is among values, which arrays of numbers would take for 1 and 0.

    Args:
        values: anything that `as_array` takes; lists may be nested.

    Example:
        >>> holds_bool([[0, 1], [True, 0]]), holds_bool([1.0, "a"])
        (True, False)
    """
    return any(isinstance(value, (bool, np.bool_)) for value in as_array(values, object).flat)
