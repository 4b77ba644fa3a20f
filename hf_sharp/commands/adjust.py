"""`hf-sharp adjust`: fold a correction for class imbalance, or the costs of mistakes, into the head of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_sharp.commands.costs import adjust_for_costs, costs_of
from hf_sharp.losses import LOSSES
from hf_sharp.model.posthoc import METHODS, adjust_head, choose_strength
from hf_sharp.model.predicted_geometry import geometry_is_known
from hf_sharp.model.records import RECORD
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.changed import save_changed, still_decided
from hf_sharp.recipe.decisions import Decisions
from hf_sharp.recipe.parser import command_parser, read_flags
from hf_sharp.recipe.recorded import recorded, set_flags
from hf_sharp.recipe.saved import HeadArguments, SavedModel, choose_data, new_folder, open_saved
from hf_sharp.recipe.showing import per_class_field, rows_shown, show_report, write_report
from hf_sharp.reports.card_changes import NOTHING, PREDICTIONS
from hf_sharp.reports.card_training import method_of, treats_classes_alike
from hf_sharp.reports.long_tail_report import long_tail_report

logger = logging.getLogger(__name__)

_LIMITS = ("rare_threshold", "common_threshold")
_EXAMPLE = """hf-sharp adjust outputs/photos/baseline photos/ --output_dir outputs/adjusted
hf-sharp adjust outputs/photos/baseline --cost costs.csv --output_dir costs"""


@dataclass
class AdjustArguments:
    """How to adjust the head."""

    output_dir: str = field(
        metadata={"help": "A new folder for the adjusted model.", "aliases": ["--output"]},
    )
    method: str = field(
        default="logit_adjustment", metadata={"help": f"The correction: {', '.join(METHODS)}.", "choices": [*METHODS]}
    )
    strength: str = field(
        default="auto",
        metadata={"help": "A number >= 0; 1 is the whole correction; auto: the best one on the validation split."},
    )
    cost: str | None = field(
        default=None,
        metadata={
            "help": "Instead of a correction: the costs of mistakes, as a CSV file with a row per true class and a "
            'column per predicted class, or as JSON such as {"fraud": 5}.'
        },
    )
    loss: str | None = field(
        default=None,
        metadata={
            "help": f"predicted_norm: the loss used in training: {', '.join(LOSSES)}. Default: the recorded one, else "
            "cross_entropy."
        },
    )
    loss_gamma: float | None = field(default=None, metadata={"help": "predicted_norm: the gamma of that loss."})
    per_class: str | None = per_class_field()


def main(argv: list[str]) -> None:
    """Adjust a model, save it, and show the result.

    Args:
        argv: the arguments after `hf-sharp adjust`.

    Raises:
        ValueError: the options do not fit each other, the model or the data; or the output folder is not empty.
    """
    parser = command_parser(
        "adjust",
        (AdjustArguments, HeadArguments),
        "Change the head of a trained model without training: a correction for class imbalance, or for what mistakes "
        "cost.",
        _EXAMPLE,
    )
    what, data, names = read_flags(parser, argv)
    rows = rows_shown(what.per_class)
    output = new_folder(what.output_dir)
    if what.cost is not None:
        if unused := sorted({"method", "strength", "loss", "loss_gamma"} & set_flags(argv)):
            raise ValueError(
                f"--{unused[0]} has no effect with --cost, which needs the probabilities of the model as it is. Remove "
                "one of them."
            )
        adjust_for_costs(names.model, what.cost, output, recorded(names.model), data, data.head)
        return
    record = choose_data(what, data, names.model, names.data, argv)
    _warn_of_corrected_model(record, what.method)
    automatic = what.strength == "auto"
    if automatic and not data.has_validation:
        raise ValueError(
            "--strength auto needs validation data: name a split with --validation_split, or hold it out of the "
            "training set with --validation_fraction 0.1 (the model should not have been trained on it). Or give "
            "--strength a number."
        )
    splits = load_splits(data, data.label_column)
    splits.pop("test")  # the strength must not be chosen on it
    saved = open_saved(names.model, splits, data, subset=False)
    of_loss = {"loss": what.loss, "loss_gamma": what.loss_gamma}
    if what.method == "predicted_norm" and what.loss is None and record:
        of_loss = _loss_of_training(record) | {name: value for name, value in of_loss.items() if value is not None}
    options = {"head": data.head} | {name: value for name, value in of_loss.items() if value is not None}
    options["strength"] = _choose(saved, what.method, options) if automatic else _number(what.strength)
    adjusted = adjust_head(saved.model, saved.frequencies.counts, what.method, **options)
    said, measured = getattr(adjusted.config, RECORD), None
    effect = PREDICTIONS if said["strength"] else NOTHING
    decisions = still_decided(names.model, adjusted, effect)
    if "validation" in splits:
        measured = _measure(replace(saved, model=adjusted), decisions, record, output, rows)
    change = {"command": "adjust", "effect": effect, "chosen": automatic} | said
    save_changed(names.model, adjusted, saved.processor, output, change, record, decisions, measured)
    Console().print(f"model    {output}", highlight=False, soft_wrap=True)


def _choose(saved: SavedModel, method: str, options: Mapping[str, Any]) -> float:
    batches, counts = saved.batches("validation"), saved.frequencies.counts
    strength, scores = choose_strength(saved.model, batches, counts, method, **options)
    Console().print(
        f"strength {strength:g}: balanced accuracy {100 * scores[0.0]:.1f} → {100 * scores[strength]:.1f} on "
        f"{len(saved.splits['validation']):,} validation examples"
        + ("; no correction is better than none: the head stays as it is" if strength == 0 else ""),
        highlight=False,
    )
    return strength


def _measure(
    adjusted: SavedModel, decisions: Decisions, record: Mapping[str, Any], output: Path, rows: int | None
) -> dict[str, Any]:
    logits, labels = adjusted.predict("validation")
    probabilities, predictions = (values.numpy() for values in decisions.decide(logits))
    references = labels.numpy()
    limits = {name: record["report"][name] for name in _LIMITS if name in record.get("report", {})}
    frequencies = replace(adjusted.frequencies, **limits)
    costs = costs_of(decisions, record)
    report = long_tail_report(predictions, references, frequencies, probabilities, cost_matrix=costs)
    title = f"after the correction, validation: {len(references):,} examples"
    if rows != 0:
        show_report(Console(), output.name, report, title, rows)
    write_report(output / "validation", output.name, report, predictions, references, probabilities, title)
    return report


def _loss_of_training(record: Mapping[str, Any]) -> dict[str, Any]:
    # The loss whose geometry the head has, as the training recorded it.
    method = method_of(record["options"])
    name = method["loss"]
    if name not in LOSSES.builtin or not geometry_is_known(LOSSES[name]):
        logger.warning("The geometry of the training's loss %r is not known: that of cross_entropy is used.", name)
        return {}
    found: dict[str, Any] = {option: method[option] for option in ("loss", "loss_gamma") if option in method}
    logger.warning("predicted_norm for the loss of the training: %s", ", ".join(f"{k} {v}" for k, v in found.items()))
    return found


def _warn_of_corrected_model(record: Mapping[str, Any], method: str) -> None:
    if record and treats_classes_alike(method_of(record["options"])):
        logger.warning(
            "The model was trained to treat all classes alike, which corrects for the class counts already; %s does it "
            "twice.",
            method,
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"strength {text!r} is neither a number nor 'auto'.") from error
