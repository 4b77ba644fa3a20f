"""Checks that options are valid and fit together, before anything starts; and which of them have an effect."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from hf_sharp.data import sampling
from hf_sharp.data.split import FRACTION
from hf_sharp.losses import LOSSES, build_loss, training_loss
from hf_sharp.losses.registry import loss_options
from hf_sharp.model import head_init
from hf_sharp.registry.json_text import read_json
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.nearest import check_name
from hf_sharp.sharpness import METHODS, choices

logger = logging.getLogger(__name__)

# Optimizers that update the weights during the backward pass, which leaves no room for SAM's second pass.
_STEP_IN_BACKWARD = ("lomo", "adalomo")
# The options of a plain Trainer, as `SharpTrainingArguments.method` names them.
PLAIN_METHOD = {
    "sharpness": "none",
    "loss": "cross_entropy",
    "class_importance": None,
    "reweight_after": None,
    "sampler": "instance",
    "head_init": "none",
    "cosine_head": False,
}
# The smallest sensible values of transformers' options, which it does not check; an int for options that are integers.
AT_LEAST: dict[str, float] = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "num_train_epochs": 0.0,
    "learning_rate": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
}
_SEEDS = 2**32  # NumPy's limit
# A choice comes after the one that brings its field into effect.
CHOICES = (*choices.CHOICES, *training_loss.CHOICES, *sampling.CHOICES, *head_init.CHOICES)


def options_in_effect(values: Mapping[str, Any]) -> set[str]:
    """List the options of sharpness, loss and sampler that have an effect, given the values of all options.

    Args:
        values: all options by name; the values of `sharpness` and `loss` must be registered.

    Returns:
        Their names.
    """
    method, loss = METHODS[values["sharpness"]], LOSSES[values["loss"]]
    names = {*PLAIN_METHOD, *method.options, *loss_options(values["loss"])}
    if method.needs_features or loss.needs_features:
        names.add("head")
    for choice in CHOICES:
        if choice.field in names and choice.applies(values):
            names.update(choice.options)
    return names


def unused_options(values: Mapping[str, Any]) -> dict[str, str]:
    """Find the options that have no effect, given the values of the others.

    Args:
        values: all options by name; the values of `sharpness` and `loss` must be registered.

    Returns:
        The name of each such option, mapped to the choices that make it useless, as `option=value`.

    Example:
        >>> from hf_sharp import SharpTrainingArguments
        >>> unused_options(vars(SharpTrainingArguments("out", sharpness="none")))["rho"]
        "sharpness='none'"
    """
    owners: dict[str, list[str]] = {"head": ["sharpness", "loss"]}
    for field, owned in (
        *(("sharpness", method.options) for method in METHODS.values()),
        *(("loss", loss_options(name)) for name in LOSSES),
        *((choice.field, choice.options) for choice in CHOICES),
    ):
        for option in owned:
            if field not in owners.setdefault(option, []):
                owners[option].append(field)
    used = options_in_effect(values)

    def reason(option: str) -> str:
        active = [field for field in owners[option] if field in used]
        if not active:
            return reason(owners[option][0])
        return " and ".join(f"{field}={values[field]!r}" for field in active)

    without_effect = owners.keys() & values.keys() - used - {"rare_threshold"}  # used by every report
    return {option: reason(option) for option in without_effect}


def check_options(args: Any, choices: Mapping[str, Iterable[str]], unused: bool = True) -> None:
    """Raise a ValueError for options that are unknown, out of range, useless or in conflict.

    Args:
        args: `SharpTrainingArguments`.
        choices: the possible values of fields, by name.
        unused: whether options without effect are an error.
    """
    _settle_types(args)
    for name, known in choices.items():
        check_name(name, getattr(args, name), known)
    for name in ("class_importance", "loss_options", "sharpness_options", "rho_steps"):
        if isinstance(getattr(args, name), str):
            setattr(args, name, read_json(name, getattr(args, name)))
    for name in ("loss_options", "sharpness_options"):
        _check_is_json(name, getattr(args, name))
    if unused:
        _check_unused(args)
    _check_numbers(args)
    _check_loss(args)
    _check_sampler(args)
    _check_modes(args)
    _check_ascent(args)


def _settle_types(args: Any) -> None:
    """Convert numbers that YAML reads as strings (1e-1), and reject values that do not have the field's type."""
    own = next(kind for kind in type(args).__mro__ if "sharpness" in vars(kind).get("__annotations__", {}))
    for name, kind in own.__annotations__.items():
        value, expected = getattr(args, name), kind.removesuffix(" | None")
        if expected not in _TYPES or (value is None and expected != kind):
            continue
        convert, description = _TYPES[expected]
        try:
            setattr(args, name, convert(value))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} must be {description}, got {value!r}.") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(number := float(value)) != number:
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return value if isinstance(value, (int, float)) else float(value)


