"""Compiled models: graphs that serve two backward passes."""

from __future__ import annotations

import sys

import torch

_TAG = "no donated buffers"


def allow_two_backward_passes() -> None:
    """Let graphs of compiled models serve two backward passes, as Focal-SAM and LETS need.

    By default, torch.compile lets the first backward pass overwrite ("donate") activations that it saved. Switching
    that off is not enough: inductor's cache on the disk does not record it (torch 2.11 to 2.13 at least), so a graph
    that an earlier run compiled with donation would serve again, and the second pass would give wrong gradients without
    an error. So the key of the cache gets a tag, and graphs that this process compiled before are compiled again.
    """
    import torch._functorch.config as functorch
    import torch.compiler.config as compiler

    if _TAG not in compiler.cache_key_tag:
        compiler.cache_key_tag = f"{compiler.cache_key_tag} {_TAG}".strip()
    if functorch.donated_buffer:
        functorch.donated_buffer = False
        if "torch._dynamo" in sys.modules:  # else nothing is compiled yet
            torch.compiler.reset()
