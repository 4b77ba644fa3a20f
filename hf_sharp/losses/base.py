"""The base class of all losses: affine map, dtypes, buffers, ignored labels, class importance and checks.

    ℓ_j = weight[y_j] · CE(label_scale[y_j] · class_scale ⊙ z_j + offset, y_j)

Most losses only set some of these four vectors. A loss returns one value per example; the trainer reduces the values.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.registry import Citation
from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.limits import check_number


class ClassFrequencyLoss(nn.Module):
    """Weighted cross-entropy of affinely mapped logits, one value per example; by default plain cross-entropy.

        ℓ_j = weight[y_j] · CE(label_scale[y_j] · class_scale ⊙ z_j + offset, y_j)

    Args:
        class_counts: (K,) integers >= 0, the training examples of each class.
        **options: the parameters of the formula, finite numbers; stored in `options`.

    Attributes:
        name: what `build_loss` and `SharpTrainingArguments` call it.
        summary: what it does, in one sentence.
        formula: its formula.
        when: when to choose it.
        citations: the papers to cite.
        needs_cosine_logits: whether logits must be cosines between features and class vectors, in [−1, 1]. With
            `cosine_head`, the model's logits are these cosines times the loss's option `loss_scale`, 1 if it has none.
        needs_features: whether it also uses the head's weights and input; such a loss implements `discriminative`.
        class_scale: (K,) float64 or None for 1, the factor of each class's logit.
        label_scale: (K,) float64 or None for 1, the factor of all logits of an example with that label.
        offset: (K,) float64 or None for 0, what is added to each class's logit.
        weight: (K,) float64 or None for 1, the factor of an example's loss.
        margin: (K,) float64 or None for 0, by how much the example's class has to win, in a loss that has margins.

    Raises:
        ValueError: an option is not a finite number.

    Example:
        >>> loss = ClassFrequencyLoss([2, 1])
        >>> loss(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, -100]))
        tensor([0.6931, 0.0000])
    """

    name: ClassVar[str] = "cross_entropy"
    summary: ClassVar[str] = "Plain cross-entropy: every example counts alike."
    formula: ClassVar[str] = "CE(z, y)"
    when: ClassVar[str] = "when the test data has the classes in the same shares as the training data"
    citations: ClassVar[tuple[Citation, ...]] = ()
    needs_cosine_logits: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False

    class_counts: Tensor
    class_scale: Tensor | None
    label_scale: Tensor | None
    offset: Tensor | None
    weight: Tensor | None
    margin: Tensor | None
    class_importance: Tensor | None

    def __init__(self, class_counts: Any, **options: float) -> None:
        super().__init__()
        for name, value in options.items():
            check_number(name, value)
        # NumPy and torch scalars are converted to Python numbers, which checkpoints and trackers can write as JSON.
        self.options: dict[str, Any] = {k: v.item() if hasattr(v, "item") else v for k, v in options.items()}
        counts = torch.tensor(as_array(class_counts), dtype=torch.int64)
        self.register_buffer("class_counts", counts, persistent=False)
        for name in ("class_scale", "label_scale", "offset", "weight", "margin", "class_importance"):
            self.register_buffer(name, None, persistent=False)

    @classmethod
    def from_counts(cls, class_counts: Any, **options: Any) -> ClassFrequencyLoss:
        """Build the loss from the class counts (K,) and its own options; every loss can be built this way."""
        return cls(class_counts, **options)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each example.

        Args:
            logits: (N, K), any floating type.
            labels: (N,) integers in [0, K); examples labelled -100 get exactly 0.

        Returns:
            (N,): float64 for float64 logits, else float32.

        Raises:
            ValueError: the shapes do not fit each other or the class counts, or a label is outside [0, K).
        """
        num_classes = len(self.class_counts)
        fits = logits.ndim == 2 and logits.shape[1] == num_classes and labels.shape == logits.shape[:1]
        if not fits or labels.is_floating_point():
            raise ValueError(
                f"expected logits of shape (N, {num_classes}) and labels of shape (N,), one class per example; got "
                f"{tuple(logits.shape)} and {tuple(labels.shape)}, of {labels.dtype}."
            )
        labels = labels.long()  # an index of any other type fails in cross_entropy
        if labels.device.type == "cpu":  # on an accelerator, the check would wait for the device
            outside = (labels != IGNORED_LABEL) & ((labels < 0) | (labels >= num_classes))
            if outside.any():
                raise ValueError(f"label {labels[outside][0].item()} is outside the classes 0 to {num_classes - 1}.")
        logits = logits if logits.dtype == torch.float64 else logits.float()
        existing = labels.clamp(min=0)  # -100 is not an index; cross_entropy gives these examples 0
        losses = self.unweighted(self.adjust(logits, existing), labels)
        check_one_per_example(losses, labels, f"{type(self).__name__}.unweighted")
        return self.weigh(losses, existing)

    def weigh(self, losses: Tensor, labels: Tensor) -> Tensor:
        """Multiply the losses of examples by the weight and the importance of their classes.

        Args:
            losses: (N,) float32 or float64.
            labels: (N,) in [0, K), or -100 where the loss is 0.

        Returns:
            (N,), of the same type.
        """
        for weight in (self.weight, self.class_importance):
            if weight is not None:
                losses = losses * weight.to(losses.dtype)[labels.clamp(min=0)]
        return losses

    def adjust(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map the model's logits to the logits of which the cross-entropy is computed.

        Args:
            logits: (N, K) float32 or float64.
            labels: (N,) in [0, K).

        Returns:
            (N, K), of the same type.
        """
        if self.class_scale is not None:
            logits = logits * self.class_scale.to(logits.dtype)
        if self.label_scale is not None:
            logits = logits * self.label_scale.to(logits.dtype)[labels, None]
        return logits if self.offset is None else logits + self.offset.to(logits.dtype)

    def unweighted(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of each example without its class weight: by default, cross-entropy.

        Args:
            logits: (N, K) float32 or float64, as `adjust` returns them.
            labels: (N,) in [0, K), or -100.

        Returns:
            (N,), of the same type.
        """
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED_LABEL)

    def discriminative(self, labels: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Compute the terms of features that a loss with `needs_features` adds to each example's loss in training.

        Args:
            labels: (N,) int64 in [0, K), or -100 where 0 is added.
            features: (N, d), the head's input, with their graph.
            weight: W (K, d) of the head.
            bias: b (K,), or None.

        Returns:
            (N,), float32 or float64.

        Raises:
            NotImplementedError: the loss sets `needs_features`, but does not implement this method.
        """
        raise NotImplementedError(f"loss {self.name!r} sets needs_features, but does not implement discriminative().")

    def frozen(self) -> ClassFrequencyLoss:
        """Return this loss with its current state fixed, for a second pass over the same batch."""
        return self

    @property
    def corrects(self) -> bool:
        """Whether a weight, offset, scale or margin differs between classes; False, for example, at strength 0."""
        parts = (self.weight, self.offset, self.class_scale, self.label_scale, self.margin)
        return any(part is not None and bool((part != part[0]).any()) for part in parts)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments from which `build_loss(class_counts=..., **config)` rebuilds this loss, in JSON types."""
        importance = {} if self.class_importance is None else {"class_importance": self.class_importance.tolist()}
        return {"name": self.name, **self.options, **importance}

    def extra_repr(self) -> str:
        """Show K and the options in the module's repr."""
        options = [f"{name}={value}" for name, value in self.options.items()]
        return ", ".join([f"num_classes={len(self.class_counts)}", *options])


def check_one_per_example(losses: Tensor, labels: Tensor, source: str) -> None:
    """Raise a ValueError if there is not one loss per example, for example only their mean."""
    if losses.shape != labels.shape:
        raise ValueError(
            f"{source} must return one loss per example, of shape {tuple(labels.shape)}; got {tuple(losses.shape)}. "
            "The trainer computes the mean: use reduction='none'."
        )


def at_least_one(class_counts: Tensor) -> Tensor:
    """Return max(n_c, 1) in float64, so that results are finite for a class without examples: (K,) to (K,)."""
    return class_counts.clamp(min=1).double()


def log_priors(class_counts: Tensor) -> Tensor:
    """Return log π_c in float64; a class without examples counts as if it had 1: (K,) to (K,)."""
    return (at_least_one(class_counts) / class_counts.sum()).log()
