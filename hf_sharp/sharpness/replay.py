"""Lets both passes of a step share random numbers, and keeps the second pass from changing running statistics.

Dropout draws with torch; models and collators may also draw with NumPy or Python's `random` (SpecAugment does).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def running_statistics_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo the block's updates of running statistics (BatchNorm and similar), which only the pass at w should make.

    Args:
        modules: the modules of a model.
    """
    buffers = [
        buffer
        for module in modules
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, original in zip(buffers, kept, strict=True):
            buffer.copy_(original)


class RandomState(NamedTuple):
    """The random state of the CPU, of devices, of NumPy and of Python."""

    torch: dict[torch.device, Tensor]
    numpy: Any
    python: Any


def random_state(devices: Iterable[torch.device]) -> RandomState:
    """Read the random state, so that a second pass can draw the same numbers.

    Args:
        devices: the devices of the model; the CPU's state is always read.

    Returns:
        The random state.

    Example:
        >>> state = random_state([])
        >>> first = torch.rand(1).item(), np.random.rand(), random.random()
        >>> set_random_state(state)
        >>> (torch.rand(1).item(), np.random.rand(), random.random()) == first
        True
    """
    states = {torch.device("cpu"): torch.get_rng_state()}
    for device in devices:
        if device.type not in ("cpu", "meta"):
            states[device] = torch.get_device_module(device).get_rng_state(*_named(device))
    return RandomState(states, np.random.get_state(), random.getstate())


def set_random_state(state: RandomState) -> None:
    """Set the random state that `random_state` returned."""
    for device, value in state.torch.items():
        if device.type == "cpu":
            torch.set_rng_state(value)
        else:
            torch.get_device_module(device).set_rng_state(value, *_named(device))
    np.random.set_state(state.numpy)
    random.setstate(state.python)


@contextmanager
def random_state_kept(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore the random state of the CPU and of these devices after the block."""
    state = random_state(devices)
    try:
        yield
    finally:
        set_random_state(state)


def _named(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # torch.mps takes no device: there is only one
