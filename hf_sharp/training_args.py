"""All options of a training run, with their help texts."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, cast

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_sharp.data.local_paths import shortened
from hf_sharp.data.sampling import SAMPLERS
from hf_sharp.losses import LOSSES
from hf_sharp.losses.large_margin import AGGREGATIONS
from hf_sharp.losses.registry import loss_options
from hf_sharp.model.head_init import HEAD_INITS
from hf_sharp.option_checks import (
    PLAIN_METHOD,
    check_options,
    options_in_effect,
    unused_options,
    warn_of_double_correction,
)
from hf_sharp.sharpness import METHODS
from hf_sharp.sharpness.ascent import ADAPTIVE_SCOPES
from hf_sharp.sharpness.ascents import ASCENTS
from hf_sharp.sharpness.methods import FOCAL_SAMPLINGS, default_radius
from hf_sharp.sharpness.radius import RHO_HESSIANS, RHO_OBJECTIVES, RHO_SCHEDULES, RHO_UPDATES

__all__ = ["PLAIN_METHOD", "SharpTrainingArguments", "unused_options"]

SCOPES = ("micro_batch", "window")
SAVED_AS = "_saved_as"  # the attribute that holds what replaces local paths in training_args.bin
SYNCS = ("local", "global")
_CHOICES: dict[str, Iterable[str]] = {}  # allowed values by field; registries, so that they include what users register


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _choice(name: str, default: str, choices: Iterable[str], text: str) -> Any:
    _CHOICES[name] = choices
    return _option(default, f"{text} One of: {', '.join(choices)}.")


class _Default(str):
    """A value that the user did not set: it may still change, also in copies of the arguments."""


class _Upwards(dict):
    """Options of a learning-rate schedule, with a `mode` that the user did not set, for a metric that should rise."""


@dataclass
class SharpTrainingArguments(TrainingArguments):
    """`TrainingArguments`, plus the sharpness method and the class-frequency-aware loss.

    All fields are flat, so that `HfArgumentParser` and YAML files can set them. The defaults, logit adjustment without
    sharpness, are a good first try on long-tailed data. Changing an option that the chosen method does not use is an
    error.

    Raises:
        ValueError: a method is unknown, a number is out of range, an option that was set has no effect, or sharpness
            does not support the training mode (DeepSpeed, optimizers that step during the backward pass).

    Example:
        >>> args = SharpTrainingArguments("out", sharpness="focal_sam", rho=0.1, loss="logit_adjusted", use_cpu=True)
        >>> args.focal_gamma, args.loss_tau
        (1.0, 1.0)
    """

    sharpness: str = _choice("sharpness", "none", METHODS, "Sharpness method.")
    rho: float | None = _option(
        None,
        "Radius of the ascent, an L2 norm over all trainable parameters. The default depends on the ascent: 0.05 along "
        "a gradient, 0.75 along the momentum, 1 with adaptive, or 0.15 with adaptive_scope=matrices.",
    )
    sharpness_after: float = _option(
        0.0, "Fraction of the training steps that are plain steps; the later steps are sharpness-aware."
    )
    rho_schedule: str = _choice(
        "rho_schedule", "constant", RHO_SCHEDULES, "How rho changes during training; linear and cosine end at rho_end."
    )
    rho_end: float = _option(0.0, "Linear and cosine schedules: the radius at the end of training.")
    rho_steps: dict | str | None = _option(
        None, 'Step schedule: fraction of training to radius, as JSON: {"0.8": 0.2}.'
    )
    rho_learning_rate: float = _option(0.05, "LETS: the learning rate of Adam on log rho; 0 keeps rho constant.")
    rho_update: str = _choice(
        "rho_update", "sign", RHO_UPDATES, "LETS: whether Adam gets the derivative itself or only its sign."
    )
    rho_update_every: int = _option(5, "LETS: the number of optimizer steps between two updates of rho.")
    rho_validation_fraction: float = _option(
        0.1, "LETS: the share of every class held out of the training set, up to 0.5, unless rho_dataset is passed."
    )
    rho_hessian: str = _choice(
        "rho_hessian", "secant", RHO_HESSIANS, "LETS: how the change of the gradient with rho is computed."
    )
    rho_objective: str = _choice("rho_objective", "alignment", RHO_OBJECTIVES, "LETS: what rho minimizes.")
    adaptive: bool = _option(False, "Measure the radius relative to each weight's size (ASAM).")
    adaptive_scope: str = _choice(
        "adaptive_scope",
        "all",
        ADAPTIVE_SCOPES,
        "ASAM: the tensors with a relative radius; matrices leaves out biases and norms.",
    )
    adaptive_eta: float = _option(0.01, "ASAM: added to |w|, so that weights of zero are perturbed too.")
    ascent: str = _choice(
        "ascent",
        "gradient",
        ASCENTS,
        "The direction of the ascent: its own gradient, or the optimizer's first moment, which needs no extra pass "
        "(Momentum-SAM).",
    )
    ascent_fraction: float = _option(
        1.0, "The share f of the perturbed examples that the ascent uses, in (0, 1]. SAM then costs 1 + f passes."
    )
    sharpness_every: int = _option(
        1, "LookSAM: the number of optimizer steps between two ascents; the steps in between reuse the last one."
    )
    looksam_alpha: float = _option(
        0.1, "LookSAM: the weight of the reused part; the paper's 0.7 is for very large batches."
    )
    ascent_scope: str = _choice(
        "ascent_scope",
        "micro_batch",
        SCOPES,
        "Which examples share one perturbation: those of a micro-batch, or all those of an accumulation window.",
    )
    ascent_sync: str = _choice(
        "ascent_sync",
        "local",
        SYNCS,
        "Whether every process has its own perturbation, or all share one, computed from their mean gradient.",
    )
    focal_gamma: float = _option(1.0, "Focal-SAM: the exponent in c = focal_lambda * (1 - prior) ** focal_gamma.")
    focal_lambda: float = _option(0.8, "Focal-SAM: the weight of the sharpness term.")
    focal_sampling: str = _choice(
        "focal_sampling",
        "exact",
        FOCAL_SAMPLINGS,
        "Focal-SAM: compute both terms for every example, or draw one term per example, with its coefficient as the "
        "probability.",
    )
    cc_radius: float = _option(1e-6, "CC-SAM: the radius of every class's ascent on the head.")
    cc_phi: float = _option(0.5, "CC-SAM: the share of the perturbed loss, from 0 to 1.")
    head_init: str = _choice(
        "head_init", "none", HEAD_INITS, "Starting values of the head: class means of the training set, or class names."
    )
    head_scale: float | None = _option(
        None,
        "The initial norm of the head's rows. Default: chosen by cross-validation for class means, 25 for class names.",
    )
    head_examples: int | None = _option(
        400, "Class means: the largest number of examples per class to use, drawn at random; None: all of them."
    )
    cosine_head: bool = _option(False, "Train a cosine head: normalised features and class vectors, with a scale.")
    cosine_scale: float = _option(25.0, "Cosine head: the factor of the cosines; ldam uses loss_scale instead.")
    cosine_learn_scale: bool = _option(False, "Cosine head: train the factor too.")
    cosine_custom_code: bool = _option(
        False, "Cosine head: allow saving a model that needs trust_remote_code=True, if no other form is exact."
    )
    head: str | None = _option(
        None, "The name of the linear layer that computes the logits, if it is not found automatically."
    )
    rare_threshold: int = _option(20, "Classes with fewer training examples are 'few' in reports, and rare for ImbSAM.")
    common_threshold: int = _option(100, "Classes with more training examples are 'many' in reports.")
    loss: str = _choice("loss", "logit_adjusted", LOSSES, "Class-frequency-aware loss.")
    loss_tau: float = _option(
        1.0,
        "Logit adjustment and VS: the strength of the prior; the papers use 1. Below 0 it favours frequent classes.",
    )
    loss_gamma: float | None = _option(
        None, "Focal (default 2), CDT, LDT and VS (default 0.3): the exponent in their formulas."
    )
    loss_beta: float | None = _option(
        None, "Class-balanced loss: beta of the effective number of examples (default 0.9999)."
    )
    loss_margin: float | None = _option(None, "LDAM: the margin of the rarest class, in cosine (default 0.5).")
    loss_scale: float | None = _option(None, "LDAM: the factor of the cosines, an inverse temperature (default 30).")
    lm_weight: float = _option(1.0, "Large margin: lambda, the weight of everything added to cross-entropy.")
    lm_alpha: float = _option(1.0, "Large margin: the weight of the compactness term.")
    lm_beta: float = _option(1.0, "Large margin: the weight of the margin term.")
    lm_gamma: float = _option(0.001, "Large margin: the weight of the centroid norms.")
    lm_delta_v: float = _option(0.5, "Large margin: the distance from the class centroid that compactness allows.")
    lm_delta_d: float = _option(6.0, "Large margin: the distance from the decision boundary that the margin asks for.")
    lm_momentum: float = _option(0.99, "Large margin: the momentum of the running centroids, from 0 to below 1.")
    lm_aggregation: str = _choice(
        "lm_aggregation", "max", AGGREGATIONS, "Large margin: how the margins to the other classes are combined."
    )
    lm_frequency_margins: bool = _option(
        False, "Large margin: scale lm_delta_d with n_c ** -0.25 per class, keeping its mean."
    )
    class_importance: dict | str | None = _option(
        None,
        "The cost of a mistake on each class: K numbers, or class name to number (1 for classes left out), as JSON. "
        "Each example's loss is multiplied by the number of its class.",
    )
    cost_matrix: dict | str | None = _option(
        None,
        "The cost of predicting one class instead of another, for the report: a CSV file, or JSON that maps a class "
        "name to a number or to numbers by class name. It does not change the training.",
    )
    loss_options: dict | str | None = _option(
        None, "Options of a registered loss that have no field here: name to value, as JSON."
    )
    sharpness_options: dict | str | None = _option(
        None, "Options of a registered sharpness method that have no field here: name to value, as JSON."
    )
    reweight_after: float | None = _option(
        None,
        "Fraction of the training steps after which class-balanced weights (loss_beta) multiply the loss: deferred "
        "reweighting, DRW.",
    )
    sampler: str = _choice(
        "sampler", "instance", SAMPLERS, "How examples are drawn; progressive shifts from instance to balanced."
    )
    label_column: str = _option("label", "The dataset column with one label per example; `labels` is found too.")
    logging_nan_inf_filter: bool = _option(
        False, "Leave losses that are not finite out of the logged mean. This synchronizes with the device every step."
    )

    def __post_init__(self) -> None:
        self.check()
        warn_of_double_correction(self)
        # Not the loss: with a class-frequency-aware loss, eval_loss is the adjusted loss.
        best_needed = self.load_best_model_at_end or self.save_strategy in (SaveStrategy.BEST, "best")
        if best_needed and (self.metric_for_best_model is None or isinstance(self.metric_for_best_model, _Default)):
            self.metric_for_best_model = _Default("balanced_accuracy")
        if str(self.metric_for_best_model).endswith(("calibration_error", "expected_cost")):
            self.greater_is_better = bool(self.greater_is_better)  # transformers derives it for losses only
        if self.fp16:  # the loss of a step that is skipped because of an overflow would spoil the logged mean
            self.logging_nan_inf_filter = True
        if self.hub_token is not None:  # a trailing line break makes httpx raise an error that shows the token
            self.hub_token = self.hub_token.strip()
        super().__post_init__()

    def check(self, unused: bool = True) -> None:
        """Check the options again, after some of them were changed.

        Args:
            unused: whether an option without effect is an error. In a search, a trial may set `rho` for any method.

        Raises:
            ValueError: as described for the class.
        """
        check_options(self, _CHOICES, unused)

    def to_json_string(self) -> str:
        """Return the arguments as JSON, for trackers; absolute paths are shortened to their last component."""
        return json.dumps(shortened(self.to_dict()), indent=2, default=lambda array: array.tolist())

    def __getstate__(self) -> dict[str, Any]:
        # Trainer pickles its arguments into training_args.bin, and pushes this file to the Hub.
        values = dict(vars(self))
        return values | values.pop(SAVED_AS, {}) | {"hub_token": None}

    def __copy__(self) -> SharpTrainingArguments:
        return self._holding(vars(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> SharpTrainingArguments:
        return self._holding(copy.deepcopy(vars(self), memo))

    def _holding(self, values: dict[str, Any]) -> SharpTrainingArguments:
        other = object.__new__(type(self))
        vars(other).update(values)
        return other

    def settle_best_metric(self, reported: bool) -> None:
        """Choose the best model by the lowest loss, as `Trainer` does, if there is no long-tail report.

        Args:
            reported: whether evaluations report the balanced accuracy, by which the best model is chosen by default.
        """
        if isinstance(self.metric_for_best_model, _Default):
            self.metric_for_best_model = _Default("balanced_accuracy" if reported else "loss")
            self.greater_is_better = reported
        options = dict(cast(dict, self.lr_scheduler_kwargs or {}))
        if isinstance(self.lr_scheduler_kwargs, _Upwards):
            self.lr_scheduler_kwargs = {name: value for name, value in options.items() if name != "mode"}
        by_metric = self.greater_is_better and self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if by_metric and "mode" not in (self.lr_scheduler_kwargs or {}):
            self.lr_scheduler_kwargs = _Upwards(options, mode="max")

    @property
    def needs_head(self) -> bool:
        """Whether the sharpness method or the loss uses the head and its input."""
        return METHODS[self.sharpness].needs_features or self.loss_needs_features

    @property
    def loss_needs_features(self) -> bool:
        """Whether the loss uses the head and its input."""
        return LOSSES[self.loss].needs_features

    @property
    def learns_rho(self) -> bool:
        """Whether the radius is learned (LETS)."""
        return self.rho_schedule == "learned"

    @property
    def seed_of_data(self) -> int:
        """The seed for drawing from the data: `data_seed` if it is set, else `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def radius(self) -> float:
        """The radius at the start of training: `rho`, or the default for the method, ascent and metric."""
        if self.rho is not None:
            return self.rho
        return default_radius(self.sharpness, self.ascent, self.adaptive, self.adaptive_scope)

    @property
    def method_arguments(self) -> dict[str, Any]:
        """The options that the chosen sharpness method's coefficients take, with their values."""
        return self._values(METHODS[self.sharpness].coefficient_options) | cast(dict, self.sharpness_options or {})

    @property
    def loss_arguments(self) -> dict[str, Any]:
        """The options that the chosen loss takes, with their values."""
        return self._values(loss_options(self.loss)) | cast(dict, self.loss_options or {})

    @property
    def method(self) -> dict[str, Any]:
        """The options of sharpness, loss and sampler that are in effect, with their values."""
        values = self._values(options_in_effect(vars(self)) - {"head"})
        if "rho" in values:
            values["rho"] = self.radius
        return values | self.method_arguments | self.loss_arguments

    def _values(self, names: Iterable[str]) -> dict[str, Any]:
        known = {item.name for item in fields(self)}
        return {name: getattr(self, name) for name in sorted(names) if name in known}
