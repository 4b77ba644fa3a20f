"""SharpTrainer: a micro-batch in, a sharpness-aware gradient in `.grad`. Everything else is the Trainer's own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer

from hf_sharp.checkpoint import check_keys, is_whole_model, load_weights, widest_dtype
from hf_sharp.class_frequencies import ClassFrequencies
from hf_sharp.labels import HOST_LABELS, IGNORED_LABEL, HostLabelCollator, LabelCollator, read_labels
from hf_sharp.losses import build_loss
from hf_sharp.metrics import compute_metrics_for
from hf_sharp.sharpness import class_coefficients, scheduled_rho, sharpness_aware_backward
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)


class SharpTrainer(Trainer):
    """`Trainer` with a sharpness-aware training step, a class-frequency-aware loss and the long-tail report.

    Args:
        model: an image or sequence classification model with one label per example, as for `Trainer`.
        args: `SharpTrainingArguments`.
        data_collator: as for `Trainer`.
        train_dataset: as for `Trainer`. The class counts are read from its label column, unless given.
        eval_dataset: as for `Trainer`.
        processing_class: as for `Trainer`.
        *trainer_args: what else `Trainer` takes.
        class_frequencies: the class frequencies of the training set, where they cannot be read from `train_dataset`
            (a stream), or are to be others than those read (a resampled set).
        **trainer_kwargs: what else `Trainer` takes. Without `compute_metrics`, the long-tail report is computed.

    Raises:
        ValueError: labels that are missing or outside the model's classes, a head that does not fit the classes, a
            multi-label or regression head, a stream without `class_frequencies`, `compute_loss_func`, or a mode of
            training that is not supported. All before training starts.
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
        class_frequencies: ClassFrequencies | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        args = SharpTrainingArguments("tmp_trainer") if args is None else args
        _check_arguments(args)
        given = (model, args, data_collator, train_dataset, eval_dataset, processing_class, *trainer_args)
        super().__init__(*given, **trainer_kwargs)
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func is not supported: SharpTrainer needs one loss per example, to weight it by class. "
                "Choose a loss with SharpTrainingArguments(loss=...)."
            )
        self.args: SharpTrainingArguments = args
        config = getattr(self.model, "config", None)
        _check_head(config)
        if not any(parameter.requires_grad for parameter in cast(nn.Module, self.model).parameters()):
            raise ValueError("no parameter of the model requires a gradient: there is nothing to train.")
        label2id = getattr(config, "label2id", None)
        num_classes = getattr(config, "num_labels", None)
        frequencies = class_frequencies or self._read_class_frequencies(num_classes, label2id)
        self.class_frequencies = dataclasses.replace(
            frequencies,
            names=frequencies.names or _names(config, frequencies.num_classes),
            rare_threshold=args.rare_threshold,
            common_threshold=args.common_threshold,
        )
        self._check_classes(num_classes, label2id)
        self._build_method()
        self.data_collator = LabelCollator(self.data_collator, args.label_column, label2id)
        if self.compute_metrics is None:
            self.compute_metrics = compute_metrics_for(self.class_frequencies)
        # Sums of ascent_grad_norm, of sharpness and of the micro-batches they come from, since the last log.
        self._step_sums = torch.zeros(3, device=args.device)
        self._last_rho = args.rho
        # The losses are divided by the number of examples in the accumulation window: see _reduce.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True

    def _build_method(self) -> None:
        counts, args = self.class_frequencies.counts, self.args
        self.class_loss = build_loss(args.loss, counts, **args.loss_options).to(args.device)
        coefficients = class_coefficients(args.sharpness, counts, **args.sharpness_options)
        if (coefficients > 1).any():
            logger.warning(
                "Coefficients reach %.3g: above 1, the loss at the unperturbed weights gets a negative weight.",
                coefficients.max(),
            )
        self._host_coefficients = coefficients.numpy()
        dtype = torch.promote_types(widest_dtype(cast(nn.Module, self.model)), torch.float32)
        self._coefficients = coefficients.to(args.device, dtype)

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        if trial is not None:  # the trial may have changed any argument
            self._build_method()

    # ---- one micro-batch -----------------------------------------------------------------------------------------

    @property
    def rho(self) -> float:
        """The radius of the current step."""
        progress = self.state.global_step / max(self.state.max_steps, 1)
        return scheduled_rho(self.args.rho, self.args.rho_schedule, progress)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the sharpness-aware gradient of one micro-batch to `.grad`.

        Args:
            model: the model, as wrapped for training.
            inputs: the micro-batch, with `labels`.
            num_items_in_batch: the examples of the whole accumulation window, on all processes.

        Returns:
            The micro-batch's loss at the unperturbed weights, as plain training logs it.
        """
        inputs = dict(inputs)
        host_labels = inputs.pop(HOST_LABELS, None)
        present = self._host_coefficients if host_labels is None else self._host_coefficients[host_labels]
        rho = self._last_rho = self.rho
        if rho == 0 or not present.any():
            return super().training_step(model, inputs, num_items_in_batch)

        model.train()
        if callable(to_training_mode := getattr(self.optimizer, "train", None)):
            to_training_mode()
        inputs = self._prepare_inputs(inputs)
        labels = self._labels(inputs)
        counted = (labels != IGNORED_LABEL).sum()

        def losses_at_current_weights() -> Tensor:
            with self.compute_loss_context_manager():
                return self._losses(model, inputs)[0]

        step = sharpness_aware_backward(
            model,
            losses_at_current_weights,
            self._coefficients[labels.clamp(min=0)],
            rho,
            reduce=lambda losses: self._reduce(losses, num_items_in_batch),
            mean=lambda losses: losses.sum() / counted,
            backward=lambda loss, retain_graph: self.accelerator.backward(loss, retain_graph=retain_graph),
            grad_scale=self._grad_scale(),
            adaptive_eta=self.args.adaptive_eta if self.args.adaptive else None,
            everything_perturbed=bool((present == 1).all()),
            without_sync=lambda: self.accelerator.no_sync(model) if self.args.world_size > 1 else nullcontext(),
        )
        sums = torch.stack([step.ascent_grad_norm, step.sharpness, torch.ones_like(step.sharpness)])
        self._step_sums += sums.to(self._step_sums)
        return step.loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the class-frequency-aware loss, reduced as the Trainer reduces.

        Args:
            model: the model.
            inputs: a batch with `labels`.
            return_outputs: also return the model's outputs.
            num_items_in_batch: what the sum of the losses is divided by.

        Returns:
            The loss, or the loss and the outputs.
        """
        losses, outputs = self._losses(model, inputs)
        loss = self._reduce(losses, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _losses(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
        labels = self._labels(inputs)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        return self.class_loss(logits, labels), outputs

    def _labels(self, inputs: Mapping[str, Any]) -> Tensor:
        if "labels" not in inputs:
            raise ValueError(
                f"the batch has no `labels`, only {', '.join(map(repr, inputs))}: is label_column="
                f"{self.args.label_column!r} the column that holds them, and does the data collator keep it?"
            )
        return inputs["labels"]

    def _reduce(self, losses: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        if num_items_in_batch is None:
            raise ValueError("num_items_in_batch, the number of examples to average over, is unknown.")
        # In this order, the plain step and Trainer with a compute_loss_func agree to the last bit.
        loss = losses.sum() / num_items_in_batch
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def _grad_scale(self) -> Tensor | float:
        scaler = getattr(self.accelerator, "scaler", None)
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.args.device))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and beside the training loss: `rho`, and the means of `ascent_grad_norm` and `sharpness`.

        Args:
            logs: the values to log.
            start_time: the start of training.
        """
        if "loss" in logs and self.args.sharpness != "none":
            logs["rho"] = self._last_rho
            sums = self.accelerator.reduce(self._step_sums, "sum").tolist()
            if sums[2]:
                logs["ascent_grad_norm"], logs["sharpness"] = sums[0] / sums[2], sums[1] / sums[2]
            self._step_sums.zero_()
        super().log(logs, start_time)

    def _read_class_frequencies(self, num_classes: int | None, label2id: Mapping[str, int] | None) -> ClassFrequencies:
        if self.train_dataset is None:
            raise ValueError(
                "without a train_dataset the class counts are unknown: pass class_frequencies=ClassFrequencies."
                "from_counts([...]), the counts of the set that the model was trained on."
            )
        if isinstance(self.train_dataset, (IterableDataset, datasets.IterableDataset)):
            raise ValueError(
                "the class counts of an iterable train_dataset are not known before it is read: pass class_frequencies="
                "ClassFrequencies.from_counts([...]), or ClassFrequencies.from_dataset(dataset) for one pass over it."
            )
        return ClassFrequencies.from_dataset(
            self.train_dataset,
            self.args.label_column,
            num_classes,
            label2id=label2id,
        )

    def _check_classes(self, num_classes: int | None, label2id: Mapping[str, int] | None) -> None:
        frequencies = self.class_frequencies
        for dataset in (self.train_dataset, *_values(self.eval_dataset)):
            feature = getattr(dataset, "features", None) and dataset.features.get(self.args.label_column)
            classes = feature.num_classes if isinstance(feature, datasets.ClassLabel) else frequencies.num_classes
            if num_classes not in (None, classes):
                raise ValueError(
                    f"the model's head has {num_classes} outputs, but there are {classes} classes. Load it with "
                    f"from_pretrained(..., num_labels={classes}, ignore_mismatched_sizes=True)."
                )
        for dataset in _values(self.eval_dataset):
            if isinstance(dataset, datasets.Dataset) and self.args.label_column in dataset.column_names:
                read_labels(dataset, self.args.label_column, num_classes=frequencies.num_classes, label2id=label2id)
        absent = np.flatnonzero(frequencies.counts == 0)
        if len(absent):
            names = ", ".join(repr(frequencies.name(index)) for index in absent[:10])
            more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
            logger.warning("%d classes have no training examples: %s%s.", len(absent), names, more)

    def get_train_dataloader(self) -> DataLoader:
        """Make the training dataloader; where some classes are not perturbed, batches carry their labels on the host.

        Returns:
            The dataloader.
        """
        # Asking the device which classes a batch holds would wait for it. A dispatched batch is put together from
        # tensors of several batches, which cannot carry anything else.
        partial = 0 in self._host_coefficients and self._host_coefficients.any()
        dispatched = isinstance(self.train_dataset, (IterableDataset, datasets.IterableDataset)) or (
            self.accelerator.dispatch_batches
        )
        collator = self.data_collator
        if partial and not dispatched:
            self.data_collator = HostLabelCollator(collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = cast(list[str], self._signature_columns)
        if self.args.label_column not in columns:
            columns.append(self.args.label_column)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # transformers 5 saves ViT, Swin, BEiT and others under older key names, and Trainer would load these raw: the
        # tensors that do not match stay what they were. from_pretrained converts the names.
        target = self.model if model is None else model
        if is_whole_model(target, resume_from_checkpoint):
            load_weights(target, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if is_whole_model(self.model, best):
            logger.info("Loading the best model from %s.", best)
            load_weights(self.model, best)
        else:
            super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        check_keys("the checkpoint", load_result.missing_keys, load_result.unexpected_keys)


def _check_arguments(args: Any) -> None:
    if not isinstance(args, SharpTrainingArguments):
        raise ValueError(
            f"args is {type(args).__name__}; SharpTrainer needs hf_sharp.SharpTrainingArguments, which takes the same "
            "options and those of sharpness and loss."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"one process sees {args.n_gpu} GPUs, and Trainer would use nn.DataParallel, which is not supported. Start "
            "one process per GPU with `accelerate launch` (or show it one GPU with CUDA_VISIBLE_DEVICES=0)."
        )


def _check_head(config: Any) -> None:
    problem = getattr(config, "problem_type", None)
    if problem in ("multi_label_classification", "regression") or getattr(config, "num_labels", 2) == 1:
        raise ValueError(
            f"the model's head is for {problem or 'regression (num_labels=1)'}; SharpTrainer needs a head for "
            "single_label_classification with 2 classes or more."
        )


def _names(config: Any, num_classes: int) -> tuple[str, ...] | None:
    id2label = getattr(config, "id2label", None) or {}
    return tuple(id2label[i] for i in range(num_classes)) if set(id2label) == set(range(num_classes)) else None


def _values(datasets_or_one: Any) -> list[Any]:
    if datasets_or_one is None:
        return []
    return list(datasets_or_one.values()) if isinstance(datasets_or_one, dict) else [datasets_or_one]
