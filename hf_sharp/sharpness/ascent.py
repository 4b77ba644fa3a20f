"""The ascent: turns a gradient into a perturbation, applies it, and restores exactly the original weights.

ε = ρ · T² g / (‖T g‖ + 1e-12)        T = 1, or |w| + η on all tensors or on matrices (ASAM)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

ADAPTIVE_SCOPES = ("all", "matrices")


@contextmanager
def gradients_in(gradients: list[Tensor | None], parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let backward passes in the block add to `gradients` instead of `.grad`, and leave `.grad` as it was.

    Gradients of earlier micro-batches in `.grad` are preserved, even if a pass raises.

    Args:
        gradients: one per parameter, or None if there is none yet; the block's gradients are added to them.
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
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rho: Tensor | float,
    adaptive_eta: float | None = None,
    adaptive_scope: str = "matrices",
) -> Tensor:
    """Turn gradients into the perturbation ε, in place.

        ε = ρ · T² g / (‖T g‖ + 1e-12)

    Args:
        parameters: the tensors w; for sharded ones (DTensor), every process passes its own part.
        gradients: g, of the same shapes; they are overwritten by ε.
        rho: ρ >= 0, the L2 norm of T⁻¹ε over all tensors together, on all processes.
        adaptive_eta: None for T = 1; else η of ASAM's T = |w| + η.
        adaptive_scope: where T = |w| + η: on "all" tensors, or on "matrices", those of two or more dimensions, with
            T = 1 on biases and norms.

    Returns:
        ‖T g‖ before the scaling, a 0-dimensional tensor of at least float32 on the device of the first gradient.

    Example:
        >>> w, g = [torch.zeros(2)], [torch.tensor([3.0, 4.0])]
        >>> gradient_to_perturbation(w, g, rho=0.5), g
        (tensor(5.), [tensor([0.3000, 0.4000])])

    Reference:
        SAM arXiv 2010.01412, equation 2; ASAM arXiv 2102.11600, equation 3.
    """
    scaled: list[int] = []
    if adaptive_eta is not None:
        scaled = [i for i, w in enumerate(parameters) if adaptive_scope == "all" or w.ndim >= 2]
    scaled_gradients = local_parts([gradients[i] for i in scaled])
    metric: list[Tensor] = []
    if scaled and adaptive_eta is not None:
        metric = list(torch._foreach_abs(local_parts([parameters[i] for i in scaled])))
        torch._foreach_add_(metric, adaptive_eta)
        torch._foreach_mul_(scaled_gradients, metric)
    norm = global_norm(gradients)
    # Adding 1e-12 to the norm makes ε = 0 if the gradient is 0, without reading from the device.
    scale = (norm + 1e-12).reciprocal() * (rho.to(norm) if isinstance(rho, Tensor) else rho)
    for device_scale, group in _by_device(local_parts(gradients), scale):
        # In float16, a scale beyond its range would turn a zero gradient into NaN.
        torch._foreach_mul_(group, device_scale.clamp(max=torch.finfo(group[0].dtype).max))
    if scaled:
        torch._foreach_mul_(scaled_gradients, metric)
    return norm


def with_gradients(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    average: Callable[[Sequence[Tensor]], None] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Select the parameters that have a gradient, and their gradients.

    Args:
        parameters: the tensors.
        gradients: one per parameter, or None.
        average: averages gradients over processes, in place. A parameter without a gradient in this process may have
            one in another.

    Returns:
        The parameters that have a gradient, and their gradients.
    """
    if average is not None:
        filled = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        average(filled)
        return list(parameters), filled
    pairs = [pair for pair in zip(parameters, gradients, strict=True) if pair[1] is not None]
    return [parameter for parameter, _ in pairs], [cast(Tensor, gradient) for _, gradient in pairs]


@torch.no_grad()
def average_over_processes(tensors: Sequence[Tensor], bucket_bytes: int = 2**25) -> None:
    """Replace tensors by their mean over all processes, in place, with one all-reduce per bucket.

    Args:
        tensors: of the same shapes and in the same order on every process.
        bucket_bytes: the number of bytes per all-reduce; a copy of that size is made.
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


_GROUP = 16  # the number of tensors perturbed at once


@contextmanager
def perturbed(parameters: Sequence[Tensor], epsilon: list[Tensor]) -> Iterator[None]:
    """Add ε to the parameters within the block; afterwards they have exactly their old values.

    The weights are restored from a copy, even after an error: subtracting ε would miss 1.5 % of float32 weights and
    29 % of bfloat16 ones.

    Args:
        parameters: the tensors to perturb, in place.
        epsilon: ε, of the same shapes. The list is emptied on the way, to free its memory.
    """
    weights, originals = local_parts(parameters), list[Tensor]()
    restored = False
    try:
        try:
            _move(weights, epsilon, originals)
            torch.clear_autocast_cache()  # an autocast region around both passes would reuse its casts of w
            yield
        finally:
            _restore(weights, originals)
            restored = True
    finally:
        if not restored:  # interrupted while the weights were being restored
            _restore(weights, originals)
        torch.clear_autocast_cache()


@torch.no_grad()
def _move(weights: list[Tensor], epsilon: list[Tensor], originals: list[Tensor]) -> None:
    for start in range(0, len(weights), _GROUP):  # the memory freed by one group of ε holds the next originals
        group = weights[start : start + _GROUP]
        copies = [torch.empty_like(weight) for weight in group]
        torch._foreach_copy_(copies, group)  # a few kernels on a GPU, where clone() launches one per tensor
        originals += copies
        torch._foreach_add_(group, local_parts(epsilon[:_GROUP]))
        del epsilon[:_GROUP]


@torch.no_grad()
def _restore(weights: list[Tensor], originals: list[Tensor]) -> None:
    if originals:
        torch._foreach_copy_(weights[: len(originals)], originals)


def local_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return detached tensors for elementwise computation; for sharded ones (DTensor), this process's part."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


@contextmanager
def shards_only(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Make FSDP2 drop weights gathered by an earlier pass, and, after an error, those gathered in the block.

    A gathered weight is stale once its shards change; after an error it would be a perturbed weight.

    Args:
        modules: all modules of a model, including those that FSDP2 shards.
    """
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.reshard()
    try:
        yield
    except BaseException:
        if sharded and hasattr(sharded[0], "reset_iter_state"):  # the outermost one; torch 2.13 and later
            sharded[0].reset_iter_state()
        raise


