"""LongTailTrainer: the Trainer with a class-frequency-aware loss, samplers, the long-tail report and its model card."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import IGNORED_LABEL, LabelCollator
from hf_sharp.losses import ClassFrequencyLoss, build_loss
from hf_sharp.losses.registry import set_class_importance
from hf_sharp.losses.training_loss import TrainingLoss
from hf_sharp.model.cosine_head import CosineHeadCallback
from hf_sharp.model.head import ClassifierHead
from hf_sharp.reports.model_card import write_trainer_card
from hf_sharp.reports.results import method_record
from hf_sharp.reports.tracking import send_recall
from hf_sharp.sharpness import METHODS
from hf_sharp.sharpness.engine import StepMeans
from hf_sharp.trainer import changed_options, choosing, labelled_data, preflight, report_keeper
from hf_sharp.trainer.head_start import make_cosine_head, start_head
from hf_sharp.trainer.saving import SavingTrainer
from hf_sharp.training_args import SharpTrainingArguments


class LongTailTrainer(SavingTrainer):
    """The part of `SharpTrainer` without sharpness: the loss, the sampler, the long-tail report and the card."""

    cost_matrix: Any  # (K, K), or None

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None,
        args: SharpTrainingArguments,
        data_collator: Callable | None,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any,
        *trainer_args: Any,
        class_frequencies: ClassFrequencies | None,
        class_loss: ClassFrequencyLoss | None,
        **trainer_kwargs: Any,
    ) -> None:
        super().__init__(
            model, args, data_collator, train_dataset, eval_dataset, processing_class, *trainer_args, **trainer_kwargs
        )
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func is not supported: SharpTrainer needs one loss per example, to weight it by class. "
                "Choose a loss with SharpTrainingArguments(loss=...), or pass your own as class_loss=."
            )
        self.args: SharpTrainingArguments = args
        args.settle_best_metric(reported=self.compute_metrics is None and not args.prediction_loss_only)
        config = getattr(self.model, "config", None)
        preflight.check_model(cast(nn.Module, self.model), args, calls_with_labels=self._has_own_loss)
        if args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            sets = {"the training set": self.train_dataset, "the evaluation set": self.eval_dataset}
            labelled_data.check_transforms(sets, cast(list[str], self._signature_columns))
        self.classes, self.train_dataset, self.eval_dataset, self.class_frequencies = labelled_data.understand(
            self.train_dataset, self.eval_dataset, class_frequencies, args, config
        )
        self._counted = self.train_dataset if class_frequencies is None else None
        choosing.check_set_names(self.eval_dataset)
        preflight.check_class_loss(class_loss, args, self.class_frequencies)
        self._read_once = changed_options.ReadOnce(self)
        self._given_loss = copy.deepcopy(class_loss)
        self._head: ClassifierHead | None = None
        self._starts_fresh = self._used_class_loss = False
        self._build_method(cast(nn.Module, self.model))
        self.data_collator = LabelCollator(self.data_collator, args.label_column, getattr(config, "label2id", None))
        if self.compute_metrics is not None:
            choosing.check_own_metrics(args, self.eval_dataset, self.compute_metrics, self.class_frequencies)
        else:
            if args.batch_eval_metrics:
                raise ValueError("batch_eval_metrics needs a compute_metrics of your own, or leave it off.")
            self.report_keeper = report_keeper.ReportKeeper(self.class_frequencies, self.cost_matrix)
            self.add_callback(self.report_keeper)
            choosing.check_best_metric(args, self.eval_dataset, self.class_frequencies)
            self.compute_metrics = self.report_keeper.compute_metrics
        preflight.check_label_names(args)
        self.label_names = ["labels"]
        if not self._has_own_loss:  # _reduce divides by the number of examples in the accumulation window
            self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = True

    @property
    def _has_own_loss(self) -> bool:
        return type(self).compute_loss is not LongTailTrainer.compute_loss  # overridden by the user

    @property
    def replaced_loss(self) -> str | None:
        """The name of an overridden `compute_loss` that computed all losses, without `class_loss`; else None."""
        return f"{type(self).__name__}.compute_loss" if self._has_own_loss and not self._used_class_loss else None

    def _build_method(self, model: nn.Module) -> None:
        counts, args = self.class_frequencies.counts, self.args
        method, self._built_for = METHODS[args.sharpness], (args.method, args.head)
        importance = preflight.class_importance_of(args.class_importance, self.class_frequencies)
        if self._head is not None:
            self._head.close()
        cosine = make_cosine_head(model, len(counts), args)
        if cosine is not None:
            self.remove_callback(CosineHeadCallback)
            self.add_callback(CosineHeadCallback)
        needs_features = self._given_loss.needs_features if self._given_loss else args.loss_needs_features
        needs_head = method.needs_features or needs_features
        self._head = ClassifierHead(model, len(counts), args.head) if needs_head else None
        if self._given_loss is None:
            feature_dim = None if self._head is None else self._head.feature_dim
            loss = build_loss(args.loss, counts, feature_dim=feature_dim, **args.loss_arguments)
        else:
            loss = copy.deepcopy(self._given_loss)  # training changes its state
        set_class_importance(loss, importance)
        if args.device.type == "mps":  # which has no float64
            loss.float()
        # In evaluation mode it uses logits only; the part that depends on features is added by the training loss.
        self.class_loss = loss.to(args.device).eval()
        preflight.check_head(model, self.class_loss)
        logit_scale = 1.0
        if cosine is not None and loss.needs_cosine_logits:
            # The model's logits are the cosines as the loss scales them, without its margin.
            logit_scale = float(loss.options.get("loss_scale", 1))
            cosine.set_scale(logit_scale)
        self._late_weight = None
        if args.reweight_after is not None:
            balanced = build_loss("class_balanced", counts, loss_beta=args.loss_beta)
            self._late_weight = cast(Tensor, balanced.weight).to(args.device, torch.float32)
        self.step_means = StepMeans(args.device)
        wrap = method.wrap_loss and functools.partial(
            method.wrap_loss,
            class_counts=self.class_loss.class_counts,
            observe=self.step_means.add_sharpness,
            **args.method_arguments,
        )
        self.training_loss = TrainingLoss(self.class_loss, self._head, self._weight_in_force, wrap, logit_scale)
        options = {
            **method_record(args, self.class_loss),
            "class_importance": None if importance is None else cast(Tensor, loss.class_importance).tolist(),
            "class_counts": counts.tolist(),
        }
        self._remember(options, loss=self.class_loss if self.class_loss.state_dict() else None)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a new model as `Trainer` does, with the names of the classes."""
        model = super().call_model_init(trial)
        if hasattr(self, "classes"):  # not while the trainer itself is initialized
            self.classes.name_model(getattr(model, "config", None))
        return model

    def _settle_options(self) -> None:
        preflight.check_same_data(self.train_dataset, self._counted)
        self._read_once.settle()
        if (self.args.method, self.args.head) != self._built_for:
            self._build_method(cast(nn.Module, self.model))

    def _before_training(self, fresh: bool) -> None:
        self._starts_fresh = fresh
        if fresh and self.model_init is None and self.state.global_step == 0:
            start_head(self, cast(nn.Module, self.model))

    def _hp_search_setup(self, trial: Any) -> None:
        # Every training calls this, after a new model was made and moved, and it sets the options of a trial.
        super()._hp_search_setup(trial)
        if self.model_init is None:
            return
        self.args.check(unused=False)
        self._build_method(cast(nn.Module, self.model))
        if self._starts_fresh:
            start_head(self, cast(nn.Module, self.model))

    def hyperparameter_search(self, *args: Any, **kwargs: Any) -> Any:
        """Search as `Trainer` does; without your own objective or metrics, maximize the balanced accuracy.

        Args:
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            The best run. With several evaluation sets, the objective is the mean of their balanced accuracies.

        Raises:
            ValueError: `direction` is not "maximize", and `compute_objective` is not set; or a trial has options that
                do not fit together.
        """
        if len(args) < 2 and kwargs.get("compute_objective") is None and hasattr(self, "report_keeper"):
            if kwargs.setdefault("direction", "maximize") != "maximize":
                raise ValueError(
                    f"direction={kwargs['direction']!r} would look for the lowest balanced accuracy. Omit it, or pass "
                    "compute_objective as well."
                )
            kwargs["compute_objective"] = choosing.mean_balanced_accuracy
        return super().hyperparameter_search(*args, **kwargs)

    @property
    def progress(self) -> float:
        """The fraction of the training steps that is done, from 0 to 1."""
        return self.state.global_step / max(self.state.max_steps, 1)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the class-frequency-aware loss, reduced to a scalar as `Trainer` does.

        Args:
            model: the model.
            inputs: a batch with `labels`.
            return_outputs: also return the model's outputs.
            num_items_in_batch: the divisor of the summed losses; None uses the number of examples in this batch.

        Returns:
            The loss, or the loss and the outputs.
        """
        self._used_class_loss = True
        losses, outputs = self._losses(model, inputs)
        if num_items_in_batch is None:
            num_items_in_batch = (inputs["labels"] != IGNORED_LABEL).sum() * self.counted_processes
        loss = self._reduce(losses, num_items_in_batch)
        if isinstance(outputs, tuple):
            outputs = (loss, *outputs)  # the Trainer expects the loss first, as in the output of a model with labels
        elif return_outputs:
            outputs = {"logits": outputs["logits"], **outputs}  # reports use the first output as logits
        return (loss, outputs) if return_outputs else loss

    def _losses(
        self, model: nn.Module, inputs: Mapping[str, Any], frozen: ClassFrequencyLoss | None = None
    ) -> tuple[Tensor, Any]:
        labels = preflight.labels_in(inputs, self.args.label_column)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs) if type(outputs) is list else outputs
        logits = preflight.logits_of(outputs, cast(nn.Module, self.model))
        self.record.count(logits)
        if not model.training:  # evaluations use the same loss throughout training, without features
            return self.class_loss(self.training_loss.unscaled(logits), labels), outputs
        return self.training_loss(logits, labels, frozen), outputs

    def _weight_in_force(self) -> Tensor | None:
        begun = self._late_weight is not None and self.progress >= cast(float, self.args.reweight_after)
        return self._late_weight if begun else None

    def _reduce(self, losses: Tensor, num_items_in_batch: Any) -> Tensor:
        # With this order of operations, the plain step agrees exactly with Trainer and a compute_loss_func.
        return losses.sum() / num_items_in_batch * self.counted_processes

    @property
    def counted_processes(self) -> int:
        """The number of processes whose examples `num_items_in_batch` counts."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices else 1

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `Trainer` does, but on all examples; trackers get a plot of recall against class count.

        Args:
            eval_dataset: as for `Trainer`; classes in another order are aligned by name, and some may be absent.
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            The metrics; with several evaluation sets, also the means of balanced accuracy and loss.

        Raises:
            ValueError: the dataset has other classes; or, in training, `metric_for_best_model` is not reported.
        """
        if eval_dataset is None:
            self.eval_dataset = self.classes.align(self.eval_dataset, "the evaluation set")
        eval_dataset = self._understood(eval_dataset, "the evaluation set")
        choosing.check_set_names(eval_dataset)
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        prefix = args[1] if len(args) > 1 else kwargs.get("metric_key_prefix", "eval")
        if several := isinstance(sets := self.eval_dataset if eval_dataset is None else eval_dataset, dict):
            self.log(means := choosing.means_over_sets(metrics, list(cast(dict, sets)), prefix))
            metrics |= means
        if self.is_in_train and eval_dataset is None:
            self._check_best_metric(metrics)
        report = getattr(getattr(self, "report_keeper", None), "report", None)  # None for a set without labels
        if report is not None and not several and self.is_world_process_zero():
            send_recall(self.callback_handler.callbacks, report, prefix, self.state.global_step)
        return metrics

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Predict as `Trainer` does, but on all examples.

        Args:
            test_dataset: as for `Trainer`; classes in another order are aligned by name, and some may be absent.
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            As for `Trainer`: logits and labels in the order of the model's classes, and the metrics.

        Raises:
            ValueError: the dataset has other classes.
        """
        return super().predict(self._understood(test_dataset, "the test set"), *args, **kwargs)

    def _understood(self, data: Any, which: str) -> Any:
        self._read_once.settle()
        if self.args.remove_unused_columns:
            self._set_signature_columns_if_needed()
            labelled_data.check_transforms({which: data}, cast(list[str], self._signature_columns))
        return self.classes.align(data, which)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,  # noqa: A002 (the Trainer's own name)
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the model card: method, class counts, the last evaluation's report, and how to use the model.

        Args:
            language: as for `Trainer`.
            license: as for `Trainer`.
            tags: as for `Trainer`.
            model_name: as for `Trainer`.
            finetuned_from: as for `Trainer`.
            tasks: the pipeline's name, if it does not follow from the model's class.
            dataset_tags: the dataset's name on the Hub.
            dataset: the dataset's name.
            dataset_args: not used.
            results: the results of a finished run, as for `build_card`, to use instead of the last evaluation.
        """
        if self.is_world_process_zero():
            write_trainer_card(
                self,
                results,
                model_name=model_name,
                pipeline_tag=tasks,
                licence=license,
                language=language,
                tags=tags,
                base_model=finetuned_from,
                dataset=dataset or dataset_tags,
            )
