"""SharpTrainer: `Trainer` with a sharpness-aware training step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import HostLabelCollator, read_labels
from hf_sharp.data.sampling import ClassSampler, EpochCounter
from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.sharpness import METHODS
from hf_sharp.sharpness.engine import SharpnessEngine
from hf_sharp.trainer import labelled_data, preflight
from hf_sharp.trainer.long_tail_trainer import LongTailTrainer
from hf_sharp.trainer.training_loop import TrainerLoop
from hf_sharp.training_args import SharpTrainingArguments


class SharpTrainer(LongTailTrainer):
    """`Trainer` with a sharpness-aware training step, a class-frequency-aware loss and the long-tail report.

    Args:
        model: an image or sequence classification model with one label per example, as for `Trainer`.
        args: `SharpTrainingArguments`.
        data_collator: as for `Trainer`.
        train_dataset: as for `Trainer`. The class counts are read from its label column, unless `class_frequencies`
            is set.
        eval_dataset: as for `Trainer`.
        processing_class: as for `Trainer`.
        *trainer_args: further arguments of `Trainer`.
        class_frequencies: the class frequencies or the counts (K,) of the training set, if they cannot be read from
            `train_dataset` (a stream), or should differ from its counts (a resampled dataset).
        class_loss: your own loss, a `hf_sharp.losses.ClassFrequencyLoss`, to use instead of the one that
            `SharpTrainingArguments(loss=...)` names.
        rho_dataset: the examples that a learned radius is validated on. By default, examples are held out from
            `train_dataset`.
        train_transform: a transform of training batches, such as augmentation, that replaces the transform of
            `train_dataset` (see `datasets.Dataset.with_transform`) in training only: the pass for class means, the
            examples held out for a learned radius, and evaluations use the dataset's own transform. If it has a method
            `set_epoch`, that method is called with the number of each epoch.
        **trainer_kwargs: further arguments of `Trainer`. Without `compute_metrics`, the long-tail report is computed.

    Raises:
        ValueError: before training starts, if labels are missing or outside the model's classes, the head does not fit
            the classes or is for multi-label or regression, a stream comes without `class_frequencies`,
            `compute_loss_func` is passed, `train_transform` is passed with a dataset that is not a `datasets.Dataset`,
            or the training mode is not supported.

    Example:
        >>> import tempfile, torch
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> model = ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4, num_labels=2))
        >>> rows = [{"pixel_values": torch.randn(3, 8, 8), "labels": int(i % 6 == 0)} for i in range(24)]
        >>> options = {"sharpness": "sam", "ascent": "momentum", "max_steps": 2, "save_strategy": "no"}
        >>> args = SharpTrainingArguments(tempfile.mkdtemp(), **options)
        >>> trainer = SharpTrainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
        >>> trainer.class_frequencies.counts.tolist()
        [20, 4]
        >>> report = trainer.train() and trainer.evaluate()  # doctest: +ELLIPSIS
        {'train_runtime': ...
        >>> {"eval_balanced_accuracy", "eval_few_accuracy", "eval_worst_class_recall"} <= set(report)
        True
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: SharpTrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *trainer_args: Any,
        class_frequencies: ClassFrequencies | Sequence[int] | None = None,
        class_loss: ClassFrequencyLoss | None = None,
        rho_dataset: Any = None,
        train_transform: Callable[[dict], dict] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        args = SharpTrainingArguments("tmp_trainer") if args is None else args
        if train_transform is not None and not isinstance(train_dataset, datasets.Dataset):
            raise ValueError(
                f"train_transform needs a datasets.Dataset as train_dataset, got {type(train_dataset).__name__}. Apply "
                "the transform in your dataset instead."
            )
        preflight.check_arguments(args, train_dataset)
        args.label_column = labelled_data.label_column_of(train_dataset, eval_dataset, args.label_column)
        label2id = getattr(getattr(model, "config", None), "label2id", None)
        train_dataset, self.rho_dataset = labelled_data.hold_out(train_dataset, rho_dataset, args, label2id)
        if class_frequencies is not None and not isinstance(class_frequencies, ClassFrequencies):
            class_frequencies = ClassFrequencies.from_counts(class_frequencies)
        positional = (model, args, data_collator, train_dataset, eval_dataset, processing_class, *trainer_args)
        super().__init__(*positional, class_frequencies=class_frequencies, class_loss=class_loss, **trainer_kwargs)
        if train_transform is not None and args.remove_unused_columns:
            transformed = {
                "train_transform": cast(datasets.Dataset, self.train_dataset).with_transform(train_transform)
            }
            labelled_data.check_transforms(transformed, cast(list[str], self._signature_columns))
        self._epochs = EpochCounter(getattr(train_transform, "set_epoch", None))
        self.add_callback(self._epochs)
        self.train_transform = train_transform
        if self.rho_dataset is not None:
            self.rho_dataset = self.classes.align(self.rho_dataset, "rho_dataset")
            held_out, config = {"rho_dataset": self.rho_dataset}, getattr(self.model, "config", None)
            labelled_data.check_labels(None, held_out, self.class_frequencies, args.label_column, config)
        if self.is_fsdp_enabled:
            preflight.check_fsdp(self.accelerator.state.fsdp_plugin, args, self.class_loss)
            # Between synchronizations FSDP2 keeps gradients where the ascent has no access to them.
            self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True

    def _build_method(self, model: nn.Module) -> None:
        super()._build_method(model)
        method = METHODS[self.args.sharpness]
        if self._has_own_loss and (method.needs_radius or method.needs_features):
            raise ValueError(
                f"{type(self).__name__} overrides compute_loss, which returns one loss per batch, but "
                f"sharpness={self.args.sharpness!r} needs one per example. Derive a loss from "
                "hf_sharp.losses.ClassFrequencyLoss, and pass an instance: class_loss=MyLoss(class_counts)."
            )
        preflight.check_radius(model, self.rho_dataset, self.args, trains=self.train_dataset is not None)
        self.engine = SharpnessEngine(
            self.args,
            self.class_frequencies.counts,
            model,
            TrainerLoop(self, super().training_step),
            self.step_means,
            separable=preflight.check_parts(model, self.args, self.class_loss),
        )
        self._remember(**self.engine.stateful)

    @property
    def rho(self) -> Tensor | float:
        """The radius of the current step; a learned radius is a tensor on the device."""
        return self.engine.rho

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the sharpness-aware gradient of one micro-batch to `.grad`.

        Args:
            model: the model, as wrapped for training.
            inputs: the micro-batch, with `labels`.
            num_items_in_batch: the number of examples in the accumulation window, over all processes.

        Returns:
            The micro-batch's loss at the unperturbed weights, as plain training logs it.
        """
        loss = self.engine.step(model, inputs, num_items_in_batch)
        self.record.add(loss, len(inputs.get("labels", ())))
        return loss

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the micro-batches of an accumulation window, as `Trainer` does."""
        self.engine.begin_window()
        return super().get_batch_samples(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer` does; with the training loss, also log `rho` and mean `ascent_grad_norm` and `sharpness`.

        Args:
            logs: the values to log.
            start_time: the start of training.
        """
        if "loss" in logs:
            logs.update(self.engine.pop_log())
        super().log(logs, start_time)

    def get_train_dataloader(self) -> DataLoader:
        """Make the training dataloader, with `train_transform`.

        If some classes are not perturbed, the batches also contain their labels on the host.
        """
        # Dispatched batches are assembled from the tensors of several batches, which cannot carry extra attributes.
        dispatched = isinstance(self.train_dataset, preflight.STREAMS) or self.accelerator.dispatch_batches
        collator, data = self.data_collator, self.train_dataset
        if self.train_transform is not None:
            self.train_dataset = cast(datasets.Dataset, data).with_transform(self.train_transform)
        if self.engine.planner.needs_host_labels and not dispatched:
            self.data_collator = HostLabelCollator(collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator, self.train_dataset = cast(Callable, collator), data

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Make the evaluation dataloader, in which `dataloader_drop_last` drops no examples."""
        with self._all_examples():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Make the dataloader for predictions, in which `dataloader_drop_last` drops no examples."""
        with self._all_examples():
            return super().get_test_dataloader(*args, **kwargs)

    @contextmanager
    def _all_examples(self) -> Iterator[None]:
        kept, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = kept

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.args.sampler == "instance":
            return super()._get_train_sampler(train_dataset)
        data = labelled_data.selected(self.train_dataset if train_dataset is None else train_dataset)
        label2id = getattr(getattr(self.model, "config", None), "label2id", None)
        labels = read_labels(
            data, self.args.label_column, num_classes=self.class_frequencies.num_classes, label2id=label2id
        )
        args, num_epochs = self.args, self._num_epochs
        return ClassSampler(
            labels, args.sampler, args.seed_of_data, lambda: (self._epochs.epoch, num_epochs(len(labels)))
        )

    def _num_epochs(self, examples: int) -> float:
        args = self.args
        batches = examples / (self._train_batch_size * args.world_size)
        batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
        steps = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
        return max(self.state.max_steps / steps, 1e-9)  # before training, max_steps is 0

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = cast(list[str], self._signature_columns)
        if self.args.label_column not in columns:
            columns.append(self.args.label_column)