@torch.no_grad()
def vanishing_share(parameters: Sequence[Tensor], epsilon: Sequence[Tensor]) -> Tensor:
    """Measure the share of nonzero entries of ε that rounding loses when ε is added to the parameters.

    Args:
        parameters: the tensors that ε belongs to.
        epsilon: ε, of the same shapes.

    Returns:
        A 0-dimensional float32 tensor from 0 to 1, on the device of the first parameter, for this process's shards.

    Example:
        >>> w, e = [torch.ones(2, dtype=torch.bfloat16)], [torch.tensor([0.001, 0.5], dtype=torch.bfloat16)]
        >>> vanishing_share(w, e)
        tensor(0.5000)
    """
    counts = torch.zeros(2, device=parameters[0].device)
    for weight, change in zip(local_parts(parameters), local_parts(epsilon), strict=True):
        some = change != 0
        counts += torch.stack([(some & (weight + change == weight)).sum(), some.sum()]).to(counts.device)
    return counts[0] / counts[1]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the L2 norm over all entries of tensors, including the shards of other processes: 0-dimensional."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    norms = []
    for sharded in (False, True):
        if group := [tensor for tensor in tensors if isinstance(tensor, DTensor) is sharded]:
            each = torch._foreach_norm(group, 2, dtype=dtype)
            device = tensors[0].device
            norm = torch.linalg.vector_norm(torch.stack([n if n.device == device else n.to(device) for n in each]))
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)  # over all shards
    return torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]


def inner_product(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Compute the inner product of two lists of tensors of the same shapes, in at least float32: 0-dimensional."""
    dtype = torch.promote_types(one[0].dtype, torch.float32)
    products = [(a.to(dtype) * b.to(dtype)).sum().to(one[0].device) for a, b in zip(one, other, strict=True)]
    return torch.stack(products).sum()


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters that require a gradient, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def widest_dtype(model: nn.Module) -> torch.dtype:
    """Find the dtype that can hold every floating-point parameter of a model without rounding."""
    return functools.reduce(torch.promote_types, {p.dtype for p in model.parameters() if p.is_floating_point()})


# The names under which optimizers keep their first moments; the last is bitsandbytes'.
FIRST_MOMENTS = ("exp_avg", "momentum_buffer", "state1")


def check_first_moment(optimizer: Any) -> None:
    """Raise a ValueError if an optimizer keeps no first moment of the gradients."""
    # Schedule-free optimizers keep `weight_sum` instead; GaLore and APOLLO keep that of projected gradients, of a rank.
    for group in optimizer.param_groups:
        decay = group.get("momentum") or group.get("beta1") or (group.get("betas") or [0])[0]
        if not decay or {"weight_sum", "rank"} & {*group}:
            name = type(getattr(optimizer, "optimizer", optimizer)).__name__  # accelerate wraps it
            raise ValueError(
                f"ascent='momentum' needs the optimizer's first moment, and {name} keeps none with "
                "these options. Use adamw_torch, or sgd with optim_args='momentum=0.9', or ascent='gradient'."
            )


@torch.no_grad()
def first_moments(optimizer: Any, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Copy the first moments that an optimizer keeps: running means, or sums, of the gradients.

    Args:
        optimizer: the optimizer of the parameters.
        parameters: the tensors.

    Returns:
        One tensor per parameter, of its dtype; None if the optimizer has no state for it yet.

    Raises:
        ValueError: the optimizer has taken a step, but keeps no first moment.
    """
    moments: list[Tensor | None] = []
    kept: list[Tensor] = []
    for parameter in parameters:
        state = optimizer.state.get(parameter) or {}
        moment = next((state[name] for name in FIRST_MOMENTS if state.get(name) is not None), None)
        if moment is not None and moment.dtype == torch.uint8:
            moment = _dequantized(moment, state["qmap1"], state["absmax1"])
        if state and (moment is None or moment.shape != parameter.shape):  # GaLore's is that of projected gradients
            raise ValueError(
                f"ascent='momentum' needs the optimizer's first moment ({' or '.join(FIRST_MOMENTS)}), and its state "
                f"has {', '.join(map(str, state))}. Use another optimizer, such as adamw_torch, or ascent='gradient'."
            )
        moments.append(None if moment is None else torch.empty_like(moment, dtype=parameter.dtype))
        kept += [] if moment is None else [moment]
    if kept:
        copies = [copy for copy in moments if copy is not None]
        torch._foreach_copy_(local_parts(copies), local_parts(kept))  # a few kernels on a GPU
    return moments


def _dequantized(codes: Tensor, values: Tensor, absmax: Tensor) -> Tensor:
    # bitsandbytes' blockwise quantization: a value per code, times the block's largest absolute value.
    block = next(size for size in (256, 2048, 4096) if -(-codes.numel() // size) == absmax.numel())
    scale = absmax.repeat_interleave(block)[: codes.numel()]
    return (values[codes.flatten().long()] * scale).view(codes.shape)


def _by_device(tensors: Sequence[Tensor], scale: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        yield scale.to(device), [tensor for tensor in tensors if tensor.device == device]
