"""The passes of one sharpness-aware gradient.

    g_c  = ∇ mean(c_y · ℓ)(w)                                              first pass
    ε    = ρ · T² g_c / (‖T g_c‖ + 1e-12)
    grad = ∇ reduce((1 − c_y) · ℓ)(w)  +  ∇ reduce(c_y · ℓ)(w + ε)         the first pass's graph again; second pass

`reduce` is what plain training does with the losses of its examples; `grad` is added to `.grad`, as one plain backward
pass would do. Where c is 1 everywhere, the middle term is not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hf_sharp.sharpness.ascent import (
    gradient_to_perturbation,
    gradients_set_aside,
    perturbed,
    random_state,
    running_statistics_kept,
    set_random_state,
)


class Backward(Protocol):
    """Runs the backward pass of a scalar: `loss.backward`, or the Trainer's that scales it for float16."""

    def __call__(self, loss: Tensor, retain_graph: bool) -> None:
        """Add the gradient of `loss` to `.grad`."""


class SharpnessStep(NamedTuple):
    """What a step saw, as 0-dimensional tensors on the device.

    `loss` is reduce(ℓ) at w, what plain training logs; `ascent_grad_norm` is ‖T g_c‖; `sharpness` is mean(c_y · ℓ) at
    w + ε minus at w.
    """

    loss: Tensor
    ascent_grad_norm: Tensor
    sharpness: Tensor


def sharpness_aware_backward(
    model: nn.Module,
    losses_at_current_weights: Callable[[], Tensor],
    coefficients: Tensor,
    rho: float,
    *,
    reduce: Callable[[Tensor], Tensor],
    mean: Callable[[Tensor], Tensor] = torch.mean,
    backward: Backward = lambda loss, retain_graph: loss.backward(retain_graph=retain_graph),
    grad_scale: Tensor | float = 1.0,
    adaptive_eta: float | None = None,
    everything_perturbed: bool = False,
    without_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> SharpnessStep:
    """Add one micro-batch's sharpness-aware gradient to `.grad` of the trainable parameters.

    The weights are bit-identical afterwards, also when a pass raises. Both passes draw the same dropout masks, and
    running statistics see the first pass only. Nothing here waits for the device.

    Args:
        model: its parameters with `requires_grad` are perturbed.
        losses_at_current_weights: runs the forward pass and returns ℓ (N,), with its graph.
        coefficients: c_y (N,), the coefficient of each example's class.
        rho: ρ > 0, the radius.
        reduce: (N,) to a scalar, as plain training reduces losses (mean, or sum over the accumulation window's count).
        mean: (N,) to a scalar, the mean over the micro-batch that the ascent sees.
        backward: runs a backward pass.
        grad_scale: the factor by which `backward` scales gradients (float16 loss scaling); it cancels in ε and is
            taken out of `ascent_grad_norm`.
        adaptive_eta: None, or η of ASAM's metric T = |w| + η.
        everything_perturbed: c is 1 for every example, known on the host: saves the backward pass at w.
        without_sync: entered around the passes at w, so that only the last backward pass averages over processes.

    Returns:
        The loss, the norm of the ascent gradient, and the sharpness.

    Example:
        >>> w = nn.Linear(1, 1, bias=False)
        >>> _ = w.weight.data.fill_(1.0)
        >>> losses = lambda: w(torch.ones(1, 1))[:, 0] ** 2  # ℓ(w) = w², so ε = ρ, and the gradient is 2 (w + ρ)
        >>> step = sharpness_aware_backward(
        ...     w, losses, torch.ones(1), 0.5, reduce=torch.mean, everything_perturbed=True
        ... )
        >>> w.weight.grad.item(), w.weight.item(), step.sharpness.item()
        (3.0, 1.0, 1.25)

    Reference:
        SAM arXiv 2010.01412, algorithm 1; ImbSAM arXiv 2308.07815, equation 7; Focal-SAM arXiv 2505.01660, equation 8.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device
    before_first_pass = random_state(device)

    with without_sync():
        losses = losses_at_current_weights()
        with gradients_set_aside(parameters):
            ascent_loss = mean(coefficients * losses)
            backward(ascent_loss, retain_graph=not everything_perturbed)
            reached = [parameter for parameter in parameters if parameter.grad is not None]
            epsilon = [parameter.grad for parameter in reached if parameter.grad is not None]
        losses_at_w = losses.detach()
        if not everything_perturbed:
            backward(reduce((1 - coefficients) * losses), retain_graph=False)
        del losses  # and with it the graph of the pass at w

    norm = gradient_to_perturbation(reached, epsilon, rho, adaptive_eta)
    after_first_pass = random_state(device)
    set_random_state(device, before_first_pass)
    try:
        with perturbed(reached, epsilon), running_statistics_kept(model):
            losses = losses_at_current_weights()
            backward(reduce(coefficients * losses), retain_graph=False)
    finally:
        set_random_state(device, after_first_pass)

    sharpness = mean(coefficients * losses.detach()) - ascent_loss.detach()
    return SharpnessStep(reduce(losses_at_w), norm / grad_scale, sharpness)
