"""The adapter between the sharpness engine and the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn

from hf_sharp.sharpness.draws import drawn_rows
from hf_sharp.trainer.preflight import labels_in


class TrainerLoop:
    """A `hf_sharp.sharpness.engine.TrainingLoop` on top of a `SharpTrainer`.

    Args:
        trainer: the `SharpTrainer`.
        plain_step: its training step without sharpness: maps model, inputs and number of examples to the loss.
    """

    def __init__(self, trainer: Any, plain_step: Callable[..., Tensor]) -> None:
        self.trainer, self.plain_step = trainer, plain_step
        args = trainer.args
        self.device, self.num_processes, self.process_index = args.device, args.world_size, args.process_index
        self.counted_processes = trainer.counted_processes
        self.is_sharded = bool(trainer.is_fsdp_enabled)
        self.prepare = trainer._prepare_inputs
        self.reduce = trainer._reduce

    @property
    def step(self) -> int:
        """The number of optimizer steps taken so far."""
        return self.trainer.state.global_step

    def labels(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the labels of a micro-batch: (N,) class indices."""
        return labels_in(inputs, self.trainer.args.label_column)

    @property
    def progress(self) -> float:
        """The fraction of the training that is done, from 0 to 1."""
        return self.trainer.progress

    @property
    def window_ends(self) -> bool:
        """Whether the current micro-batch is the last one of its accumulation window."""
        return self.trainer.accelerator.sync_gradients

    @property
    def optimizer(self) -> Any:
        """The optimizer."""
        return self.trainer.optimizer

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimizer step."""
        return self.trainer._get_learning_rate()

    @property
    def grad_scale(self) -> Tensor | float:
        """The factor by which float16 loss scaling scales gradients."""
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.device))

    def begin_step(self, model: nn.Module) -> None:
        """Put model and optimizer into training mode, and empty the device cache as often as configured."""
        model.train()
        if callable(to_training_mode := getattr(self.trainer.optimizer, "train", None)):
            to_training_mode()
        every = self.trainer.args.torch_empty_cache_steps
        if every is not None and self.step % every == 0:
            clear_device_cache()

    def losses(self, model: nn.Module, inputs: Any, frozen: Any = None) -> Tensor:
        """Run a forward pass, and return the loss of each example."""
        with self.trainer.compute_loss_context_manager():
            return self.trainer._losses(model, inputs, frozen)[0]

    def frozen_loss(self) -> Any:
        """Return a copy of the loss whose state stays as it is now."""
        return self.trainer.class_loss.frozen()

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Run a backward pass, with loss scaling."""
        self.trainer.accelerator.backward(loss, retain_graph=retain_graph)

    def without_sync(self, model: nn.Module) -> AbstractContextManager:
        """Do not average the gradients of passes in the block over processes."""
        synchronized = self.num_processes == 1 or self.is_sharded
        return nullcontext() if synchronized else self.trainer.accelerator.no_sync(model)

    def over_processes(self, value: Tensor, how: str) -> Tensor:
        """Reduce a tensor over processes; `how` is "mean" or "sum"."""
        return self.trainer.accelerator.reduce(value, how)

    def validation_inputs(self, draws: int) -> dict[str, Any]:
        """Draw a micro-batch of `rho_dataset`, and move it to the device without waiting."""
        trainer, data = self.trainer, self.trainer.rho_dataset
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator, "validation")
        number = draws * self.num_processes + self.process_index
        rows = drawn_rows(number, trainer._train_batch_size, len(data), trainer.args.seed)
        inputs = collate([data[row] for row in rows.tolist()])
        if self.device.type == "cuda":
            inputs = {n: v.pin_memory() if isinstance(v, Tensor) else v for n, v in inputs.items()}
        return self.prepare(send_to_device(inputs, self.device, non_blocking=True))
