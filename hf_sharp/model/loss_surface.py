"""The mean loss of a model over fixed examples, of all classes and per group of classes, around its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.model.head import evaluation_mode
from hf_sharp.sharpness.ascent import perturbed

GROUPS = ("all", "many", "medium", "few")

Losses = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy (B,) of each example, of logits (B, K) and labels (B,)."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


class _Batch(NamedTuple):
    """Examples of one group."""

    inputs: dict[str, Tensor]
    labels: Tensor
    group: str


class LossSurface:
    """The mean loss of a model over fixed examples, as a function of its trainable parameters.

    Every pass runs in evaluation mode; those with the Hessian with attention that can be differentiated twice.
    Afterwards the model's weights, `.grad` and modes are what they were, also when a pass raises.

    Args:
        model: an image or sequence classification model, or any that gives logits (N, K); in float32 or float64.
        batches: what the model takes, with `labels`: a DataLoader. They are kept in the memory of the host. A batch of
            one group costs less than one of several, as it is split.
        frequencies: of the training set; its thresholds make the groups.
        losses: logits (N, K) and labels (N,) to one loss per example, (N,); default: cross-entropy.
        progress: what the progress bar says; None: no bar.

    Attributes:
        examples: how many examples each group has, of `GROUPS`.

    Raises:
        ValueError: no trainable parameters, a model in half precision, no examples, batches without labels, or labels
            that are not classes.

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
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no trainable parameters: every requires_grad is False.")
        if low := {p.dtype for p in self.parameters} - {torch.float32, torch.float64}:
            raise ValueError(
                f"the model is in {low.pop()}, whose rounding is larger than what is measured. Use model.float()."
            )
        self._batches = list(_by_group(batches, frequencies))
        self.examples = _examples(self._batches)
        if not self.examples["all"]:
            raise ValueError("there are no examples to measure the loss on.")
        self.bar = tqdm(desc=progress, unit="pass", disable=progress is None, leave=False)

    @property
    def groups(self) -> list[str]:
        """Those of `GROUPS` that have examples."""
        return [group for group in GROUPS if self.examples[group]]

    @property
    def size(self) -> int:
        """The number of trainable parameters, P."""
        return sum(parameter.numel() for parameter in self.parameters)

    def subset(self, size: int, seed: int = 0) -> LossSurface:
        """Keep a part of the examples, of every class its share.

        Args:
            size: how many, at most.
            seed: of the choice.

        Returns:
            Another surface, of the same model; this one where it has no more examples.
        """
        if size >= self.examples["all"]:
            return self
        labels = torch.cat([batch.labels for batch in self._batches])
        keep = torch.zeros(len(labels), dtype=torch.bool)
        keep[stratified_sample(labels.numpy(), size, seed)] = True
        other = copy.copy(self)
        parts = keep.split([len(batch.labels) for batch in self._batches])
        chosen = [_select(b, rows) for b, rows in zip(self._batches, parts, strict=True) if rows.any()]
        other._batches = _merged(chosen, max(len(batch.labels) for batch in self._batches))
        other.examples = _examples(other._batches)
        return other

    def loss(self, group: str = "all") -> dict[str, float]:
        """Compute the mean loss, in one forward pass.

        Args:
            group: whose examples are looked at, one of `GROUPS`.

        Returns:
            The mean loss L_g of each group looked at that has examples, summed in float64.

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
            L_g as `loss` gives it, and ∇L_g with one tensor per trainable parameter, of each group that has examples.

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
        """Multiply the Hessian with a vector: H_g v = ∇ (vᵀ ∇L_g), in one pass with two backward passes.

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
        """Compute vᵀ H_g v of several vectors for every group, in one pass: a backward pass, and one more for each v.

        Args:
            vectors: gives the vectors v, each one tensor per trainable parameter. It is called for every batch, so that
                there need not be memory for all of them.

        Returns:
            For each group that has examples, a value per vector, summed in float64.

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
            del slopes  # and with them the graph, before the next one
        sums["all"] = sum(sums[group] for group in self.groups[1:])
        return {group: value / self.examples[group] for group, value in sums.items()}

    def hessian(self, group: str = "all") -> LinearOperator:
        """Give the Hessian of a group's mean loss as scipy's algorithms take it.

        Args:
            group: one of `GROUPS` that has examples.

        Returns:
            H_g, a (P, P) operator of the parameters' precision; the parameters in their order, each flattened.

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
        """Draw random directions, each of length 1 over all parameters together; the same on every device.

        Args:
            seed: of the draw.

        Yields:
            One tensor per trainable parameter.
        """
        for drawn in self._drawn(torch.randn, seed):
            norm = torch.stack(torch._foreach_norm(drawn, dtype=torch.float64)).norm().item()
            yield [(part / norm).to(p.device) for part, p in zip(drawn, self.parameters, strict=True)]

    def signs(self, seed: int = 0) -> Iterator[list[Tensor]]:
        """Draw random signs, a +1 or −1 for every parameter; the same on every device.

        Args:
            seed: of the draw.

        Yields:
            One tensor per trainable parameter.
        """
        for drawn in self._drawn(partial(torch.randint, 2), seed):
            yield [part.mul_(2).sub_(1).to(p.device) for part, p in zip(drawn, self.parameters, strict=True)]

    def units(self) -> Iterator[list[Tensor]]:
        """Give the unit vectors: 1 for one of the parameters, in their order, and 0 for the others.

        Yields:
            One tensor per trainable parameter, P times.
        """
        for row in torch.eye(self.size, dtype=self.parameters[0].dtype, device=self.parameters[0].device):
            yield self._in_shapes(row)

    def moved(self, direction: Sequence[Tensor], distance: float, group: str = "all") -> dict[str, float]:
        """Compute the mean loss somewhere else: L_g(w + distance · direction).

        Args:
            direction: one tensor per trainable parameter.
            distance: how far; below 0 the other way.
            group: whose examples are looked at.

        Returns:
            As `loss`.
        """
        with perturbed(self.parameters, list(torch._foreach_mul(list(direction), distance))):
            return self.loss(group)

    def _means(self, sums: dict[str, float], groups: Sequence[str]) -> dict[str, float]:
        sums["all"] = math.fsum(sums.values())
        if not math.isfinite(sums["all"]):
            raise ValueError(f"the loss is {sums['all']}: the model, moved or not, gives no finite loss.")
        return {group: sums[group] / self.examples[group] for group in groups}

    def _drawn(self, draw: Callable[..., Tensor], seed: int) -> Iterator[list[Tensor]]:
        generator = torch.Generator().manual_seed(seed)  # of the host, whatever the device
        while True:
            yield [draw(p.shape, generator=generator, dtype=p.dtype) for p in self.parameters]

    def _in_shapes(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def _slopes(self, group: str) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        """Give each batch's group, and the gradient of its summed loss, to be differentiated again."""
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

    def _pass(self, group: str, attention: SDPBackend | None = None) -> Iterator[tuple[_Batch, Tensor]]:
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
                        f"losses must give one loss per example, {tuple(batch.labels.shape)}; got shape "
                        f"{tuple(losses.shape)}."
                    )
                yield batch, losses
                del outputs, logits, losses
        self.bar.update()


