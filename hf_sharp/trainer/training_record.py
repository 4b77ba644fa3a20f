"""Records of a training: whether losses and weights stay finite, the time, the mean loss, and the cost of a step.

If a training is interrupted and resumed from a checkpoint, its time and mean loss include all parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_sharp.sharpness.ascent import local_parts, trainable_parameters


class TrainingRecord(TrainerCallback, ExportableState):
    """Records time and losses of a training, which every checkpoint contains, and the number of passes.

    Adding losses and counting passes does not synchronize with the device.

    Args:
        device: the device of the losses.

    Attributes:
        forward: the number of examples in forward passes, since training began or was resumed.
        backward: the number of examples in backward passes, likewise.

    Example:
        >>> record = TrainingRecord("cpu")
        >>> record.add(torch.tensor(2.0)), record.add(torch.tensor(float("nan")))
        (None, None)
        >>> record.pop(lambda sums: sums, processes=1)
        (1, 2)
        >>> logits = torch.zeros(8, 2, requires_grad=True)
        >>> record.count(logits), record.count(logits), logits.sum().backward(), record.add(torch.tensor(2.0), 8)
        (None, None, None, None)
        >>> record.passes
        2.0
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device
        self.start_again({}, 0)

    def start_again(self, saved: Mapping[str, Any], step: int) -> None:
        """Begin a part of a training.

        Args:
            saved: the result of `state` from the checkpoint of the previous part; empty for the first part.
            step: the step that the part begins with.
        """
        attributes = saved.get("attributes", {})
        self._seconds, self._loss = float(attributes.get("seconds", 0)), float(attributes.get("loss", 0))
        self._first_step, self._started = step, time.time()
        self._sums, self._seen = torch.zeros(2, device=self._device), 0
        self._examples = self.forward = self.backward = 0

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the seconds and the sum of losses so far.

        Returns:
            Empty `args`, and the state under `attributes`.
        """
        seconds = self._seconds + time.time() - self._started
        return {"args": {}, "attributes": {"seconds": seconds, "loss": self._loss}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the passes from here on: `auto_find_batch_size` begins again with smaller batches."""
        self._examples = self.forward = self.backward = 0

    def add(self, loss: Tensor, examples: int = 0) -> None:
        """Add the loss of a micro-batch, and the number of its examples."""
        loss = loss.detach()
        finite = loss.isfinite()
        self._sums += torch.stack([torch.where(finite, loss, 0), ~finite]).to(self._sums)
        self._seen += 1
        self._examples += examples

    def count(self, logits: Tensor) -> None:
        """Count the examples of a forward pass with logits (N, K), and those of every backward pass through it.

        A pass without gradients is not part of training, and is not counted.
        """
        if logits.requires_grad:
            self.forward += len(logits)
            logits.register_hook(self._count_backward)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    @property
    def passes(self) -> float:
        """The mean cost of a step relative to a plain step, since training began or was resumed; 0 before the first.

        Computed as (forward + 2 backward) / 3, divided by the number of training examples.
        """
        return (self.forward + 2 * self.backward) / (3 * max(self._examples, 1))

    def pop(self, over_processes: Callable[[Tensor], Tensor], processes: int) -> tuple[int, int]:
        """Return how many losses since the last call were not finite, and how many there were in total.

        This synchronizes with the device.

        Args:
            over_processes: sums a tensor over the processes.
            processes: the number of processes.
        """
        loss, bad = over_processes(self._sums).tolist()
        self._loss += loss / processes
        seen, self._seen = self._seen * processes, 0
        self._sums.zero_()
        return int(bad), seen

    def of_all_parts(self, metrics: Mapping[str, float], step: int) -> dict[str, float]:
        """Correct the final metrics of a training that was interrupted, so that they cover all parts.

        Args:
            metrics: `train_runtime` and others, of the last part.
            step: the last step.

        Returns:
            The metrics whose values differ for the whole training.
        """
        if not self._first_step or not self._seconds or step <= self._first_step:
            return {}
        part = metrics["train_runtime"]
        # Older versions of transformers include the steps of earlier parts, newer ones do not.
        counted = min(step, step - self._first_step, key=lambda n: abs(n - part * metrics["train_steps_per_second"]))
        share, seconds = step / counted, self._seconds + part
        rates = ("train_samples_per_second", "train_steps_per_second")
        corrected = {name: round(metrics[name] * part * share / seconds, 3) for name in rates if name in metrics}
        loss = {"train_loss": self._loss / step} if "train_loss" in metrics else {}
        return {"train_runtime": round(seconds, 4), **corrected, **loss}


def weights_are_finite(model: nn.Module, over_processes: Callable[[Tensor], Tensor]) -> bool:
    """Tell whether all trained weights are finite; synchronizes with the device.

    Args:
        model: the model.
        over_processes: sums a tensor over the processes, each of which may hold other shards.
    """
    weights = [parameter.detach() for parameter in trainable_parameters(model) if parameter.is_floating_point()]
    flags = [~part.isfinite().all() for part in local_parts(weights)]
    return not flags or not over_processes(torch.stack(flags).sum().float()).item()


def advice(args: Any, step: int, what: str) -> str:
    """Say what to change after the losses or weights of a training became infinite or NaN.

    Args:
        args: `SharpTrainingArguments`.
        step: the step at which it was noticed.
        what: subject and verb, as in "the loss is".

    Returns:
        The error message.
    """
    changes = [f"lower learning_rate (it is {args.learning_rate:g})"]
    changes += ["lower rho" if args.sharpness != "none" else "", "use bf16 instead of fp16" if args.fp16 else ""]
    return (
        f"training stopped at step {step}: {what} not finite (NaN or infinite), and this step was not published. "
        f"{', or '.join(filter(None, changes)).capitalize()}; and check that the inputs hold no such values."
    )
