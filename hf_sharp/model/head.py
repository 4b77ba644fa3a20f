"""The classifier head: the linear layer that makes the logits, and the features that go into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_sharp.data.labels import IGNORED_LABEL


class ClassifierHead:
    """Watches a model for the features that its last linear layer turned into the logits.

    Args:
        model: the model; every `nn.Linear` with as many outputs as there are classes is looked at.
        num_classes: K.
        name: the module's name, where it is not to be found.

    Raises:
        ValueError: there is no such module, or none with K outputs.

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
            found = [f"{path} ({module.out_features})" for path, module in layers.items()][-8:]
            raise ValueError(
                f"{wanted} with {num_classes} outputs, one per class. The last linear layers are {', '.join(found)}. "
                "Name the one that makes the logits with head=."
            )
        self._module: nn.Linear | None = None
        self._seen: tuple[nn.Linear, Tensor, Tensor] | None = None
        self._hooks = [module.register_forward_hook(self._watch) for module in self.candidates.values()]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the last pass left, which a copy of the model has no use for and cannot copy."""
        return vars(self) | {"_seen": None}

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> ClassifierHead:
        """Watch for the time of a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hooks off the model."""
        self.close()

    @property
    def module(self) -> nn.Linear:
        """The layer, known after the first forward pass."""
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
        """Give what went into the layer that made the logits of the pass just run.

        Args:
            logits: (N, K), what the model returned.

        Returns:
            (N, d), with its graph.

        Raises:
            ValueError: the logits are not what the layer gave: something is done to them afterwards.
        """
        seen, self._seen = self._seen, None  # nothing of the pass is kept
        if seen is None:
            raise ValueError(self._not_found())
        module, features, output = seen
        if self._module is not module:  # compared once, as it reads from the device
            same = output.shape == logits.shape and torch.equal(
                output.float().nan_to_num(), logits.float().nan_to_num()
            )
            if features.ndim != 2 or not same:
                raise ValueError(self._not_found())
            self._module = module
        return features

    def _watch(self, module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen = (module, inputs[0], output)

    def _not_found(self) -> str:
        return (
            "the logits are not the output of a linear layer of (N, d) features; looked at "
            f"{', '.join(map(repr, self.candidates))}. Name the layer that makes them with head=, or choose a method "
            "that does not need it."
        )


def features_in_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    num_classes: int,
    name: str | None = None,
    progress: str | None = None,
) -> Iterator[tuple[Tensor, Tensor, nn.Linear]]:
    """Run a model over data, and give the features that its head turned into logits, batch by batch.

    Args:
        model: an image or sequence classification model; it is in evaluation mode for the time, and its hooks are
            afterwards what they were.
        batches: what the model takes, with `labels`: a DataLoader.
        num_classes: K.
        name: the name of the head, where it is not found.
        progress: what the progress bar says; None: no bar.

    Yields:
        Features (N, d) on the model's device, labels (N,) there too, and the head.

    Raises:
        ValueError: there is no linear head, or a batch has no labels, or others than 0 to K − 1 and -100.

    Example:
        >>> data = [{"input": torch.ones(3, 2), "labels": torch.tensor([0, 1, 0])}]
        >>> [features.shape for features, labels, head in features_in_batches(nn.Sequential(nn.Linear(2, 2)), data, 2)]
        [torch.Size([3, 2])]
    """
    device = next(model.parameters()).device
    with evaluation_mode(model), ClassifierHead(model, num_classes, name) as head:
        for batch in tqdm(batches, desc=progress, unit="batch", disable=progress is None, leave=False):
            if "labels" not in batch:
                raise ValueError(f"a batch has no `labels`, only {', '.join(map(repr, batch))}.")
            known = batch["labels"][batch["labels"] != IGNORED_LABEL]
            if ((known < 0) | (known >= num_classes)).any():
                raise ValueError(f"expected labels from 0 to {num_classes - 1}, or -100; got {known.tolist()}.")
            inputs = {key: value.to(device) for key, value in batch.items()}
            labels = inputs.pop("labels")
            with torch.inference_mode():
                outputs = model(**inputs)
                features = head.features_of(outputs if isinstance(outputs, Tensor) else outputs["logits"])
            yield features, labels, head.module


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the time of the block; parts that were frozen in it stay in it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
