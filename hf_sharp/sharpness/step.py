"""The passes of one sharpness-aware gradient.

    g_c  = ∇ mean(c_y · ℓ)(w)                                              the ascent
    ε    = ρ · T² g_c / (‖T g_c‖ + 1e-12)
    grad = ∇ reduce((1 − c_y) · ℓ)(w)  +  ∇ reduce(c_y · ℓ)(w + ε)         the clean pass; the perturbed pass

`reduce` reduces the losses of examples to a scalar as plain training does. `grad` is added to `.grad`, as by one plain
backward pass. Each pass uses only the examples whose weight in it is not 0; the ascent may use only some of them. If
ascent and clean pass use the same examples, they share a forward pass. Several micro-batches can share one ε.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from hf_sharp.sharpness.ascent import (
    gradient_to_perturbation,
    gradients_in,
    perturbed,
    shards_only,
    vanishing_share,
    with_gradients,
)
from hf_sharp.sharpness.replay import (
    RandomState,
    random_state,
    random_state_kept,
    running_statistics_kept,
    set_random_state,
)


class Backward(Protocol):
    """Runs the backward pass of a scalar: `loss.backward`, or the Trainer's method that scales it for float16."""

    def __call__(self, loss: Tensor, retain_graph: bool) -> None:
        """Add the gradient of `loss` to `.grad`."""


class Examples(NamedTuple):
    """A part of a micro-batch's examples.

    Args:
        rows: (n,) int64, the rows of the examples; None for all of them.
        weights: (n,) the factors of their losses.
    """

    rows: Tensor | None
    weights: Tensor


class MicroBatch(NamedTuple):
    """Examples that go through the model at once.

    Args:
        losses: runs the forward pass of the examples in some rows (None for all) at the current weights, and returns
            their ℓ (n,) with its graph.
        perturbed: the examples of the perturbed pass, weighted by c_y, or None.
        clean: the examples of the clean pass, weighted by 1 − c_y, or None.
        ascent_size: the ascent uses only this many of `perturbed`, the first ones; None for all of them.
    """

    losses: Callable[[Tensor | None], Tensor]
    perturbed: Examples | None = None
    clean: Examples | None = None
    ascent_size: int | None = None

    @property
    def ascent(self) -> Examples:
        """The examples of the ascent; if they are only some of `perturbed`, with weights scaled up accordingly."""
        rows, weights = cast(Examples, self.perturbed)
        if self.ascent_size is None or rows is None:
            return Examples(rows, weights)
        return Examples(rows[: self.ascent_size], weights[: self.ascent_size] * (len(rows) / self.ascent_size))


class AscentObserver(Protocol):
    """Observes both ends of an ascent."""

    def at_w(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float
    ) -> None:
        """Receive g_c times `grad_scale`, and mean(c_y · ℓ), both at w, before g_c is turned into ε."""

    def at_epsilon(self, parameters: Sequence[Tensor], loss: Tensor, grad_scale: Tensor | float) -> None:
        """Receive mean(c_y · ℓ) over a micro-batch's ascent examples at w + ε; its graph must be kept."""


