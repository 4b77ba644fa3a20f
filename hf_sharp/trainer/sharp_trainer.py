"""SharpTrainer: a micro-batch in, a sharpness-aware gradient in `.grad`. Everything else is the Trainer's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import datasets
import numpy as np
import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import HOST_LABELS, IGNORED_LABEL, HostLabelCollator
from hf_sharp.model.head import ClassifierHead
from hf_sharp.sharpness import (
    METHODS,
    Examples,
    LearnedRadius,
    MicroBatch,
    average_over_processes,
    class_coefficients,
    class_conditional_losses,
    drawn_rows,
    scheduled_rho,
    sharpness_aware_backward,
)
from hf_sharp.sharpness.ascent import (
    first_moments,
    gradient_to_perturbation,
    gradients_in,
    perturbed,
    random_state_kept,
    running_statistics_kept,
    shards_only,
    trainable_parameters,
    with_gradients,
)
from hf_sharp.sharpness.coefficients import Division, divide
from hf_sharp.sharpness.reuse import ReusedSharpness
from hf_sharp.sharpness.step import AscentObserver
from hf_sharp.trainer import preflight
from hf_sharp.trainer.long_tail_trainer import LongTailTrainer
from hf_sharp.trainer.resuming import widest_dtype
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)


class _Part(NamedTuple):
    """A micro-batch that waits for its passes: which examples they take, and coefficients that were drawn for them."""

    inputs: dict[str, Any]
    division: Division
    drawn: Tensor | None

    @property
    def is_perturbed(self) -> bool:
        return self.division.perturbed is None or len(self.division.perturbed) > 0


class SharpTrainer(LongTailTrainer):
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
        rho_dataset: what a learned radius is validated on; without it, examples are held out of `train_dataset`.
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
        rho_dataset: Any = None,
        **trainer_kwargs: Any,
    ) -> None:
        args = SharpTrainingArguments("tmp_trainer") if args is None else args
        preflight.check_arguments(args, train_dataset)
        label2id = getattr(getattr(model, "config", None), "label2id", None)
        train_dataset, self.rho_dataset = preflight.hold_out(train_dataset, rho_dataset, args, label2id)
        # Sums of ascent_grad_norm, of sharpness and of the micro-batches they come from, since the last log.
        self._step_sums = torch.zeros(3, device=args.device)
        given = (model, args, data_collator, train_dataset, eval_dataset, processing_class, *trainer_args)
        super().__init__(*given, class_frequencies=class_frequencies, **trainer_kwargs)
        if self.rho_dataset is not None:
            held_out, config = {"rho_dataset": self.rho_dataset}, getattr(self.model, "config", None)
            preflight.check_labels(None, held_out, self.class_frequencies, args.label_column, config)
        # The share of ε that rounding takes in weights of few bits: measured in the first step, told at the first log.
        self._vanishing: Tensor | None = None
        trained = (p for p in cast(nn.Module, self.model).parameters() if p.requires_grad)
        self._measure_vanishing = any(parameter.dtype.itemsize < 4 for parameter in trained)
        self._last_rho: Tensor | float = args.rho
        self._window: list[_Part] = []  # the micro-batches that wait for the others of their accumulation window
        self._position = 0  # of the micro-batch in it
        if self.is_fsdp_enabled:
            preflight.check_fsdp(self.accelerator.state.fsdp_plugin, args)
            # Between synchronizations FSDP2 keeps gradients where the ascent cannot see them.
            self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True

    def _build_method(self, model: nn.Module) -> None:
        super()._build_method(model)
        counts, args = self.class_frequencies.counts, self.args
        several = args.world_size > 1
        # FSDP2 averages every gradient on its way to the shards, and every process must make the same passes.
        self._one_epsilon = self.is_fsdp_enabled or (args.ascent_sync == "global" and several)
        self._average = average_over_processes if self._one_epsilon and not self.is_fsdp_enabled else None
        # What is learned or reused needs an ascent on every process, or on none.
        self._same_passes = self._one_epsilon or (args.learns_rho and several) or args.sharpness_every > 1
        preflight.check_radius(model, self.rho_dataset, args, trains=self.train_dataset is not None)
        self._one_by_one = preflight.check_parts(model, args)
        coefficients = class_coefficients(args.sharpness, counts, **args.sharpness_options)
        if (coefficients > 1).any():
            logger.warning(
                "Coefficients reach %.3g: above 1, the loss at the unperturbed weights gets a negative weight.",
                coefficients.max(),
            )
        self._host_coefficients = coefficients.numpy()
        self._radius = None
        if args.learns_rho:
            self._radius = LearnedRadius(
                args.rho,
                args.rho_learning_rate,
                hessian=args.rho_hessian,
                objective=args.rho_objective,
                adaptive_eta=args.adaptive_eta if args.adaptive else None,
                device=args.device,
                mean=lambda value: self.accelerator.reduce(value, "mean"),
                average=self._average,
            )
        self._reused = None
        if args.sharpness_every > 1:
            average = average_over_processes if several else None
            self._reused = ReusedSharpness(args.looksam_alpha, args.device, average)
        if args.torch_compile and (args.learns_rho or not (coefficients == 1).all()):
            # A graph that serves two backward passes must not give its buffers to the first.
            torch._functorch.config.donated_buffer = False
        dtype = torch.promote_types(widest_dtype(model), torch.float32)
        self._coefficients = coefficients.to(args.device, dtype)
        self._remember(radius=self._radius, reused=self._reused)
        self._step_sums.zero_()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimizer as `Trainer` does.

        Args:
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            The optimizer.

        Raises:
            ValueError: `ascent="momentum"`, and it keeps no momentum.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.args.ascent == "momentum":
            preflight.check_first_moment(optimizer)
        return optimizer

    # ---- one micro-batch -----------------------------------------------------------------------------------------

    @property
    def rho(self) -> Tensor | float:
        """The radius of the current step; a learned one is on the device."""
        if self._radius is not None:
            return self._radius.rho
        return scheduled_rho(self.args.rho, self.args.rho_schedule, self.progress)

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
        self._position += 1
        rho = self._last_rho = self.rho
        if not self._host_coefficients.any() or (self._radius is None and rho == 0):
            return super().training_step(model, inputs, num_items_in_batch)
        if self.args.ascent == "momentum":
            with self._moved_along_momentum(model, rho):
                return super().training_step(model, inputs, num_items_in_batch)
        if self.state.global_step % self.args.sharpness_every:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self.accelerator.sync_gradients:
                cast(ReusedSharpness, self._reused).add(trainable_parameters(model))
            return loss

        part = self._divide(inputs, host_labels)
        if not (part.is_perturbed or self.args.ascent_scope == "window"):
            return super().training_step(model, inputs, num_items_in_batch)
        window = [*self._window, part]
        if self.args.ascent_scope == "window" and not self.accelerator.sync_gradients:
            self._window = window
            return torch.zeros((), device=self.args.device)  # the loss comes with the window's last micro-batch
        self._window = []
        if not any(part.is_perturbed for part in window):
            return self._plain_steps(model, [part.inputs for part in window], num_items_in_batch)
        return self._sharp_step(model, window, rho, num_items_in_batch)

    def _sharp_step(
        self, model: nn.Module, window: list[_Part], rho: Tensor | float, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        model.train()
        if callable(to_training_mode := getattr(self.optimizer, "train", None)):
            to_training_mode()
        self._empty_cache()
        if self._radius is not None:
            self._prepare_radius(self._radius, model)
        micro_batches, counted = [], torch.zeros((), dtype=torch.long, device=self.args.device)
        for part in window:
            prepared = self._prepare_inputs(part.inputs)
            counted += (self._labels(prepared) != IGNORED_LABEL).sum()
            micro_batches.append(self._micro_batch(model, prepared, part))
        if self._one_epsilon:
            counted = self.accelerator.reduce(counted.float(), "mean")
        if num_items_in_batch is None:
            num_items_in_batch = counted * self.accelerator.num_processes
        counted = counted.clamp(min=1)
        observer: AscentObserver | None = self._radius
        if self._reused is not None:
            self._reused.begin(trainable_parameters(model), self._reduce(counted, num_items_in_batch))
            observer = self._reused
        step = sharpness_aware_backward(
            model,
            micro_batches,
            rho,
            reduce=lambda losses: self._reduce(losses, num_items_in_batch),
            mean=lambda losses: losses.sum() / counted.to(losses.dtype),
            backward=lambda loss, retain_graph: self.accelerator.backward(loss, retain_graph=retain_graph),
            grad_scale=self._grad_scale(),
            adaptive_eta=self.args.adaptive_eta if self.args.adaptive else None,
            without_sync=lambda: self._without_sync(model),
            average=self._average,
            measure_vanishing=self._measure_vanishing,
            observer=observer,
        )
        if self._reused is not None and self.accelerator.sync_gradients:
            self._reused.keep(trainable_parameters(model))
        sums = torch.stack([step.ascent_grad_norm, step.sharpness, torch.ones_like(step.sharpness)])
        # What overflowed in float16 is skipped, and not logged either.
        self._step_sums += torch.where(sums.isfinite().all(), sums, 0).to(self._step_sums)
        if self._measure_vanishing:
            self._vanishing, self._measure_vanishing = step.vanishing, False
        return step.loss

    def _divide(self, inputs: dict[str, Any], host_labels: np.ndarray | None) -> _Part:
        args, size = self.args, len(self._labels(inputs))
        stochastic, everything = args.focal_sampling == "stochastic", bool((self._host_coefficients == 1).all())
        if host_labels is None and stochastic:  # of a stream; this waits for the device
            host_labels = inputs["labels"].cpu().numpy()
        rng = None
        if stochastic or args.ascent_fraction < 1:
            seed = args.seed if args.data_seed is None else args.data_seed
            rng = np.random.default_rng([seed, self.state.global_step, self._position, args.process_index])
        drawn = None
        if everything:
            coefficients = np.ones(size)
        elif host_labels is None or (self._same_passes and not self._one_by_one):
            coefficients = np.full(size, 0.5)  # some or other: they take part in every pass
        else:
            coefficients = np.where(host_labels == IGNORED_LABEL, 0, self._host_coefficients[host_labels.clip(0)])
        if stochastic and rng is not None:
            coefficients = (rng.random(size) < coefficients).astype(np.float64)
            drawn = torch.from_numpy(coefficients).to(self._coefficients.dtype)
        if not self._one_by_one:
            return _Part(inputs, Division.whole(coefficients), drawn)
        every_pass = self._same_passes and not everything
        return _Part(inputs, divide(coefficients, args.ascent_fraction, rng, every_pass=every_pass), drawn)

    def _micro_batch(self, model: nn.Module, inputs: Mapping[str, Any], part: _Part) -> MicroBatch:
        labels = self._labels(inputs)
        coefficients = self._coefficients[labels.clamp(min=0)] if part.drawn is None else self._sent(part.drawn)
        perturbed, clean, ascent_size = part.division

        def examples(rows: np.ndarray | None, weights: Tensor) -> Examples | None:
            if rows is None:
                return Examples(None, weights)
            on_device = self._sent(torch.from_numpy(rows))
            return Examples(on_device, weights[on_device]) if len(rows) else None

        found: list[Tensor | None] = []  # the centroids that a loss keeps, as the first pass found them

        def losses(rows: Tensor | None) -> Tensor:
            chosen = inputs
            if rows is not None:
                chosen = {
                    name: value[rows] if isinstance(value, Tensor) and value.shape[:1] == labels.shape else value
                    for name, value in inputs.items()
                }
            if found:
                return self._losses_now(model, chosen, found[0])
            found.append(getattr(self.class_loss, "centroids", None))
            return self._losses_now(model, chosen)  # and moves them

        return MicroBatch(losses, examples(perturbed, coefficients), examples(clean, 1 - coefficients), ascent_size)

    def _sent(self, tensor: Tensor) -> Tensor:
        if self.args.device.type == "cuda":  # so that the copy does not wait
            tensor = tensor.pin_memory()
        return tensor.to(self.args.device, non_blocking=True)

    @contextmanager
    def _moved_along_momentum(self, model: nn.Module, rho: Tensor | float) -> Iterator[None]:
        with shards_only(model.modules()):
            parameters = trainable_parameters(model)
            moved, momentum = with_gradients(parameters, first_moments(self.optimizer, parameters))
            if momentum:  # there is none before the first step
                eta = self.args.adaptive_eta if self.args.adaptive else None
                gradient_to_perturbation(moved, momentum, -rho, eta)
            with perturbed(moved, momentum) if momentum else nullcontext():
                yield

    def _prepare_radius(self, radius: LearnedRadius, model: nn.Module) -> None:
        step = self.state.global_step
        if radius.direction is not None and radius.watched == step - 1:  # these are the weights that it led to
            radius.validate(*self._validation_half(radius, model))
        if step % self.args.rho_update_every == 0 and self.accelerator.sync_gradients:
            radius.watch(step, self._get_learning_rate())

    def _validation_half(self, radius: LearnedRadius, model: nn.Module) -> tuple[Tensor, list[Tensor]]:
        data, collate = self.rho_dataset, self._get_collator_with_removed_columns(self.data_collator, "validation")
        number = radius.draws * self.args.world_size + self.args.process_index
        rows = drawn_rows(number, self._train_batch_size, len(data), self.args.seed)
        inputs = collate([data[row] for row in rows.tolist()])
        if self.args.device.type == "cuda":  # so that the copy does not wait
            inputs = {name: value.pin_memory() for name, value in inputs.items()}
        inputs = self._prepare_inputs(send_to_device(inputs, self.args.device, non_blocking=True))
        labels = self._labels(inputs)
        parameters = trainable_parameters(model)
        gradients: list[Tensor | None] = [None] * len(parameters)
        devices = {parameter.device for parameter in model.parameters()}
        with random_state_kept(devices), running_statistics_kept(model.modules()), self._without_sync(model):
            # Examples that nothing is trained on move no centroids.
            losses = self._losses_now(model, inputs, getattr(self.class_loss, "centroids", None))
            loss = (self._coefficients[labels.clamp(min=0)] * losses).mean()
            with gradients_in(gradients, parameters):
                self.accelerator.backward(loss)
        scale = self._grad_scale()
        pairs = zip(gradients, parameters, strict=True)
        return loss.detach(), [torch.zeros_like(p) if g is None else g / scale for g, p in pairs]

    def _without_sync(self, model: nn.Module) -> Any:
        synchronized = self.args.world_size == 1 or self.is_fsdp_enabled
        return nullcontext() if synchronized else self.accelerator.no_sync(model)

    def _losses_now(self, model: nn.Module, inputs: Mapping[str, Any], centroids: Tensor | None = None) -> Tensor:
        with self.compute_loss_context_manager():
            return self._losses(model, inputs, centroids)[0]

    def _plain_steps(self, model: nn.Module, window: list[dict[str, Any]], num_items_in_batch: Any) -> Tensor:
        losses = []
        for inputs in window:
            with nullcontext() if inputs is window[-1] else self._without_sync(model):
                losses.append(super().training_step(model, inputs, num_items_in_batch))
        return torch.stack(losses).sum()

    def _empty_cache(self) -> None:
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the micro-batches of an accumulation window, as `Trainer` does.

        Args:
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            The micro-batches, and how many examples they have on all processes.
        """
        self._window.clear()  # what an error left of the one before
        self._position = 0
        if self._reused is not None:
            self._reused.restart()
        return super().get_batch_samples(*args, **kwargs)

    def _with_features(
        self, losses: Tensor, logits: Tensor, labels: Tensor, features: Tensor, centroids: Tensor | None
    ) -> Tensor:
        if self.args.sharpness == "cc_sam":
            losses, sharpness = class_conditional_losses(
                self._losses_of_logits,
                logits,
                labels,
                features,
                cast(ClassifierHead, self._head).parameters,
                self.class_loss.class_counts,
                **self.args.sharpness_options,
            )
            self._step_sums += torch.stack([torch.zeros_like(sharpness), sharpness, torch.ones_like(sharpness)])
        return super()._with_features(losses, logits, labels, features, centroids)

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
            sums = self.accelerator.reduce(self._step_sums, "sum").tolist()
            has_radius = METHODS[self.args.sharpness].needs_radius
            if has_radius:
                logs["rho"] = float(self._last_rho)
            if self._radius is not None:
                logs["rho_derivative"] = self._radius.derivative.item()
            if has_radius and sums[2]:
                logs["ascent_grad_norm"] = sums[0] / sums[2]
            if sums[2]:
                logs["sharpness"] = sums[1] / sums[2]
            self._step_sums.zero_()
            self._warn_of_vanishing()
        super().log(logs, start_time)

    def _warn_of_vanishing(self) -> None:
        vanishing, self._vanishing = self._vanishing, None
        if vanishing is not None and vanishing > 0.5:
            logger.warning(
                "%.0f %% of the perturbation's entries were lost to rounding in %s weights at the first step. Load the "
                "model with dtype=torch.float32 and train with bf16=True, or choose a larger rho than %g.",
                100 * vanishing.item(),
                str(widest_dtype(cast(nn.Module, self.model))).removeprefix("torch."),
                self.args.rho,
            )

    def get_train_dataloader(self) -> DataLoader:
        """Make the training dataloader; where some classes are not perturbed, batches carry their labels on the host.

        Returns:
            The dataloader.
        """
        # Asking the device which classes a batch holds would wait for it. A dispatched batch is put together from
        # tensors of several batches, which cannot carry anything else.
        some = 0 in self._host_coefficients and bool(self._host_coefficients.any())
        partial = some or self.args.focal_sampling == "stochastic"
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
