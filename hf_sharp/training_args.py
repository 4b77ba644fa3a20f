"""Every option of a run, with its help, and the checks that options pass together before anything starts."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_sharp.data.sampling import SAMPLERS
from hf_sharp.losses.large_margin import AGGREGATIONS
from hf_sharp.losses.registry import LOSSES, build_loss, loss_options
from hf_sharp.sharpness.coefficients import method_options
from hf_sharp.sharpness.methods import FOCAL_SAMPLINGS, METHODS
from hf_sharp.sharpness.radius import RHO_HESSIANS, RHO_OBJECTIVES, RHO_SCHEDULES

logger = logging.getLogger(__name__)

# Optimizers that take their step while the backward pass runs: there is no moment between the two passes of SAM.
_STEP_IN_BACKWARD = ("lomo", "adalomo")

ASCENTS = ("gradient", "momentum")
_SHARP_OPTIONS = ("rho", "rho_schedule", "adaptive", "ascent")
# Of an ascent along a gradient; one along the momentum has no examples.
_GRADIENT_OPTIONS = ("ascent_scope", "ascent_sync", "ascent_fraction", "sharpness_every")
# What a plain Trainer does, in the words of `SharpTrainingArguments.method`.
PLAIN_METHOD = {
    "sharpness": "none",
    "loss": "cross_entropy",
    "class_importance": None,
    "reweight_after": None,
    "sampler": "instance",
}
SCOPES = ("micro_batch", "window")
SYNCS = ("local", "global")
# rare_threshold is used by every report.
_METHOD_OPTIONS = sorted(
    {*_SHARP_OPTIONS, *_GRADIENT_OPTIONS}.union(*map(method_options, METHODS)) - {"rare_threshold"}
)
_LEARNED_OPTIONS = (
    *("rho_learning_rate", "rho_update_every", "rho_validation_fraction", "rho_hessian", "rho_objective"),
)
_LOSS_OPTIONS = sorted(set().union(*map(loss_options, LOSSES)))


def _choice(default: str, choices: Iterable[str], text: str) -> Any:
    return field(default=default, metadata={"help": f"{text} One of: {', '.join(choices)}."})


@dataclass
class SharpTrainingArguments(TrainingArguments):
    """`TrainingArguments`, plus the sharpness method and the class-frequency-aware loss.

    Flat fields, usable by `HfArgumentParser` and YAML. An option that the chosen method does not use is an error when
    it is set away from its default.

    Raises:
        ValueError: an unknown method, a number out of range, an option that nothing uses, or a mode of training that
            sharpness cannot work in (DeepSpeed, optimizers that step during the backward pass).

    Example:
        >>> args = SharpTrainingArguments("out", sharpness="focal_sam", rho=0.1, loss="logit_adjusted", use_cpu=True)
        >>> args.focal_gamma, args.loss_tau
        (1.0, 1.0)
    """

    sharpness: str = _choice("sam", METHODS, "Sharpness method.")
    rho: float = field(
        default=0.05, metadata={"help": "Radius of the ascent, an L2 norm over all trainable parameters."}
    )
    rho_schedule: str = _choice("constant", RHO_SCHEDULES, "How rho changes over training; linear and cosine end at 0.")
    rho_learning_rate: float = field(
        default=0.05, metadata={"help": "LETS: the learning rate of Adam on log rho; 0 leaves rho as it is."}
    )
    rho_update_every: int = field(
        default=5, metadata={"help": "LETS: the optimizer steps from one update to the next."}
    )
    rho_validation_fraction: float = field(
        default=0.1,
        metadata={
            "help": "LETS: the share of every class held out of the training set, up to 0.5, unless rho_dataset."
        },
    )
    rho_hessian: str = _choice("secant", RHO_HESSIANS, "LETS: how the gradient's change with rho is computed.")
    rho_objective: str = _choice("alignment", RHO_OBJECTIVES, "LETS: what rho is to make small.")
    adaptive: bool = field(
        default=False,
        metadata={"help": "Measure the radius relative to each weight's size (ASAM); rho 0.5 to 2."},
    )
    adaptive_eta: float = field(default=0.01, metadata={"help": "ASAM: added to |w|, so that zero weights move too."})
    ascent: str = _choice(
        "gradient",
        ASCENTS,
        "What the ascent follows: a gradient of its own, or the optimizer's first moment, which costs no pass (MSAM).",
    )
    ascent_fraction: float = field(
        default=1.0,
        metadata={
            "help": "The share of the perturbed examples that the ascent takes, in (0, 1]: SAM for 1 + f passes."
        },
    )
    sharpness_every: int = field(
        default=1,
        metadata={
            "help": "LookSAM: the optimizer steps from one ascent to the next; what it added is reused in between."
        },
    )
    looksam_alpha: float = field(
        default=0.1, metadata={"help": "LookSAM: how strongly it is reused; the paper's 0.7 is for very large batches."}
    )
    ascent_scope: str = _choice(
        "micro_batch", SCOPES, "Which examples share one perturbation: a micro-batch, or its accumulation window."
    )
    ascent_sync: str = _choice(
        "local", SYNCS, "Whether every process has a perturbation of its own, or all have one of their mean gradient."
    )
    focal_gamma: float = field(
        default=1.0,
        metadata={"help": "Focal-SAM: the exponent in c = focal_lambda * (1 - prior) ** focal_gamma."},
    )
    focal_lambda: float = field(default=0.8, metadata={"help": "Focal-SAM: the weight of the sharpness term."})
    focal_sampling: str = _choice(
        "exact",
        FOCAL_SAMPLINGS,
        "Focal-SAM: both terms for every example, or each example in one of them, drawn with its coefficient.",
    )
    cc_radius: float = field(default=1e-6, metadata={"help": "CC-SAM: the radius of every class's ascent on the head."})
    cc_phi: float = field(default=0.5, metadata={"help": "CC-SAM: the share of the perturbed loss, from 0 to 1."})
    head: str | None = field(
        default=None,
        metadata={
            "help": "CC-SAM, large margin: the name of the linear layer that makes the logits, where it is not found "
            "by itself."
        },
    )
    rare_threshold: int = field(
        default=20,
        metadata={"help": "Classes with fewer training examples are 'few' in reports, and rare for ImbSAM."},
    )
    common_threshold: int = field(
        default=100, metadata={"help": "Classes with more training examples are 'many' in reports."}
    )
    loss: str = _choice("cross_entropy", LOSSES, "Class-frequency-aware loss.")
    loss_tau: float = field(
        default=1.0, metadata={"help": "Logit adjustment and VS: the strength of the prior; 1 is the papers'."}
    )
    loss_gamma: float | None = field(
        default=None,
        metadata={"help": "Focal (2 if not given), CDT, LDT and VS (0.3): the exponent in their formulas."},
    )
    loss_beta: float | None = field(
        default=None, metadata={"help": "Class-balanced loss: beta of the effective number of examples (0.9999)."}
    )
    loss_margin: float | None = field(
        default=None, metadata={"help": "LDAM: the margin of the rarest class, in cosine (0.5)."}
    )
    loss_scale: float | None = field(
        default=None, metadata={"help": "LDAM: what the cosines are multiplied by, an inverse temperature (30)."}
    )
    lm_weight: float = field(default=1.0, metadata={"help": "Large margin: lambda, of all that is added."})
    lm_alpha: float = field(default=1.0, metadata={"help": "Large margin: the weight of compactness."})
    lm_beta: float = field(default=1.0, metadata={"help": "Large margin: the weight of the margin."})
    lm_gamma: float = field(default=0.001, metadata={"help": "Large margin: the weight of the centroids' norm."})
    lm_delta_v: float = field(
        default=0.5, metadata={"help": "Large margin: the distance from the class's centroid that costs nothing."}
    )
    lm_delta_d: float = field(
        default=6.0, metadata={"help": "Large margin: the distance from the boundary beyond which nothing is gained."}
    )
    lm_momentum: float = field(
        default=0.99, metadata={"help": "Large margin: of the running centroids, from 0 to below 1."}
    )
    lm_aggregation: str = _choice("max", AGGREGATIONS, "Large margin: over the other classes.")
    lm_frequency_margins: bool = field(
        default=False, metadata={"help": "Large margin: lm_delta_d in proportion to n_c ** -0.25, with the same mean."}
    )
    class_importance: dict | str | None = field(
        default=None,
        metadata={
            "help": "What a mistake on a class costs: K numbers, or class name to number (others 1), as JSON. They "
            "multiply the losses of the class's examples."
        },
    )
    reweight_after: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the training steps after which class-balanced weights (loss_beta) multiply the loss: "
            "deferred reweighting, DRW."
        },
    )
    sampler: str = _choice("instance", SAMPLERS, "Which examples an epoch draws; progressive: instance to balanced.")
    label_column: str = field(
        default="label",
        metadata={"help": "The dataset column with one label per example (the model gets `labels`)."},
    )

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_unused()
        self._check_numbers()
        self._check_loss()
        self._check_modes()
        # Not the loss: under a class-frequency-aware loss eval_loss is the adjusted one.
        self.metric_is_default = self.metric_for_best_model is None
        best_needed = self.load_best_model_at_end or self.save_strategy in (SaveStrategy.BEST, "best")
        if best_needed and self.metric_for_best_model is None:
            self.metric_for_best_model = "balanced_accuracy"
        if self.hub_token is not None:  # with the end of its line, httpx refuses it in an error that shows it
            self.hub_token = self.hub_token.strip()
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        # Trainer pickles its arguments into training_args.bin, and pushes that.
        return vars(self) | {"hub_token": None}

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
        if not self.metric_is_default or self.metric_for_best_model != "balanced_accuracy":
            return
        if not reported:
            self.metric_for_best_model, self.greater_is_better = "loss", False
        elif self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):  # which take the lowest for the best
            self.lr_scheduler_kwargs = {"mode": "max"} | cast(dict, self.lr_scheduler_kwargs or {})

    @property
    def needs_head(self) -> bool:
        """Whether sharpness method or loss look at the features and the head that makes the logits of them."""
        return self.sharpness == "cc_sam" or LOSSES[self.loss].needs_features

    @property
    def learns_rho(self) -> bool:
        """Whether the radius is learned (LETS)."""
        return self.rho_schedule == "learned"

    @property
    def sharpness_options(self) -> dict[str, Any]:
        """The options that the chosen sharpness method's coefficients take, with their values."""
        return {name: getattr(self, name) for name in sorted(method_options(self.sharpness))}

    @property
    def method(self) -> dict[str, Any]:
        """The options of sharpness, loss and sampler that are in effect, with their values."""
        names = [*PLAIN_METHOD]
        if METHODS[self.sharpness].needs_radius:
            names += [*_SHARP_OPTIONS, *(["adaptive_eta"] if self.adaptive else [])]
            names += _GRADIENT_OPTIONS if self.ascent == "gradient" else ()
            names += ["looksam_alpha"] if self.sharpness_every > 1 else []
            names += _LEARNED_OPTIONS if self.learns_rho else ()
        values = {name: getattr(self, name) for name in names}
        loss_beta = {} if self.reweight_after is None else {"loss_beta": self.loss_beta}
        return values | self.sharpness_options | self.loss_options | loss_beta

    @property
    def loss_options(self) -> dict[str, Any]:
        """The options that the chosen loss takes, with their values."""
        return {name: getattr(self, name) for name in sorted(loss_options(self.loss))}

    def _check_choices(self) -> None:
        for name, choices in (
            ("sharpness", METHODS),
            ("loss", LOSSES),
            ("rho_schedule", RHO_SCHEDULES),
            ("sampler", SAMPLERS),
            ("ascent", ASCENTS),
            ("focal_sampling", FOCAL_SAMPLINGS),
            ("ascent_scope", SCOPES),
            ("ascent_sync", SYNCS),
            ("rho_hessian", RHO_HESSIANS),
            ("rho_objective", RHO_OBJECTIVES),
            ("lm_aggregation", AGGREGATIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; expected one of {', '.join(choices)}.")

    def _check_numbers(self) -> None:
        for name in ("rho", "adaptive_eta", "focal_gamma", "focal_lambda", "rho_learning_rate", "looksam_alpha"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {value}.")
        if self.learns_rho and self.rho == 0:
            raise ValueError("a learned radius begins at rho, which must be > 0; got 0.")
        for name in ("rho_update_every", "sharpness_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.ascent_fraction <= 1:
            raise ValueError(f"ascent_fraction must be in (0, 1], got {self.ascent_fraction}.")
        if not 0 < self.rho_validation_fraction <= 0.5:
            raise ValueError(f"rho_validation_fraction must be in (0, 0.5], got {self.rho_validation_fraction}.")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} is not supported: the Trainer's smoother would "
                "replace the class-frequency-aware loss. Leave it at 0."
            )

    def _check_loss(self) -> None:
        # Whether options are in range does not need the data.
        loss = build_loss(self.loss, [2, 1], feature_dim=1, **self.loss_options)
        if self.reweight_after is not None:
            build_loss("class_balanced", [2, 1], loss_beta=self.loss_beta)
            if not 0 < self.reweight_after < 1:
                raise ValueError(
                    f"reweight_after is a fraction of the training steps, between 0 and 1; got {self.reweight_after}."
                )
            if loss.weight is not None:
                raise ValueError(
                    f"reweight_after={self.reweight_after} would weight the classes twice: loss={self.loss!r} does it "
                    "from the start. Choose another loss, such as cross_entropy or logit_adjusted."
                )
        adjusts = (loss.weight, loss.offset, loss.class_scale, loss.label_scale)
        if self.sampler != "instance" and (self.reweight_after or any(part is not None for part in adjusts)):
            logger.warning(
                "sampler=%r and loss=%r%s both make up for the class counts: rare classes may end up ahead of frequent "
                "ones. One of the two is enough.",
                self.sampler,
                self.loss,
                " with reweight_after" if self.reweight_after else "",
            )
        if isinstance(self.class_importance, str):
            self.class_importance = _json("class_importance", self.class_importance)

    def _check_unused(self) -> None:
        defaults = {item.name: item.default for item in fields(self)}
        for name, reason in unused_options(vars(self)).items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no effect with {reason}. Remove it, or choose a method that "
                    "uses it."
                )

    def _check_modes(self) -> None:
        strategy = getattr(self, "train_sampling_strategy", "random")
        if self.sampler != "instance" and strategy != "random":
            raise ValueError(
                f"sampler={self.sampler!r} and train_sampling_strategy={strategy!r} both choose the examples. Leave "
                "one of them at its default."
            )
        if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in (
            "1",
            "true",
            "yes",
        ):
            raise ValueError(
                "DeepSpeed is not supported: it keeps gradients where the ascent cannot see them. Use "
                "`accelerate launch --config_file recipes/accelerate/ddp.yaml` instead."
            )
        optimizer = getattr(self.optim, "value", self.optim)
        if METHODS[self.sharpness].needs_radius and (optimizer in _STEP_IN_BACKWARD or optimizer.endswith("layerwise")):
            raise ValueError(
                f"optim={optimizer!r} updates the weights while the backward pass runs, which leaves no room for "
                f"the second pass of sharpness={self.sharpness!r}. Use another optimizer, such as adamw_torch."
            )
        if self.ascent == "momentum" and self.sharpness != "sam":
            raise ValueError(
                f"ascent='momentum' is for sharpness='sam' alone: the momentum is that of all classes, and "
                f"sharpness={self.sharpness!r} weights them. Choose ascent='gradient'; ascent_fraction makes it cheap."
            )
        for name, other in (("ascent", "gradient"), ("sharpness_every", 1)):
            if self.learns_rho and getattr(self, name) != other:
                raise ValueError(
                    f"rho_schedule='learned' learns from ascents in two steps on end: leave {name} at {other!r}, got "
                    f"{getattr(self, name)!r}, or choose another rho_schedule."
                )
        dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"  # `accelerate launch` sets it
        compiled = self.torch_compile or self.torch_compile_backend or self.torch_compile_mode or dynamo
        if self.needs_head and compiled:
            which = "sharpness='cc_sam'" if self.sharpness == "cc_sam" else f"loss={self.loss!r}"
            raise ValueError(
                f"{which} reads the head's features while the model runs, which torch.compile does not allow. Leave "
                "out torch_compile, or choose another method."
            )


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}. Got {text!r}.") from error


