"""Makes graphs of compiled models usable for two backward passes."""

from __future__ import annotations

import sys

import torch

_TAG = "no donated buffers"


def allow_two_backward_passes() -> None:
    """Let graphs of compiled models run two backward passes, as Focal-SAM and LETS need.

    By default, torch.compile lets the first backward pass overwrite ("donate") saved activations. Switching this off
    is not enough: inductor's disk cache ignores the setting (torch 2.11 to 2.13 at least), so that a graph which an
    earlier run compiled with donation would be reused, and the second pass would silently give wrong gradients.
    Therefore the cache key gets a tag, and graphs that this process has already compiled are compiled again.
    """
    import torch._functorch.config as functorch
    import torch.compiler.config as compiler

    if _TAG not in compiler.cache_key_tag:
        compiler.cache_key_tag = f"{compiler.cache_key_tag} {_TAG}".strip()
    if functorch.donated_buffer:
        functorch.donated_buffer = False
        if "torch._dynamo" in sys.modules:  # otherwise nothing has been compiled yet
            torch.compiler.reset()
