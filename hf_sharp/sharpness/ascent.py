"""The ascent: from a gradient to a perturbation, and from the perturbed weights back to the very same weights.

ε = ρ · T² g / (‖T g‖ + 1e-12)        T = 1, or |w| + η on tensors of two or more dimensions (ASAM)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def gradients_in(gradients: list[Tensor | None], parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let backward passes in the block add to `gradients` instead of `.grad`, and leave `.grad` as it was.

    What earlier micro-batches of an accumulation window left in `.grad` survives, also when a pass raises.

    Args:
        gradients: one per parameter, or None where there is none yet; the block's are added to them.
        parameters: the tensors whose `.grad` the block uses.
    """
    kept = [parameter.grad for parameter in parameters]
    try:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        yield
        gradients[:] = [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


@torch.no_grad()
def gradient_to_perturbation(
    parameters: Sequence[Tensor], gradients: list[Tensor], rho: float, adaptive_eta: float | None = None
) -> Tensor:
    """Turn gradients into the perturbation ε, in place.

        ε = ρ · T² g / (‖T g‖ + 1e-12)

    Args:
        parameters: the tensors w that the gradients belong to.
        gradients: g, of the same shapes; they are overwritten by ε.
        rho: ρ >= 0, the length of T⁻¹ε over all tensors together.
        adaptive_eta: None for T = 1; else η of ASAM's T = |w| + η on tensors of two or more dimensions (1 on
            biases and norms).

    Returns:
        ‖T g‖ before the scaling, a 0-dimensional tensor of at least float32 on the device of the first gradient.

    Example:
        >>> w, g = [torch.zeros(2)], [torch.tensor([3.0, 4.0])]
        >>> gradient_to_perturbation(w, g, rho=0.5), g
        (tensor(5.), [tensor([0.3000, 0.4000])])

    Reference:
        SAM arXiv 2010.01412, equation 2; ASAM arXiv 2102.11600, equation 3.
    """
    matrices = [i for i, w in enumerate(parameters) if w.ndim >= 2] if adaptive_eta is not None else []
    matrix_gradients = [gradients[i] for i in matrices]
    metric: list[Tensor] = []
    if matrices and adaptive_eta is not None:
        metric = list(torch._foreach_abs([parameters[i].detach() for i in matrices]))
        torch._foreach_add_(metric, adaptive_eta)
        torch._foreach_mul_(matrix_gradients, metric)
    norm = _global_norm(gradients)
    # Adding 1e-12 to the norm makes ε = 0 where the gradient is 0, without asking the device whether it is.
    scale = rho / (norm + 1e-12)
    for device_scale, group in _by_device(gradients, scale):
        torch._foreach_mul_(group, device_scale)
    if matrices:
        torch._foreach_mul_(matrix_gradients, metric)
    return norm


@torch.no_grad()
def average_over_processes(tensors: Sequence[Tensor], bucket_bytes: int = 2**25) -> None:
    """Replace tensors by their mean over all processes, in place, with one all-reduce per bucket.

    Args:
        tensors: of the same shapes and in the same order on every process.
        bucket_bytes: how many bytes travel at once; as much memory again is needed for them.
    """
    buckets: list[list[Tensor]] = []
    room: dict[torch.dtype, int] = {}
    for tensor in sorted(tensors, key=lambda tensor: str(tensor.dtype)):
        size = tensor.numel() * tensor.element_size()
        if size > room.get(tensor.dtype, -1):
            buckets.append([])
            room = {tensor.dtype: bucket_bytes}
        room[tensor.dtype] -= size
        buckets[-1].append(tensor)
    for bucket in buckets:
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)])


@contextmanager
def perturbed(parameters: Sequence[Tensor], epsilon: list[Tensor]) -> Iterator[None]:
    """Add ε to the parameters for the time of the block; afterwards every bit of them is as it was.

    The weights are restored by copy, whatever happens in the block: subtracting ε again misses 1.5 % of float32
    weights and 29 % of bfloat16 ones.

    Args:
        parameters: the tensors to perturb, in place.
        epsilon: ε, of the same shapes. The list is emptied once it is used, so that its memory is free in the block.
    """
    weights = [parameter.detach() for parameter in parameters]
    originals = [weight.clone() for weight in weights]
    restored = False
    try:
        try:
            torch._foreach_add_(weights, epsilon)
            epsilon.clear()
            torch.clear_autocast_cache()  # an autocast region around both passes would go on using casts of w
            yield
        finally:
            torch._foreach_copy_(weights, originals)
            restored = True
    finally:
        if not restored:  # an interrupt came while the weights were being put back
            torch._foreach_copy_(weights, originals)
        torch.clear_autocast_cache()


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Undo what the block does to running statistics (BatchNorm and its kin): the pass at w alone updates them.

    Args:
        model: the module whose norm layers are looked at.
    """
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, original in zip(buffers, kept, strict=True):
            buffer.copy_(original)


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Read the random state of the CPU and of a device, so that a second pass can draw the same dropout mask."""
    if device.type == "cpu":
        return torch.get_rng_state(), None
    return torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_named(device))


def set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    """Set what `random_state` read."""
    on_cpu, on_device = state
    torch.set_rng_state(on_cpu)
    if on_device is not None:
        torch.get_device_module(device).set_rng_state(on_device, *_named(device))


def _named(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one mps device, and torch.mps takes no name for it


def _global_norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = torch._foreach_norm(
        list(tensors), 2, dtype=torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    )
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))


def _by_device(tensors: Sequence[Tensor], scale: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        yield scale.to(device), [tensor for tensor in tensors if tensor.device == device]