def unused_options(values: Mapping[str, Any]) -> dict[str, str]:
    """Find the options that have no effect beside the others.

    Args:
        values: of all options, by name; `sharpness` and `loss` are known ones.

    Returns:
        Name to the choice that makes it useless, as `option=value`.

    Example:
        >>> unused_options(vars(SharpTrainingArguments("out", sharpness="none")))["rho"]
        "sharpness='none'"
    """
    sharpness, loss, schedule = values["sharpness"], values["loss"], values["rho_schedule"]
    ascends, used = METHODS[sharpness].needs_radius, method_options(sharpness) | loss_options(loss)
    if ascends:
        used |= {*_SHARP_OPTIONS, *(_GRADIENT_OPTIONS if values["ascent"] == "gradient" else ())}
    if values["reweight_after"] is not None:
        used.add("loss_beta")
    by_momentum, needs_head = values["ascent"] == "momentum", sharpness == "cc_sam" or LOSSES[loss].needs_features
    reused, adaptive, learned = values["sharpness_every"] > 1, values["adaptive"], schedule == "learned"
    return {
        **{name: f"sharpness={sharpness!r}" for name in _METHOD_OPTIONS if name not in used},
        **(dict.fromkeys(_GRADIENT_OPTIONS, "ascent='momentum'") if by_momentum else {}),
        **({} if ascends and reused else {"looksam_alpha": "sharpness_every=1"}),
        **({} if ascends and adaptive else {"adaptive_eta": "adaptive=False"}),
        **({} if ascends and learned else dict.fromkeys(_LEARNED_OPTIONS, f"rho_schedule={schedule!r}")),
        **{name: f"loss={loss!r}" for name in _LOSS_OPTIONS if name not in used},
        **({} if needs_head else {"head": f"sharpness={sharpness!r} and loss={loss!r}"}),
    }
