"""The parts of a model card on training: the method with its options, the run, and the papers to cite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from hf_sharp.data.local_paths import shortened_command
from hf_sharp.data.sampling import CHOICES as SAMPLER_CHOICES
from hf_sharp.losses import LOSSES, build_loss
from hf_sharp.losses.registry import loss_options
from hf_sharp.losses.training_loss import CHOICES as LOSS_CHOICES
from hf_sharp.model.head_init import CHOICES as HEAD_CHOICES
from hf_sharp.registry import Citation, Registry
from hf_sharp.reports.figures import duration, is_finite_number
from hf_sharp.reports.markdown import code, escaped, one_line, published
from hf_sharp.sharpness.choices import CHOICES as SHARPNESS_CHOICES
from hf_sharp.sharpness.methods import METHODS
from hf_sharp.training_args import PLAIN_METHOD, SharpTrainingArguments

# The parts of a method that a record describes: their names in the card, and their registries.
DESCRIBED: dict[str, Registry] = {"sharpness": METHODS, "loss": LOSSES}
_CHOICES = {"sharpness": SHARPNESS_CHOICES, "loss": (*LOSS_CHOICES, *SAMPLER_CHOICES, *HEAD_CHOICES)}

_SHORTEST_TIMED = 30.0  # seconds; the start-up dominates the speed of a shorter run
DEFAULTS: dict[str, Any] = {
    item.name: item.default_factory() if callable(item.default_factory) else item.default
    for item in dataclasses.fields(SharpTrainingArguments)
    if not (item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING)
}
_OWN_FIELDS = vars(SharpTrainingArguments)["__annotations__"].keys()


def method_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the options of sharpness, loss and sampler that were in effect, defaults included.

    Args:
        options: a run's options, as in `all_results.json`.

    Returns:
        Option to value.

    Example:
        >>> method_of({"sharpness": "none", "loss": "vs", "loss_gamma": 0.1})
        {'sharpness': 'none', 'loss': 'vs', ..., 'loss_gamma': 0.1, 'loss_tau': 1.0, ...}
    """
    args = object.__new__(SharpTrainingArguments)  # without __init__: TrainingArguments would set up devices
    vars(args).update({name: options.get(name, value) for name, value in DEFAULTS.items()})
    if args.sharpness not in METHODS or args.loss not in LOSSES:  # registered by a user in the process that trained
        return PLAIN_METHOD | {name: value for name, value in options.items() if name in _OWN_FIELDS}
    method = {part: getattr(args, part) for part in DESCRIBED} | args.method
    if args.needs_head and args.head is not None:
        method["head"] = args.head
    if args.reweight_after is not None and args.loss_beta is None:
        method["loss_beta"] = build_loss("class_balanced", [2, 1]).options["loss_beta"]
    return method | (_built_loss(method).options if args.loss in LOSSES.builtin else {})


def treats_classes_alike(method: Mapping[str, Any]) -> bool:
    """Tell whether a method compensates for the class frequencies: by its loss, deferred weights or sampler."""
    if method.get("sampler", "instance") != "instance" or method.get("reweight_after") is not None:
        return True
    if method["loss"] not in LOSSES.builtin:  # unknown, for a user's own loss
        return False
    return _built_loss(method).corrects


def _built_loss(method: Mapping[str, Any]) -> Any:
    options = {name: method[name] for name in loss_options(method["loss"]) if name in method}
    return build_loss(method["loss"], [2, 1], feature_dim=1, **options)


