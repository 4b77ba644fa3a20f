"""The passes of one sharpness-aware gradient.

    g_c  = ∇ mean(c_y · ℓ)(w)                                              first pass
    ε    = ρ · T² g_c / (‖T g_c‖ + 1e-12)
    grad = ∇ reduce((1 − c_y) · ℓ)(w)  +  ∇ reduce(c_y · ℓ)(w + ε)         the first pass's graph again; second pass

`reduce` is what plain training does with the losses of its examples; `grad` is added to `.grad`, as one plain backward
pass would do. Where c is 1 everywhere, the middle term is not computed. The examples may come in several micro-batches,
which then share one ε.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hf_sharp.sharpness.ascent import (
    gradient_to_perturbation,
    gradients_in,
    perturbed,
    random_state,
    random_state_kept,
    running_statistics_kept,
    set_random_state,
    shards_only,
    vanishing_share,
    with_gradients,
)


class Backward(Protocol):
    """Runs the backward pass of a scalar: `loss.backward`, or the Trainer's that scales it for float16."""

    def __call__(self, loss: Tensor, retain_graph: bool) -> None:
        """Add the gradient of `loss` to `.grad`."""


class MicroBatch(NamedTuple):
    """Examples that go through the model at once.

    Args:
        losses: runs the forward pass at the current weights and returns ℓ (N,), with its graph.
        coefficients: c_y (N,), the coefficient of each example's class.
        perturbed: which of the examples have a coefficient other than 0; "all" if every coefficient is 1. Known on the
            host, as asking the device would wait for it; "some" is always right.
    """

    losses: Callable[[], Tensor]
    coefficients: Tensor
    perturbed: Literal["all", "some", "none"] = "some"


class AscentObserver(Protocol):
    """Sees the two ends of an ascent."""

    def at_w(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float
    ) -> None:
        """See g_c times `grad_scale`, and mean(c_y · ℓ), at w, before g_c becomes ε."""

    def at_epsilon(self, parameters: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float) -> None:
        """See a micro-batch's mean(c_y · ℓ) at w + ε, with its graph, which is to be kept."""


class SharpnessStep(NamedTuple):
    """What a step saw, as 0-dimensional tensors on the device.

    `loss` is reduce(ℓ) at w, what plain training logs; `ascent_grad_norm` is ‖T g_c‖; `sharpness` is mean(c_y · ℓ) at
    w + ε minus at w; `vanishing` is the share of ε that rounding took, where it was asked for.
    """

    loss: Tensor
    ascent_grad_norm: Tensor
    sharpness: Tensor
    vanishing: Tensor | None = None