def _truth(value: Any) -> bool:
    if value not in (True, False):
        raise ValueError
    return bool(value)


_TYPES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "int": (_whole, "an integer"),
    "float": (_number, "a number"),
    "bool": (_truth, "True or False"),
}


def _check_is_json(name: str, value: Any) -> None:
    try:
        json.dumps(value, default=lambda array: array.tolist())
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must be JSON, to be saved with checkpoints: {error}. Got {value!r}.") from error


def _check_unused(args: Any) -> None:
    defaults = {item.name: item.default for item in fields(args)}
    for name, reason in unused_options(vars(args)).items():
        if getattr(args, name) != defaults[name]:
            raise ValueError(
                f"{name}={getattr(args, name)!r} has no effect with {reason}. Remove it, or change "
                f"{reason.partition('=')[0]}."
            )
    for name in ("loss_options", "sharpness_options"):
        if with_fields := sorted(defaults.keys() & (getattr(args, name) or {}).keys()):
            raise ValueError(
                f"{name} is for options without a field of their own: set {', '.join(with_fields)} directly."
            )


def check_least(values: Mapping[str, Any], limits: Mapping[str, float]) -> None:
    """Raise a ValueError for a number that is below its limit, such as a batch size of 0, or not finite.

    Args:
        values: options by name; those that are None or missing are not checked.
        limits: option name to smallest allowed value, an int if the option must be an integer.
    """
    for name, least in limits.items():
        check_number(name, values.get(name), least=least, whole=isinstance(least, int), optional=True)


def _check_numbers(args: Any) -> None:
    check_least(vars(args), AT_LEAST)
    for name in ("seed", "data_seed"):
        check_number(name, getattr(args, name), least=0, below=_SEEDS, whole=True, optional=name == "data_seed")
    for name in (
        *("rho_end", "adaptive_eta", "focal_gamma", "focal_lambda", "cc_radius", "rho_learning_rate", "looksam_alpha"),
    ):
        check_number(name, getattr(args, name), least=0)
    check_number("rho", args.rho, least=0, optional=True)
    if args.learns_rho:
        check_number("rho, where a learned radius starts,", args.rho, above=0, optional=True)
    for name in ("head_scale", "cosine_scale"):
        check_number(name, getattr(args, name), above=0, optional=True)
    for name in ("head_examples", "rho_update_every", "sharpness_every"):
        check_number(name, getattr(args, name), least=1, whole=True, optional=True)
    check_number("sharpness_after", args.sharpness_after, least=0, below=1, share=True)
    check_number("cc_phi", args.cc_phi, least=0, most=1, share=True)
    check_number("ascent_fraction", args.ascent_fraction, above=0, most=1, share=True)
    check_number("rho_validation_fraction", args.rho_validation_fraction, **FRACTION)
    if args.rho_schedule == "step":
        args.rho_steps = _checked_steps(args.rho_steps)
    if args.label_smoothing_factor:
        raise ValueError(
            f"label_smoothing_factor={args.label_smoothing_factor} is not supported: the Trainer's smoother would "
            "replace the class-frequency-aware loss. Leave it at 0."
        )


