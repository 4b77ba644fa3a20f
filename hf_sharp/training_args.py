"""Every option of a run, with its help."""

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
SAVED_AS = "_saved_as"  # the attribute with what replaces values in training_args.bin: paths of this machine
SYNCS = ("local", "global")
_CHOICES: dict[str, Iterable[str]] = {}  # the possible values of fields; registries, so that users' own count


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _choice(name: str, default: str, choices: Iterable[str], text: str) -> Any:
    _CHOICES[name] = choices
    return _option(default, f"{text} One of: {', '.join(choices)}.")


@dataclass
class SharpTrainingArguments(TrainingArguments):
    """`TrainingArguments`, plus the sharpness method and the class-frequency-aware loss.

    Flat fields, usable by `HfArgumentParser` and YAML. The defaults are worth a first try on any long tail: logit
    adjustment, without sharpness. An option that the chosen method does not use is an error when it is set away from
    its default.

    Raises:
        ValueError: an unknown method, a number out of range, an option that nothing uses, or a mode of training that
            sharpness cannot work in (DeepSpeed, optimizers that step during the backward pass).

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
        0.0, "Fraction of the training steps that are plain; the steps after them are sharpness-aware."
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
        "rho_update", "sign", RHO_UPDATES, "LETS: whether Adam sees the derivative's sign alone, or its size too."
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
        "ASAM: the tensors whose size counts; matrices leaves out biases and norms.",
    )
    adaptive_eta: float = _option(0.01, "ASAM: added to |w|, so that zero weights move too.")
    ascent: str = _choice(
        "ascent",
        "gradient",
        ASCENTS,
        "What the ascent follows: its own gradient, or the optimizer's first moment, which costs no pass (MSAM).",
    )
    ascent_fraction: float = _option(
        1.0, "The share of the perturbed examples that the ascent uses, in (0, 1]. SAM then costs 1 + f passes."
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
        "Which examples share one perturbation: those of a micro-batch, or of the whole accumulation window.",
    )
    ascent_sync: str = _choice(
        "ascent_sync",
        "local",
        SYNCS,
        "Whether every process has its own perturbation, or all share one, from their mean gradient.",
    )
    focal_gamma: float = _option(1.0, "Focal-SAM: the exponent in c = focal_lambda * (1 - prior) ** focal_gamma.")
    focal_lambda: float = _option(0.8, "Focal-SAM: the weight of the sharpness term.")
    focal_sampling: str = _choice(
        "focal_sampling",
        "exact",
        FOCAL_SAMPLINGS,
        "Focal-SAM: compute both terms for every example, or draw one of them for each, with its coefficient.",
    )
    cc_radius: float = _option(1e-6, "CC-SAM: the radius of every class's ascent on the head.")
    cc_phi: float = _option(0.5, "CC-SAM: the share of the perturbed loss, from 0 to 1.")
    head_init: str = _choice(
        "head_init", "none", HEAD_INITS, "Starting values of the head: class means of the training set, or class names."
    )
    head_scale: float | None = _option(
        None,
        "The length of the head's rows at the start. Class means choose it by cross-validation; class names take 25.",
    )
    head_examples: int | None = _option(
        400, "Class means: use at most so many examples of each class, drawn at random; None: all of them."
    )
    cosine_head: bool = _option(False, "Train a cosine head: normalised features and class vectors, with a scale.")
    cosine_scale: float = _option(25.0, "Cosine head: the factor of the cosines; ldam uses loss_scale instead.")
    cosine_learn_scale: bool = _option(False, "Cosine head: train the factor too.")
    cosine_custom_code: bool = _option(
        False, "Cosine head: accept a saved model that needs trust_remote_code=True, where no other is exact."
    )
    head: str | None = _option(
        None, "The name of the linear layer that makes the logits, for what needs it, if it is not found by itself."
    )
    rare_threshold: int = _option(20, "Classes with fewer training examples are 'few' in reports, and rare for ImbSAM.")
    common_threshold: int = _option(100, "Classes with more training examples are 'many' in reports.")
    loss: str = _choice("loss", "logit_adjusted", LOSSES, "Class-frequency-aware loss.")
    loss_tau: float = _option(
        1.0,
        "Logit adjustment and VS: the strength of the prior; the papers use 1. Negative: for frequent classes.",
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
    lm_alpha: float = _option(1.0, "Large margin: the weight of compactness.")
    lm_beta: float = _option(1.0, "Large margin: the weight of the margin.")
    lm_gamma: float = _option(0.001, "Large margin: the weight of the centroids' norm.")
    lm_delta_v: float = _option(0.5, "Large margin: the distance from the class centroid that costs nothing.")
    lm_delta_d: float = _option(6.0, "Large margin: the distance from the boundary beyond which the margin is met.")
    lm_momentum: float = _option(0.99, "Large margin: the momentum of the running centroids, from 0 to below 1.")
    lm_aggregation: str = _choice(
        "lm_aggregation", "max", AGGREGATIONS, "Large margin: how the margins to the other classes are combined."
    )
    lm_frequency_margins: bool = _option(
        False, "Large margin: make lm_delta_d proportional to n_c ** -0.25, with the same mean."
    )
    class_importance: dict | str | None = _option(
        None,
        "What a mistake on a class costs: K numbers, or class name to number (others 1), as JSON. They multiply the "
        "losses of the class's examples.",
    )
    cost_matrix: dict | str | None = _option(
        None,
        "What predicting one class for another costs, for the report: a CSV file, or class name to number or to class "
        "name and number, as JSON. It does not change the training.",
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
        "sampler", "instance", SAMPLERS, "How an epoch draws examples; progressive moves from instance to balanced."
    )
    label_column: str = _option("label", "The dataset column with one label per example; `labels` is found too.")
    logging_nan_inf_filter: bool = _option(
        False, "Leave losses that are not finite out of the logged mean, which waits for the device in every step."
    )

    def __post_init__(self) -> None:
        self.check()
        warn_of_double_correction(self)
        # Not the loss: under a class-frequency-aware loss eval_loss is the adjusted one.
        self.default_metric: str | None = None
        best_needed = self.load_best_model_at_end or self.save_strategy in (SaveStrategy.BEST, "best")
        if best_needed and self.metric_for_best_model is None:
            self.metric_for_best_model = self.default_metric = "balanced_accuracy"
        if str(self.metric_for_best_model).endswith(("calibration_error", "expected_cost")):
            self.greater_is_better = bool(self.greater_is_better)  # transformers knows of losses only
        if self.fp16:  # an overflow, which skips a step, would spoil the mean that is logged
            self.logging_nan_inf_filter = True
        if self.hub_token is not None:  # httpx refuses a token with a line end, in an error that shows it
            self.hub_token = self.hub_token.strip()
        super().__post_init__()

    def check(self, unused: bool = True) -> None:
        """Check the options again, where they were changed after they were made.

        Args:
            unused: whether an option without effect is an error. In a search a trial may set `rho` for any method.

        Raises:
            ValueError: see the class.
        """
        check_options(self, _CHOICES, unused)

    def to_json_string(self) -> str:
        """Write the arguments as JSON, as trackers keep them beside the model: of an absolute path, the last part."""
        return json.dumps(shortened(self.to_dict()), indent=2, default=lambda array: array.tolist())

    def __getstate__(self) -> dict[str, Any]:
        # Trainer pickles its arguments into training_args.bin, and pushes that.
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
        """Let the best model be the one with the lowest loss, as `Trainer` does, where there is no long-tail report.

        Args:
            reported: whether evaluations report the balanced accuracy, which it is chosen by otherwise.
        """
        if self.default_metric is None or self.metric_for_best_model != self.default_metric:
            return
        self.default_metric = "balanced_accuracy" if reported else "loss"
        self.metric_for_best_model, self.greater_is_better = self.default_metric, reported
        takes_lowest = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if reported and takes_lowest:
            self.lr_scheduler_kwargs = {"mode": "max"} | cast(dict, self.lr_scheduler_kwargs or {})

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
        """The seed of what is drawn from the data: `data_seed`, or `seed`."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def radius(self) -> float:
        """The radius at the start of training: `rho`, or the default of the method, ascent and metric."""
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