def sharpness_aware_backward(
    model: nn.Module,
    micro_batches: Sequence[MicroBatch],
    rho: Tensor | float,
    *,
    reduce: Callable[[Tensor], Tensor],
    mean: Callable[[Tensor], Tensor] = torch.mean,
    backward: Backward = lambda loss, retain_graph: loss.backward(retain_graph=retain_graph),
    grad_scale: Tensor | float = 1.0,
    adaptive_eta: float | None = None,
    without_sync: Callable[[], AbstractContextManager] = nullcontext,
    average: Callable[[Sequence[Tensor]], None] | None = None,
    measure_vanishing: bool = False,
    observer: AscentObserver | None = None,
) -> SharpnessStep:
    """Add the sharpness-aware gradient of some micro-batches to `.grad` of the trainable parameters. They share one ε.

    The weights are bit-identical afterwards, also when a pass raises. Both passes draw the same dropout masks, and
    running statistics see the first pass only. Nothing here waits for the device. Where a gradient overflows in any
    pass, there is one in `.grad` too, which is what makes a float16 GradScaler skip the step.

    A model that FSDP2 shards is perturbed shard by shard, and its ε is always that of all processes, whose passes must
    be the same.

    Args:
        model: its parameters with `requires_grad` are perturbed.
        micro_batches: the examples.
        rho: ρ > 0, the radius; a 0-dimensional tensor is not read on the host.
        reduce: (N,) to a scalar, as plain training reduces losses (mean, or sum over the accumulation window's count).
        mean: (N,) to a scalar; over the micro-batches, these scalars add up to the mean that the ascent sees.
        backward: runs a backward pass.
        grad_scale: the factor by which `backward` scales gradients (float16 loss scaling); it cancels in ε and is
            taken out of `ascent_grad_norm`.
        adaptive_eta: None, or η of ASAM's metric T = |w| + η.
        without_sync: entered around all passes but the last one, so that only the last averages over processes.
        average: averages g_c over the processes, in place, for one ε on all of them. Every process must then have
            micro-batches that are not "none".
        measure_vanishing: also measure how much of ε is lost to rounding (in bfloat16 weights).
        observer: sees the ascent's gradient and its loss at w, and its loss at w + ε.

    Returns:
        The loss, the norm of the ascent gradient, the sharpness, and `vanishing` or None.

    Example:
        >>> w = nn.Linear(1, 1, bias=False)
        >>> _ = w.weight.data.fill_(1.0)
        >>> losses = lambda: w(torch.ones(1, 1))[:, 0] ** 2  # ℓ(w) = w², so ε = ρ, and the gradient is 2 (w + ρ)
        >>> step = sharpness_aware_backward(w, [MicroBatch(losses, torch.ones(1), "all")], 0.5, reduce=torch.mean)
        >>> w.weight.grad.item(), w.weight.item(), step.sharpness.item()
        (3.0, 1.0, 1.25)

    Reference:
        SAM arXiv 2010.01412, algorithm 1; ImbSAM arXiv 2308.07815, equation 7; Focal-SAM arXiv 2505.01660, equation 8.
    """
    with shards_only(model):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        devices = {parameter.device for parameter in model.parameters()}
        ascent_gradients: list[Tensor | None] = [None] * len(parameters)
        random_states, losses_at_w, weighted_at_w, weighted_at_epsilon = [], [], [], []

        with without_sync():
            for losses_now, coefficients, share in micro_batches:
                random_states.append(random_state(devices))
                losses = losses_now()
                ascent_loss = mean(coefficients * losses)
                if share != "none":
                    with gradients_in(ascent_gradients, parameters):
                        backward(ascent_loss, retain_graph=share != "all")
                losses_at_w.append(reduce(losses.detach()))
                weighted_at_w.append(ascent_loss.detach())
                if share != "all":
                    backward(reduce((1 - coefficients) * losses), retain_graph=False)
                del losses, ascent_loss  # and with them the graph of the pass at w

        fill = average or (None if observer is None else lambda gradients: None)
        reached, epsilon = with_gradients(parameters, ascent_gradients, fill)
        del ascent_gradients
        if observer is not None:
            observer.at_w(reached, epsilon, torch.stack(weighted_at_w).sum(), grad_scale)
        norm = gradient_to_perturbation(reached, epsilon, rho, adaptive_eta)
        vanishing = vanishing_share(reached, epsilon) if measure_vanishing else None
        one = 1 + 0 * norm  # or NaN, after an overflow in the first pass: the second then has one too, whatever it sees

        again = [i for i, micro_batch in enumerate(micro_batches) if micro_batch.perturbed != "none"]
        with perturbed(reached, epsilon), running_statistics_kept(model), random_state_kept(devices):
            for i in again:
                set_random_state(random_states[i])
                with nullcontext() if i == again[-1] else without_sync():
                    losses_now, coefficients, _ = micro_batches[i]
                    losses = losses_now()
                    if observer is not None:
                        observer.at_epsilon(reached, mean(coefficients * losses), grad_scale)
                    backward(reduce(coefficients * losses) * one, retain_graph=False)
                    weighted_at_epsilon.append(mean(coefficients * losses.detach()))

    sharpness = torch.stack(weighted_at_epsilon).sum() - torch.stack(weighted_at_w).sum()
    return SharpnessStep(torch.stack(losses_at_w).sum(), norm / grad_scale, sharpness, vanishing)
