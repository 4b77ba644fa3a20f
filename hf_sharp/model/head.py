"""The classifier head: the linear layer that computes the logits, and the features it receives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_sharp.data.labels import IGNORED_LABEL


class ClassifierHead:
    """Finds a model's classifier head, and records the features that the head receives.

    Args:
        model: the model; every `nn.Linear` with K outputs is a candidate.
        num_classes: K.
        name: the name of the head's module, if it cannot be found automatically.

    Raises:
        ValueError: there is no module of that name, or none with K outputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> head = ClassifierHead(model, num_classes=3)
        >>> logits = model(torch.ones(2, 4))
        >>> head.features_of(logits).shape, head.module is model[2]
        (torch.Size([2, 8]), True)
    """

    def __init__(self, model: nn.Module, num_classes: int, name: str | None = None) -> None:
        layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        self.candidates = {
            path: module
            for path, module in layers.items()
            if module.out_features == num_classes and name in (None, path)
        }
        if not self.candidates:
            wanted = f"head={name!r} is not a linear layer" if name else "no linear layer of the model"
            last = [f"{path} ({module.out_features})" for path, module in layers.items()][-8:]
            raise ValueError(
                f"{wanted} with {num_classes} outputs, one per class. The last linear layers are {', '.join(last)}. "
                "Name the one that computes the logits with head=."
            )
        self._module: nn.Linear | None = None
        self._seen: tuple[nn.Linear, Tensor, Tensor] | None = None
        self._mask: Tensor | None = None
        self._hooks = [module.register_forward_hook(self._watch) for module in self.candidates.values()]
        self._hooks.append(model.register_forward_pre_hook(self._watch_mask, with_kwargs=True))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the activations of the last pass, which cannot be copied together with the model."""
        return vars(self) | {"_seen": None, "_mask": None}

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> ClassifierHead:
        """Keep the hooks for the duration of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks from the model."""
        self.close()

    @property
    def module(self) -> nn.Linear:
        """The layer; known after the first call of `features_of`."""
        if self._module is None:
            raise ValueError("the head is known after the first forward pass.")
        return self._module

    @property
    def feature_dim(self) -> int:
        """The size of the features, d."""
        sizes = {module.in_features for module in self.candidates.values()}
        return self.module.in_features if self._module is not None or len(sizes) > 1 else sizes.pop()

    @property
    def parameters(self) -> list[Tensor]:
        """The layer's weight, and its bias if it has one."""
        return list(self.module.parameters(recurse=False))

    def features_of(self, logits: Tensor) -> Tensor:
        """Return the features from which the last forward pass computed its logits.

        The head of a decoder computes logits for every token, of which the model returns those of one: its features
        are those of the last attended token with these logits.

        Args:
            logits: (N, K), as returned by the model.

        Returns:
            (N, d), part of the autograd graph.

        Raises:
            ValueError: the logits are not the output of a candidate layer; the model changes them afterwards.
        """
        seen, self._seen, mask, self._mask = self._seen, None, self._mask, None  # frees the activations
        if seen is None:
            raise ValueError(self._not_found())
        module, features, output = seen
        if output.ndim == 3 and logits.shape == (len(output), output.shape[2]):
            features, output = _at_token(features, output, logits, mask)
        if self._module is not module:  # compared only once, as this waits for the device
            same = output.shape == logits.shape and torch.equal(
                output.float().nan_to_num(), logits.float().nan_to_num()
            )
            if features.ndim != 2 or not same:
                raise ValueError(self._not_found())
            self._module = module
        return features

    def _watch(self, module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen = (module, inputs[0], output)

    def _watch_mask(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._mask = named.get("attention_mask")

    def _not_found(self) -> str:
        looked_at = ", ".join(map(repr, self.candidates))
        remedy = "choose" if len(self.candidates) == 1 else "name the layer that computes them with head=, or choose"
        return (
            f"the logits are not the output of a linear layer of (N, d) features; looked at {looked_at}. Please "
            f"{remedy} a method that does not need it."
        )


def _at_token(features: Tensor, output: Tensor, logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    # Picks each example's last token with these logits (N, K): (N, T, d) and (N, T, K) become (N, d) and (N, K). In low
    # precision tokens of the padding can have the same logits; the mask (N, T) leaves them out.
    same = (output.to(logits.dtype) == logits[:, None]).all(2)
    if mask is not None and mask.shape == same.shape:
        same = same & mask.bool()
    last = same.shape[1] - 1 - same.flip(1).int().argmax(1)
    rows = torch.arange(len(last), device=last.device)
    return features[rows, last], output[rows, last]


def features_in_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    num_classes: int,
    name: str | None = None,
    progress: str | None = None,
) -> Iterator[tuple[Tensor, Tensor, nn.Linear]]:
    """Run a model over data, and yield the features that its head receives, batch by batch.

    Args:
        model: an image or sequence classification model. It runs in evaluation mode; modes and hooks are restored.
        batches: model inputs with `labels`, such as a DataLoader.
        num_classes: K.
        name: the name of the head, if it cannot be found automatically.
        progress: the label of the progress bar; None for no bar.

    Yields:
        Features (N, d) and labels (N,), both on the model's device, and the head.

    Raises:
        ValueError: there is no linear head, or as `labels_of`.

    Example:
        >>> data = [{"input": torch.ones(3, 2), "labels": torch.tensor([0, 1, 0])}]
        >>> [features.shape for features, labels, head in features_in_batches(nn.Sequential(nn.Linear(2, 2)), data, 2)]
        [torch.Size([3, 2])]
    """
    device = next(model.parameters()).device
    with evaluation_mode(model), ClassifierHead(model, num_classes, name) as head:
        for batch in tqdm(batches, desc=progress, unit="batch", disable=progress is None, leave=False):
            labels = labels_of(batch, num_classes).to(device)
            inputs = {key: value.to(device) for key, value in batch.items() if key != "labels"}
            with torch.inference_mode():
                outputs = model(**inputs)
                features = head.features_of(outputs if isinstance(outputs, Tensor) else outputs["logits"])
            yield features, labels, head.module


def labels_of(batch: Mapping[str, Tensor], num_classes: int) -> Tensor:
    """Take the labels out of a batch, and check the batch.

    Args:
        batch: model inputs with `labels`, (N,) class indices of any integer type, or -100.
        num_classes: K.

    Returns:
        (N,) int64.

    Raises:
        ValueError: it is not a mapping to tensors, or has no labels, or labels other than 0 to K − 1 and -100.

    Example:
        >>> labels_of({"input": torch.ones(2, 4), "labels": torch.tensor([1, -100], dtype=torch.int32)}, num_classes=2)
        tensor([   1, -100])
    """
    kinds = {name: type(value).__name__ for name, value in batch.items()} if isinstance(batch, Mapping) else {}
    if not kinds or not all(isinstance(value, Tensor) for value in batch.values()):
        got = ", ".join(f"{name!r}: {kind}" for name, kind in kinds.items()) or type(batch).__name__
        raise ValueError(
            f"expected batches of tensors, such as {{'pixel_values': ..., 'labels': ...}} from a DataLoader; got {got}."
        )
    if "labels" not in batch:
        raise ValueError(f"a batch has no `labels`, only {', '.join(map(repr, batch))}.")
    labels = batch["labels"]
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"expected one class index per example in `labels`; got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    labels = labels.long()
    known = labels[labels != IGNORED_LABEL]
    if ((known < 0) | (known >= num_classes)).any():
        raise ValueError(
            f"a batch has labels from {int(known.min())} to {int(known.max())}; expected class indices from 0 to "
            f"{num_classes - 1}, or {IGNORED_LABEL}."
        )
    return labels


def is_cosine_linear(kind: type) -> bool:
    """Tell whether a class is `CosineLinear`, of this package or of the copy of its file beside a saved model."""
    return kind.__name__ == "CosineLinear" and kind.__module__.rpartition(".")[2] == "modeling_cosine_head"


def check_is_linear(layer: nn.Linear) -> None:
    """Raise a ValueError for a head that does not compute W f + b."""
    if type(layer).forward is not nn.Linear.forward:
        raise ValueError(
            f"the head is a {type(layer).__name__}, which does not compute W f + b, so that changing W or b would not "
            "have the intended effect."
        )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the duration of the block, then restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
