"""The loss of a training step: a class-frequency-aware loss, with deferred weights and terms that depend on features.

ℓ_j = weight_t[y_j] · (loss(z_j, y_j) + terms of features)        weight_t: 1, or the deferred weights (DRW)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from hf_sharp.losses.base import ClassFrequencyLoss, check_one_per_example
from hf_sharp.losses.margin import LDAMLoss
from hf_sharp.losses.reweighting import ClassBalancedLoss
from hf_sharp.registry import Choice

# Deferred reweighting: the weights come from the class-balanced loss, their deferral from LDAM's paper.
CHOICES = (
    Choice(
        "reweight_after",
        lambda values: values.get("reweight_after") is not None,
        ("loss_beta",),
        (*ClassBalancedLoss.citations, *LDAMLoss.citations),
        "In the last part of training, rare classes have larger weights (DRW).",
    ),
)


class Head(Protocol):
    """The layer that turns features into logits."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """W (K, d), and b (K,) if there is one."""

    def features_of(self, logits: Tensor) -> Tensor:
        """Return the features (N, d) from which the last forward pass computed the logits (N, K)."""


class TrainingLoss:
    """Computes the training loss of each example, (N,), from logits and labels.

    Args:
        loss: the class-frequency-aware loss.
        head: the head, if the loss or `wrap` uses features; else None.
        late_weight: returns the deferred weights (K,) once they apply, and None before.
        wrap: takes a loss of (logits, labels), and returns a loss of (logits, labels, features, head parameters).
        logit_scale: the factor of the model's logits; the loss gets them divided by it.

    Example:
        >>> import torch
        >>> loss = TrainingLoss(ClassFrequencyLoss([3, 1]), late_weight=lambda: torch.tensor([0.5, 2.0]))
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor([0.3466, 1.3863])
    """

    def __init__(
        self,
        loss: ClassFrequencyLoss,
        head: Head | None = None,
        late_weight: Callable[[], Tensor | None] = lambda: None,
        wrap: Callable[[Callable[[Tensor, Tensor], Tensor]], Callable[..., Tensor]] | None = None,
        logit_scale: float = 1.0,
    ) -> None:
        self.loss, self.head, self.late_weight, self.logit_scale = loss, head, late_weight, logit_scale
        self._in_force = loss  # in a later pass over the same batch, a frozen copy
        self._wrapped = None if wrap is None else wrap(self._of_logits)

    def __call__(self, logits: Tensor, labels: Tensor, frozen: ClassFrequencyLoss | None = None) -> Tensor:
        """Compute the loss of each example.

        Args:
            logits: (N, K), of the forward pass that has just run.
            labels: (N,) int64 in [0, K), or -100.
            frozen: a frozen copy of `loss` to use instead of it, for a later pass over the same batch.

        Returns:
            (N,), float32 or float64.
        """
        loss = self._in_force = self.loss if frozen is None else frozen
        if self.head is None:
            return self._of_logits(logits, labels)
        features, parameters = self.head.features_of(logits), self.head.parameters
        if self._wrapped is None:
            losses = self._of_logits(logits, labels)
        else:
            losses = self._wrapped(logits, labels, features, parameters)
        if not loss.needs_features:
            return losses
        added = loss.discriminative(labels, features, *parameters)
        check_one_per_example(added, labels, f"{type(loss).__name__}.discriminative")
        return losses + self._reweighted(added, labels)

    def _of_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self._reweighted(self._in_force(self.unscaled(logits), labels), labels)

    def unscaled(self, logits: Tensor) -> Tensor:
        """Divide the model's logits by `logit_scale`: (N, K) to (N, K)."""
        return logits if self.logit_scale == 1.0 else logits / self.logit_scale

    def _reweighted(self, losses: Tensor, labels: Tensor) -> Tensor:
        weight = self.late_weight()
        return losses if weight is None else losses * weight.to(losses.dtype)[labels.clamp(min=0)]