def training_section(
    results: Mapping[str, Any], plain: Mapping[str, Any] | None, method: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect the template's values for method and training.

    Args:
        results: the results of the run.
        plain: the results of plain training, or None.
        method: the options in effect.

    Returns:
        Variable in the template to value.
    """
    recorded = results.get("described", {})
    papers = citations(method)
    return {
        "descriptions": {part: description(part, method, recorded.get(part, {})) for part in DESCRIBED},
        "method": [(option, _value(value)) for option, value in method.items()],
        "training": training_rows(results, plain),
        "options": json.dumps(published(results["options"]), indent=2, ensure_ascii=False),
        "command": shown_command(results["command"]) if results.get("command") else None,
        "citations": [paper.text for paper in papers],
        "bibtex": "\n".join(paper.bibtex for paper in papers),
    }


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 2000)


def description(part: str, method: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
    """Describe the sharpness method or the loss: the summary and formula of its record, and other choices in effect.

    Args:
        part: "sharpness" or "loss".
        method: the options in effect.
        recorded: `summary` and `formula` of a user's own record, from the run's results.

    Returns:
        Markdown; for a user's record without a summary, its name.
    """
    record = own_record(part, method[part]) or recorded
    summary, formula = record.get("summary"), record.get("formula")
    text = escaped(summary, 500) if summary else f"{code(method[part])}, defined by the authors of this model."
    chosen = [choice.summary for choice in _CHOICES[part] if choice.summary and choice.applies(method)]
    return " ".join([f"{text} Formula: {code(formula)}." if formula else text, *chosen])


def own_record(part: str, name: str) -> Mapping[str, Any]:
    """Return the attributes that a record defines itself; those that a user's loss inherits do not describe it."""
    record = DESCRIBED[part].get(name)
    return {} if record is None else vars(record)


def training_rows(results: Mapping[str, Any], plain: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Make the rows of the training table: seed, time, speed, cost, loss, radius, data, hardware and versions.

    Args:
        results: the results of the run.
        plain: the results of plain training, or None.

    Returns:
        Label and Markdown of each entry that the results contain.
    """
    training, radius = results.get("training", {}), results.get("radius")
    rows = [("seed", code(results["options"].get("seed", DEFAULTS["seed"])))]
    if adapter := results.get("adapter"):
        saved = "merged into the saved weights" if adapter.get("merged") else "saved without the model"
        rows.append(("adapters", f"{code(adapter['type'])}, {adapter['trained_parameters']:,} parameters, {saved}"))
    if augmentation := results.get("data", {}).get("augmentation"):
        library = results["data"].get("augmentation_library")
        rows.append(("augmentation", code(augmentation) + (f", by {escaped(library)}" if library else "")))
    if is_finite_number(training.get("train_runtime")):
        rows.append(("training time", duration(training["train_runtime"])))
    speed = _steps_per_second(results)
    if speed is not None:
        rows.append(("optimizer steps per second", f"{speed:.3g}"))
    plain_speed = _steps_per_second(plain or {})
    if is_finite_number(training.get("passes")):
        rows.append(("cost of a step", f"{training['passes']:.2f} plain steps, in forward and backward passes"))
    elif speed and plain_speed and plain["machine"] == results["machine"]:  # type: ignore[index]
        rows.append(
            ("time per step against plain training", f"{plain_speed / speed:.1f} times, measured in one run each")
        )
    if is_finite_number(training.get("train_loss")):
        rows.append(("mean training loss", f"{training['train_loss']:.4f}"))
    if radius and radius.get("rho"):
        rows.append(("learned radius ρ", f"from {radius['rho'][0]:.3g} to {radius['rho'][-1]:.3g}"))
    rows += data_rows(results.get("data", {}))
    if results.get("machine"):
        rows.append(("hardware", escaped(results["machine"])))
    if versions := results.get("versions"):
        rows.append(
            ("versions", ", ".join(f"{escaped(name)} {escaped(version)}" for name, version in versions.items()))
        )
    return rows


def data_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Make the rows on preprocessing of the data: the rows left out, and the range of grey values.

    Args:
        data: `left_out` (number of rows by split) and `picture_range`, if there are any.

    Returns:
        Label and Markdown.
    """
    rows = []
    if left_out := data.get("left_out"):
        counts = ", ".join(f"{int(count):,} of {escaped(split)}" for split, count in left_out.items())
        rows.append(("rows left out: broken, empty or without a label", counts))
    if limits := data.get("picture_range"):
        rows.append(
            ("grey values", f"from {limits[0]:g} to {limits[1]:g}, scaled to 0 to 255; scale new pictures likewise")
        )
    return rows


def _steps_per_second(results: Mapping[str, Any]) -> float | None:
    training = results.get("training", {})
    seconds, speed = training.get("train_runtime"), training.get("train_steps_per_second")
    return speed if is_finite_number(seconds) and is_finite_number(speed) and seconds >= _SHORTEST_TIMED else None


def shown_command(command: str) -> str:
    """Format a command as code, without access tokens and absolute paths."""
    return code(shortened_command(one_line(command, 2000)), 2000)


def citations(method: Mapping[str, Any]) -> list[Citation]:
    """List the papers that the records of the methods in effect cite."""
    papers = [*(own_record("sharpness", method["sharpness"]).get("citations") or ())]
    for choice in (choice for part in _CHOICES.values() for choice in part):
        if choice.applies(method):
            papers += choice.citations
    papers += own_record("loss", method["loss"]).get("citations") or ()
    return list(dict.fromkeys(papers))