class SharpnessStep(NamedTuple):
    """The figures of a step, as 0-dimensional tensors on the device.

    `loss` is reduce(ℓ) at w, which plain training logs (estimated from the ascent's examples if it uses a part of
    them). `ascent_grad_norm` is ‖T g_c‖. `sharpness` is the ascent's mean(c_y · ℓ) at w + ε minus that at w.
    `vanishing` is the share of ε lost to rounding, if it was measured.
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
    adaptive_scope: str = "matrices",
    without_sync: Callable[[], AbstractContextManager] = nullcontext,
    average: Callable[[Sequence[Tensor]], None] | None = None,
    measure_vanishing: bool = False,
    observer: AscentObserver | None = None,
) -> SharpnessStep:
    """Add the sharpness-aware gradient of micro-batches that share one ε to `.grad` of the trainable parameters.

    Afterwards the weights have exactly their old values, even if a pass raises. If perturbed pass and ascent use the
    same examples, both draw the same dropout masks. Only passes at w update running statistics. Nothing here waits for
    the device. If a gradient overflows in any pass, `.grad` contains an overflow too, so that a float16 GradScaler
    skips the step.

    A model that FSDP2 shards is perturbed shard by shard. All processes then share one ε, and must run the same passes.

    Args:
        model: its parameters with `requires_grad` are perturbed.
        micro_batches: the examples.
        rho: ρ > 0, the radius; a 0-dimensional tensor is not read back to the host.
        reduce: (N,) to a scalar, as plain training reduces losses (mean, or sum over the accumulation window's count).
        mean: (N,) to a scalar; over the micro-batches, these scalars add up to the mean that the ascent sees.
        backward: runs a backward pass.
        grad_scale: the factor by which `backward` scales gradients (float16 loss scaling); it cancels in ε, and
            `ascent_grad_norm` does not contain it.
        adaptive_eta: None, or η of ASAM's metric T = |w| + η.
        adaptive_scope: the tensors with that metric: "all", or "matrices".
        without_sync: a context for all passes but the last, so that only the last one averages over processes.
        average: averages g_c over the processes, in place, for one ε on all of them. Every process must then have
            perturbed examples.
        measure_vanishing: also measure how much of ε is lost to rounding (in bfloat16 weights).
        observer: receives the ascent's gradient and loss at w, and its loss at w + ε.

    Returns:
        The loss, the norm of the ascent gradient, the sharpness, and `vanishing` or None.

    Example:
        >>> w = nn.Linear(1, 1, bias=False)
        >>> _ = w.weight.data.fill_(1.0)
        >>> losses = lambda rows: w(torch.ones(1, 1))[:, 0] ** 2  # ℓ(w) = w², so ε = ρ, and the gradient is 2 (w + ρ)
        >>> batch = MicroBatch(losses, perturbed=Examples(None, torch.ones(1)))
        >>> step = sharpness_aware_backward(w, [batch], 0.5, reduce=torch.mean)
        >>> w.weight.grad.item(), w.weight.item(), step.sharpness.item()
        (3.0, 1.0, 1.25)

    Reference:
        SAM arXiv 2010.01412, algorithm 1; ImbSAM arXiv 2308.07815, equation 7; Focal-SAM arXiv 2505.01660, equation 8.
    """
    modules = list(model.modules())  # walking through a model takes time, so only once for modules and parameters
    with shards_only(modules):
        everything = list(dict.fromkeys(w for module in modules for w in module._parameters.values() if w is not None))
        parameters = [parameter for parameter in everything if parameter.requires_grad]
        devices = {parameter.device for parameter in everything}
        ascent_gradients: list[Tensor | None] = [None] * len(parameters)
        weighted_at_epsilon: list[Tensor] = []
        with without_sync():
            random_states, losses_at_w, weighted_at_w = _passes_at_w(
                micro_batches, parameters, devices, ascent_gradients, reduce, mean, backward
            )

        fill = average or (None if observer is None else lambda gradients: None)
        reached, epsilon = with_gradients(parameters, ascent_gradients, fill)
        del ascent_gradients
        if observer is not None:
            observer.at_w(reached, epsilon, torch.stack(weighted_at_w).sum(), grad_scale)
        norm = gradient_to_perturbation(reached, epsilon, rho, adaptive_eta, adaptive_scope)
        vanishing = vanishing_share(reached, epsilon) if measure_vanishing else None
        one = 1 + 0 * norm  # NaN after an overflow in the first pass, so that the second overflows too

        again = [batch for batch in micro_batches if batch.perturbed is not None]
        with perturbed(reached, epsilon), running_statistics_kept(modules), random_state_kept(devices):
            for batch, state in zip(again, random_states, strict=True):
                set_random_state(state)
                with nullcontext() if batch is again[-1] else without_sync():
                    rows, weights = cast(Examples, batch.perturbed)
                    of_ascent = batch.ascent.weights
                    losses = batch.losses(rows)
                    if observer is not None:
                        observer.at_epsilon(reached, mean(of_ascent * losses[: len(of_ascent)]), grad_scale)
                    backward(reduce(weights * losses) * one, retain_graph=False)
                    weighted_at_epsilon.append(mean(of_ascent * losses.detach()[: len(of_ascent)]))

    sharpness = torch.stack(weighted_at_epsilon).sum() - torch.stack(weighted_at_w).sum()
    return SharpnessStep(torch.stack(losses_at_w).sum(), norm / grad_scale, sharpness, vanishing)


def _passes_at_w(
    micro_batches: Sequence[MicroBatch],
    parameters: Sequence[Tensor],
    devices: Collection[torch.device],
    ascent_gradients: list[Tensor | None],
    reduce: Callable[[Tensor], Tensor],
    mean: Callable[[Tensor], Tensor],
    backward: Backward,
) -> tuple[list[RandomState], list[Tensor], list[Tensor]]:
    # Adds g_c to `ascent_gradients`, and the clean gradient to `.grad`. Returns the random state of each perturbed
    # micro-batch, each pass's part of the loss at w, and mean(c_y · ℓ) of each perturbed micro-batch.
    random_states, losses_at_w, weighted_at_w = [], [], []
    for batch in micro_batches:
        losses = None
        if batch.perturbed is not None:
            random_states.append(random_state(devices))
            rows, weights = batch.ascent
            losses = batch.losses(rows)
            ascent_loss = mean(weights * losses)
            shared = batch.clean is not None and batch.clean.rows is rows
            with gradients_in(ascent_gradients, parameters):
                backward(ascent_loss, retain_graph=shared)
            losses_at_w.append(reduce(weights * losses.detach()))
            weighted_at_w.append(ascent_loss.detach())
            losses = losses if shared else None
            del ascent_loss
        if batch.clean is not None:
            rows, weights = batch.clean
            loss = reduce(weights * (batch.losses(rows) if losses is None else losses))
            backward(loss, retain_graph=False)
            losses_at_w.append(loss.detach())
            del loss
        del losses  # frees the graph of the passes at w
    return random_states, losses_at_w, weighted_at_w
