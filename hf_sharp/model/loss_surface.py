"""A model's mean loss over fixed examples as a function of its weights, over all classes and per group of classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.model.group_batches import GROUPS, GroupBatch, count_by_group, sample_batches, split_by_group
from hf_sharp.model.head import evaluation_mode
from hf_sharp.sharpness.ascent import perturbed, trainable_parameters

Losses = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy (B,) of each example, of logits (B, K) and labels (B,)."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


class LossSurface:
    """A model's mean loss over fixed examples, as a function of its trainable parameters.

    Every pass runs in evaluation mode. Passes that need the Hessian use attention kernels that can be differentiated
    twice. The model's weights, `.grad` and training modes are restored, also when a pass raises.

    Args:
        model: an image or sequence classification model, or any that returns logits (N, K); in float32 or float64.
        batches: model inputs with `labels`, such as a DataLoader. They are kept in CPU memory. A batch with several
            groups is split, so a batch with a single group costs less.
        frequencies: the class frequencies of the training set; its thresholds define the groups.
        losses: maps logits (N, K) and labels (N,) to one loss per example, (N,); default: cross-entropy.
        progress: the label of the progress bar; None for no bar.

    Attributes:
        examples: the number of examples in each of `GROUPS`.

    Raises:
        ValueError: the model has no trainable parameters or is in half precision, there are no examples, or batches
            have no labels or labels outside the classes.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
        >>> data = [{"input": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2 / 2)
        >>> surface.examples, surface.loss()
        ({'all': 2, 'many': 1, 'medium': 0, 'few': 1}, {'all': 1.0, 'many': 2.0, 'few': 0.0})
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Mapping[str, Tensor]],
        frequencies: ClassFrequencies,
        losses: Losses = cross_entropy,
        progress: str | None = None,
    ) -> None:
        self.model, self.losses = model, losses
        self.parameters = trainable_parameters(model)
        if not self.parameters:
            raise ValueError("the model has no trainable parameters: every requires_grad is False.")
        if low := {p.dtype for p in self.parameters} - {torch.float32, torch.float64}:
            raise ValueError(
                f"the model is in {low.pop()}, whose rounding errors exceed what is measured. Use model.float()."
            )
        self._batches = list(split_by_group(batches, frequencies))
        self.examples = count_by_group(self._batches)
        if not self.examples["all"]:
            raise ValueError("there are no examples to measure the loss on.")
        self.bar = tqdm(desc=progress, unit="pass", disable=progress is None, leave=False)

    def expect(self, passes: int) -> None:
        """Tell the progress bar how many more passes there will be."""
        self.bar.total = self.bar.n + passes
        self.bar.refresh()

    @property
    def groups(self) -> list[str]:
        """Those of `GROUPS` that have examples."""
        return [group for group in GROUPS if self.examples[group]]

    @property
    def size(self) -> int:
        """The number of trainable parameters, P."""
        return sum(parameter.numel() for parameter in self.parameters)

    def subset(self, size: int, seed: int = 0) -> LossSurface:
        """Keep a stratified sample of the examples.

        Args:
            size: the number of examples, at most.
            seed: the seed of the draw.

        Returns:
            Another surface of the same model; this one if it has no more than `size` examples.
        """
        if size >= self.examples["all"]:
            return self
        subset = copy.copy(self)
        subset._batches = sample_batches(self._batches, size, seed)
        subset.examples = count_by_group(subset._batches)
        return subset

    def loss(self, group: str = "all") -> dict[str, float]:
        """Compute the mean loss, in one forward pass.

        Args:
            group: one of `GROUPS`; only its examples are evaluated.

        Returns:
            The mean loss L_g of each evaluated group that has examples, summed in float64.

        Raises:
            ValueError: the loss is not finite.
        """
        sums = dict.fromkeys(GROUPS, 0.0)
        with torch.no_grad():
            for batch, losses in self._pass(group):
                sums[batch.group] += losses.cpu().double().sum().item()
        return self._means(sums, self.groups if group == "all" else [group])

    def loss_and_gradients(self) -> tuple[dict[str, float], dict[str, list[Tensor]]]:
        """Compute the mean loss and its gradient for every group, in one forward and backward pass.

        Returns:
            For each group that has examples: L_g as in `loss`, and ∇L_g with one tensor per trainable parameter.

        Raises:
            ValueError: the loss is not finite.
        """
        sums = dict.fromkeys(GROUPS, 0.0)
        gradients = {group: [torch.zeros_like(p) for p in self.parameters] for group in self.groups}
        for batch, losses in self._pass("all"):
            sums[batch.group] += losses.detach().cpu().double().sum().item()
            part = torch.autograd.grad(losses.sum(), self.parameters, materialize_grads=True)
            torch._foreach_add_(gradients[batch.group], part)
        for group in self.groups[1:]:
            torch._foreach_add_(gradients["all"], gradients[group])
        for group, tensors in gradients.items():
            torch._foreach_div_(tensors, self.examples[group])
        return self._means(sums, self.groups), gradients

    def hessian_product(self, vector: Sequence[Tensor], group: str = "all") -> list[Tensor]:
        """Multiply the Hessian by a vector: H_g v = ∇ (vᵀ ∇L_g), in one pass with two backward passes.

        Args:
            vector: v, one tensor per trainable parameter.
            group: one of `GROUPS` that has examples.

        Returns:
            H_g v, in the shapes of v.

        Raises:
            ValueError: an operation of the model cannot be differentiated twice.
        """
        product = [torch.zeros_like(parameter) for parameter in self.parameters]
        for _, slopes in self._slopes(group):
            torch._foreach_add_(product, self._slopes_of(slopes, vector))
        torch._foreach_div_(product, self.examples[group])
        return product

    def quadratic_forms(self, vectors: Callable[[], Iterable[Sequence[Tensor]]]) -> dict[str, np.ndarray]:
        """Compute vᵀ H_g v of several vectors for every group, in one pass: one backward pass, and one more per v.

        Args:
            vectors: returns an iterator over the vectors v, each with one tensor per trainable parameter. It is called
                once per batch, so that the vectors need not all fit into memory.

        Returns:
            For each group that has examples, one value per vector, summed in float64.

        Raises:
            ValueError: an operation of the model cannot be differentiated twice.

        Example:
            >>> data = [{"input": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "labels": torch.tensor([0, 1])}]
            >>> counts = ClassFrequencies.from_counts([300, 3])
            >>> model = nn.Linear(2, 1, bias=False)
            >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2 / 2)
            >>> surface.quadratic_forms(lambda: [[torch.tensor([[1.0, 1.0]])]])
            {'all': array([2.5]), 'many': array([4.]), 'few': array([1.])}
        """
        sums: dict[str, Any] = dict.fromkeys(self.groups, 0.0)
        for group, slopes in self._slopes("all"):
            sums[group] += np.array([_inner(vector, self._slopes_of(slopes, vector, True)) for vector in vectors()])
            del slopes  # frees the graph before the next batch
        sums["all"] = sum(sums[group] for group in self.groups[1:])
        return {group: value / self.examples[group] for group, value in sums.items()}

    def hessian(self, group: str = "all") -> LinearOperator:
        """Wrap the Hessian of a group's mean loss for scipy's algorithms.

        Args:
            group: one of `GROUPS` that has examples.

        Returns:
            H_g, a (P, P) operator in the parameters' precision, over the flattened parameters in their order.

        Example:
            >>> data = [{"input": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "labels": torch.tensor([0, 1])}]
            >>> counts = ClassFrequencies.from_counts([300, 3])
            >>> model = nn.Linear(2, 1, bias=False)
            >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2 / 2)
            >>> surface.hessian() @ np.eye(2)
            array([[2. , 0. ],
                   [0. , 0.5]])
        """
        first = self.parameters[0]

        def multiply(vector: np.ndarray) -> np.ndarray:
            flat = torch.as_tensor(vector.reshape(-1), dtype=first.dtype, device=first.device)
            product = self.hessian_product(self._in_shapes(flat), group)
            return torch.cat([part.reshape(-1) for part in product]).cpu().numpy().astype(vector.dtype, copy=False)

        dtype = np.float64 if first.dtype == torch.float64 else np.float32
        return LinearOperator((self.size, self.size), matvec=multiply, rmatvec=multiply, dtype=dtype)

    def directions(self, seed: int = 0) -> Iterator[list[Tensor]]:
        """Draw random directions of length 1 over all parameters together; the same on every device.

        Args:
            seed: the seed of the draw.

        Yields:
            One tensor per trainable parameter.
        """
        for drawn in self._drawn(torch.randn, seed):
            norm = torch.stack(torch._foreach_norm(drawn, dtype=torch.float64)).norm().item()
            yield [(part / norm).to(p.device) for part, p in zip(drawn, self.parameters, strict=True)]

    def signs(self, seed: int = 0) -> Iterator[list[Tensor]]:
        """Draw random signs, +1 or −1 for every parameter; the same on every device.

        Args:
            seed: the seed of the draw.

        Yields:
            One tensor per trainable parameter.
        """
        for drawn in self._drawn(partial(torch.randint, 2), seed):
            yield [part.mul_(2).sub_(1).to(p.device) for part, p in zip(drawn, self.parameters, strict=True)]

    def units(self) -> Iterator[list[Tensor]]:
        """Iterate over the P unit vectors: 1 for one parameter, 0 for all others.

        Yields:
            One tensor per trainable parameter.
        """
        for row in torch.eye(self.size, dtype=self.parameters[0].dtype, device=self.parameters[0].device):
            yield self._in_shapes(row)

    def moved(self, direction: Sequence[Tensor], distance: float, group: str = "all") -> dict[str, float]:
        """Compute the mean loss at other weights: L_g(w + distance · direction).

        Args:
            direction: one tensor per trainable parameter.
            distance: the step along it; negative for the opposite direction.
            group: one of `GROUPS`; only its examples are evaluated.

        Returns:
            As `loss`.
        """
        with perturbed(self.parameters, list(torch._foreach_mul(list(direction), distance))):
            return self.loss(group)

    def _means(self, sums: dict[str, float], groups: Sequence[str]) -> dict[str, float]:
        sums["all"] = math.fsum(sums.values())
        if not math.isfinite(sums["all"]):
            raise ValueError(f"the loss is {sums['all']}, at the model's weights or at perturbed ones.")
        return {group: sums[group] / self.examples[group] for group in groups}

    def _drawn(self, draw: Callable[..., Tensor], seed: int) -> Iterator[list[Tensor]]:
        generator = torch.Generator().manual_seed(seed)  # on the CPU, for the same numbers on every device
        while True:
            yield [draw(p.shape, generator=generator, dtype=p.dtype) for p in self.parameters]

    def _in_shapes(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def _slopes(self, group: str) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        """Yield each batch's group and the gradient of its summed loss, which can be differentiated again."""
        for batch, losses in self._pass(group, SDPBackend.MATH):
            with _twice_differentiable():
                slopes = torch.autograd.grad(losses.sum(), self.parameters, create_graph=True, materialize_grads=True)
            del losses
            yield batch.group, slopes
            del slopes

    def _slopes_of(
        self, slopes: Sequence[Tensor], vector: Sequence[Tensor], retain_graph: bool = False
    ) -> tuple[Tensor, ...]:
        """Compute ∇ (vᵀ slopes)."""
        pairs = [(slope, v) for slope, v in zip(slopes, vector, strict=True) if slope.requires_grad]
        if not pairs:  # the loss is linear
            return tuple(torch.zeros_like(parameter) for parameter in self.parameters)
        outputs, grad_outputs = zip(*pairs, strict=True)
        with _twice_differentiable():
            return torch.autograd.grad(
                outputs, self.parameters, grad_outputs, retain_graph=retain_graph, materialize_grads=True
            )

    def _pass(self, group: str, attention: SDPBackend | None = None) -> Iterator[tuple[GroupBatch, Tensor]]:
        for batch in self._batches:
            if group in ("all", batch.group):
                device = self.parameters[0].device
                inputs = {name: value.to(device) for name, value in batch.inputs.items()}
                with evaluation_mode(self.model), sdpa_kernel(attention) if attention is not None else nullcontext():
                    outputs = self.model(**inputs)
                    logits = outputs if isinstance(outputs, Tensor) else outputs["logits"]
                    losses = self.losses(logits, batch.labels.to(device))
                if losses.shape != batch.labels.shape:
                    raise ValueError(
                        f"losses must return one loss per example, {tuple(batch.labels.shape)}; got shape "
                        f"{tuple(losses.shape)}."
                    )
                yield batch, losses
                del outputs, logits, losses
        self.bar.update()


def _inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return torch.stack([(a.double() * b).sum() for a, b in zip(first, second, strict=True)]).sum().item()


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # NotImplementedError too
        if "not implemented" not in str(error):
            raise
        raise ValueError(
            f"the model cannot be differentiated twice ({str(error).splitlines()[0]}). Load it with "
            'attn_implementation="eager", or without its fused kernels.'
        ) from error