def _checked_steps(steps: Any) -> dict[str, float]:
    expected = 'rho_steps must map fractions of training, between 0 and 1, to radii >= 0, such as {"0.8": 0.2}'
    if not isinstance(steps, dict) or not steps:
        raise ValueError(f"{expected}; got {steps!r}.")
    try:
        numbers = {str(float(start)): float(radius) for start, radius in steps.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{expected}; got {steps!r}.") from error
    if not all(0 < float(start) < 1 and math.isfinite(radius) and radius >= 0 for start, radius in numbers.items()):
        raise ValueError(f"{expected}; got {steps!r}.")
    return numbers


def _check_loss(args: Any) -> None:
    if args.reweight_after is not None:
        build_loss("class_balanced", [2, 1], loss_beta=args.loss_beta)
        check_number("reweight_after", args.reweight_after, above=0, below=1, share=True)
    if LOSSES[args.loss].needs_cosine_logits:
        for name, default in (("cosine_scale", type(args).cosine_scale), ("cosine_learn_scale", False)):
            if getattr(args, name) != default:
                raise ValueError(
                    f"{name}={getattr(args, name)!r} has no effect with loss={args.loss!r}, which has a scale of its "
                    "own: set loss_scale."
                )
    if args.loss not in LOSSES.builtin:
        return  # a loss registered by the user may need the true class counts
    # Options can be checked without the data.
    loss = build_loss(args.loss, [2, 1], feature_dim=1, **args.loss_arguments)
    if args.reweight_after is not None and loss.weight is not None:
        raise ValueError(
            f"reweight_after={args.reweight_after} would weight the classes twice: loss={args.loss!r} does it from "
            "the start. Choose another loss, such as cross_entropy or logit_adjusted."
        )


def warn_of_double_correction(args: Any) -> None:
    """Log a warning if sampler and loss both compensate for the class counts; the options must have been checked."""
    if args.sampler == "instance" or args.loss not in LOSSES.builtin:
        return
    loss = build_loss(args.loss, [2, 1], feature_dim=1, **args.loss_arguments)
    if args.reweight_after or loss.corrects:
        logger.warning(
            "sampler=%r and loss=%r%s both make up for the class counts: rare classes may end up ahead of frequent "
            "ones. One of the two is enough.",
            args.sampler,
            args.loss,
            " with reweight_after" if args.reweight_after else "",
        )


def _check_sampler(args: Any) -> None:
    strategy = getattr(args, "train_sampling_strategy", "random")
    if args.sampler != "instance" and strategy != "random":
        raise ValueError(
            f"sampler={args.sampler!r} and train_sampling_strategy={strategy!r} both choose the examples. Leave one of "
            "them at its default."
        )


def _check_modes(args: Any) -> None:
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true", "yes"):
        raise ValueError(
            "DeepSpeed is not supported: it keeps gradients where the ascent cannot see them. Use "
            "`accelerate launch --config_file recipes/accelerate/ddp.yaml` instead."
        )
    optimizer = getattr(args.optim, "value", args.optim)
    steps_in_backward = optimizer in _STEP_IN_BACKWARD or optimizer.endswith("layerwise")
    if METHODS[args.sharpness].needs_radius and steps_in_backward:
        raise ValueError(
            f"optim={optimizer!r} updates the weights while the backward pass runs, which leaves no room for the "
            f"second pass of sharpness={args.sharpness!r}. Use another optimizer, such as adamw_torch."
        )
    dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"  # `accelerate launch` sets it
    compiled = args.torch_compile or args.torch_compile_backend or args.torch_compile_mode or dynamo
    if args.needs_head and compiled:
        needs_features = METHODS[args.sharpness].needs_features
        reader = f"sharpness={args.sharpness!r}" if needs_features else f"loss={args.loss!r}"
        raise ValueError(
            f"{reader} reads the head's features while the model runs, which torch.compile does not allow. Leave out "
            "torch_compile, or choose another method."
        )


def _check_ascent(args: Any) -> None:
    if args.ascent == "momentum" and not METHODS[args.sharpness].uniform:
        raise ValueError(
            f"ascent='momentum' works with sharpness='sam' only: the momentum is that of all classes, and "
            f"sharpness={args.sharpness!r} weights them. Choose ascent='gradient', which ascent_fraction makes cheap."
        )
    for name, required in (("ascent", "gradient"), ("sharpness_every", 1)):
        if args.learns_rho and getattr(args, name) != required:
            raise ValueError(
                f"rho_schedule='learned' learns from the ascents of consecutive steps: leave {name} at {required!r}, "
                f"got {getattr(args, name)!r}, or choose another rho_schedule."
            )