def stratified_sample(labels: Any, size: int, seed: int = 0) -> np.ndarray:
    """Choose examples so that every class keeps its share, and at least one example where there is room.

    Args:
        labels: (N,) class indices.
        size: how many examples, >= 1; all of them where there are no more.
        seed: of the choice.

    Returns:
        Indices in [0, N), ascending: min(size, N) of them.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> labels = np.repeat([0, 1, 2], [80, 19, 1])
        >>> np.bincount(labels[stratified_sample(labels, 20)]).tolist()
        [15, 4, 1]
    """
    labels = np.asarray(labels)
    if size < 1:
        raise ValueError(f"the sample must have at least 1 example, got {size}.")
    if size >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    classes, inverse, counts = np.unique(labels[order], return_inverse=True, return_counts=True)
    ordered = np.argsort(inverse, kind="stable")
    place = np.empty(len(labels), int)  # of an example in the order of its class
    place[ordered] = np.concatenate([np.arange(count) for count in counts])
    # Where a class is in its own order, from 0 to 1: the first of every class come first, then all in step.
    priority = np.where(place == 0, -1.0 / counts[inverse], (place + 0.5) / counts[inverse])
    if size < len(classes):
        priority = np.where(place == 0, -counts[inverse].astype(float), 1.0)
    return np.sort(order[np.argsort(priority, kind="stable")[:size]])


def _by_group(batches: Iterable[Mapping[str, Tensor]], frequencies: ClassFrequencies) -> Iterator[_Batch]:
    group_of = torch.empty(frequencies.num_classes, dtype=torch.int64)
    for number, classes in enumerate(frequencies.groups.values()):
        group_of[torch.as_tensor(classes)] = number
    for batch in batches:
        if "labels" not in batch:
            raise ValueError(f"a batch has no `labels`, only {', '.join(map(repr, batch))}.")
        labels = batch["labels"].cpu()
        counted = labels != IGNORED_LABEL
        if bool(((labels < 0) | (labels >= frequencies.num_classes))[counted].any()):
            raise ValueError(
                f"a batch has labels from {int(labels[counted].min())} to {int(labels[counted].max())}; expected class "
                f"indices from 0 to {frequencies.num_classes - 1}."
            )
        inputs = {name: value.cpu() for name, value in batch.items() if name != "labels"}
        groups = group_of[labels.clamp(min=0)]
        for number, name in enumerate(frequencies.groups):
            if bool((rows := counted & (groups == number)).any()):
                yield _select(_Batch(inputs, labels, name), rows)


def _examples(batches: Sequence[_Batch]) -> dict[str, int]:
    sizes = {group: sum(len(batch.labels) for batch in batches if batch.group == group) for group in GROUPS[1:]}
    return {"all": sum(sizes.values())} | sizes


def _select(batch: _Batch, rows: Tensor) -> _Batch:
    if bool(rows.all()):
        return batch
    return _Batch({name: value[rows] for name, value in batch.inputs.items()}, batch.labels[rows], batch.group)


def _merged(batches: Iterable[_Batch], size: int) -> list[_Batch]:
    """Put small batches of one group and shape together, `size` examples at most."""
    merged: list[_Batch] = []
    for batch in sorted(batches, key=_kind):
        last = merged[-1] if merged else None
        if last and _kind(last) == _kind(batch) and len(last.labels) + len(batch.labels) <= size:
            inputs = {name: torch.cat([last.inputs[name], value]) for name, value in batch.inputs.items()}
            merged[-1] = _Batch(inputs, torch.cat([last.labels, batch.labels]), batch.group)
        else:
            merged.append(batch)
    return merged


def _kind(batch: _Batch) -> tuple[int, list[tuple[str, tuple[int, ...]]]]:
    return GROUPS.index(batch.group), sorted((name, tuple(x.shape[1:])) for name, x in batch.inputs.items())


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return torch.stack([(a.double() * b).sum() for a, b in zip(one, other, strict=True)]).sum().item()


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
