"""CC-SAM: one ascent per class, on the classifier head.

    θ    the head's tensors θ_l, weight and bias; k their number of entries
    g_cl = ∇_{θ_l} mean of ℓ over the examples of class c
    δ_cl = r √‖θ‖ k^¼ / (√2 max(n_c − 1, 1)^¼ √‖g_cl‖) · g_cl / ‖g_cl‖
    loss = (1 − φ) ℓ(θ) + φ ℓ(θ + δ_y)                             for every example, y its class

No δ is materialized. For a linear head z = W f + b and p_j = ∂ℓ_j/∂z_j, class c's gradients are means of p_i f_iᵀ and
of p_i over its examples i, so that the logits of example j change by

    δW_y f_j + δb_y = Σ_i a_ji (s_W f_i·f_j + s_b) p_i        a_ji = 1/(examples of class y_j) if y_i = y_j, else 0

This takes two (N, N) products, for any number of classes, and features that were computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_sharp.sharpness.ascent import global_norm


def class_conditional_losses(
    loss: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    labels: Tensor,
    features: Tensor,
    head: Sequence[Tensor],
    class_counts: Tensor,
    *,
    cc_radius: float = 1e-6,
    cc_phi: float = 0.5,
    ignored_label: int = -100,
) -> tuple[Tensor, Tensor]:
    """Mix every example's loss with its loss at a head perturbed along its own class's gradient.

    Args:
        loss: (N, K) logits and (N,) labels to (N,) losses.
        logits: (N, K), W f + b, with their graph.
        labels: (N,) class indices, or `ignored_label`.
        features: (N, d), the head's input that gave the logits, with their graph.
        head: W (K, d), and b (K,) if the head has one.
        class_counts: (K,) n_c, the training examples of each class.
        cc_radius: r >= 0; the authors' code has 1e-6.
        cc_phi: φ from 0 to 1, the share of the perturbed loss; the authors' code has 0.5.
        ignored_label: labels that belong to no class.

    Returns:
        (N,) losses, with their graph; and the sharpness, the mean of ℓ(θ + δ_y) − ℓ(θ), without a graph.

    Example:
        >>> weight, bias = torch.eye(2), torch.zeros(2)
        >>> features, labels = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
        >>> ce = lambda z, y: torch.nn.functional.cross_entropy(z, y, reduction="none")
        >>> head, counts = [weight, bias], torch.tensor([90, 10])
        >>> losses, sharpness = class_conditional_losses(ce, features, labels, features, head, counts, cc_radius=0.1)
        >>> (losses > ce(features, labels)).all(), sharpness > 0
        (tensor(True), tensor(True))

    Reference:
        CC-SAM, *Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition* (CVPR 2023), stage 1;
        its second stage, which retrains the head, is a separate training and not included.
    """
    with torch.autocast(logits.device.type, enabled=False):  # half precision is too coarse for a Gram matrix
        dtype = torch.promote_types(logits.dtype, torch.float32)
        z, f = logits.to(dtype), features.to(dtype)
        counted = labels != ignored_label
        classes = labels.clamp(min=0)
        with torch.enable_grad():
            at_z = z.detach().requires_grad_()
            (p,) = torch.autograd.grad(loss(at_z, labels).sum(), at_z)
        with torch.no_grad():
            same = ((classes[:, None] == classes) & counted & counted[:, None]).to(dtype)
            a = same / same.sum(1, keepdim=True).clamp(min=1)
            products = p @ p.T
            entries = sum(tensor.numel() for tensor in head)
            size = global_norm([tensor.detach() for tensor in head]).to(dtype).sqrt() * entries**0.25
            scale = cc_radius * size / (2**0.5 * (class_counts.to(z.device, dtype)[classes] - 1).clamp(min=1) ** 0.25)

            def step_size(of_features: Tensor) -> Tensor:
                norm, longest = (
                    ((a @ m) * a).sum(1).clamp(min=0).sqrt() for m in (products * of_features, of_features)
                )
                # δ grows as the gradient vanishes. A gradient below the rounding error of a softmax has no direction.
                usable = norm > torch.finfo(torch.float32).eps * longest
                return torch.where(usable, scale / norm.clamp(min=torch.finfo(dtype).tiny) ** 1.5, 0)[:, None]

            step_weight = step_size(f @ f.T)
            step_bias = step_size(torch.ones_like(products)) if len(head) > 1 else torch.zeros_like(step_weight)
        moved = z + step_weight * ((a * (f @ f.detach().T)) @ p) + step_bias * (a @ p)
        at_head, at_perturbed = loss(z, labels), loss(moved, labels)
        sharpness = (at_perturbed - at_head).detach().sum() / counted.sum().clamp(min=1)
        return (1 - cc_phi) * at_head + cc_phi * at_perturbed, sharpness


class ClassConditionalLoss:
    """CC-SAM as a wrapper of a loss: each call mixes the losses at the unperturbed and at the perturbed head.

    Args:
        loss: (N, K) logits and (N,) labels to (N,) losses.
        class_counts: (K,) n_c, the training examples of each class.
        observe: called with the sharpness of every batch, a 0-dimensional tensor.
        **options: `cc_radius` and `cc_phi`, as `class_conditional_losses` takes them.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        class_counts: Tensor,
        observe: Callable[[Tensor], None],
        **options: Any,
    ) -> None:
        self.loss, self.class_counts, self.observe, self.options = loss, class_counts, observe, options

    def __call__(self, logits: Tensor, labels: Tensor, features: Tensor, head: Sequence[Tensor]) -> Tensor:
        """Compute the mixed loss of each example, (N,); the arguments are those of `class_conditional_losses`."""
        losses, sharpness = class_conditional_losses(
            self.loss, logits, labels, features, head, self.class_counts, **self.options
        )
        self.observe(sharpness)
        return losses
