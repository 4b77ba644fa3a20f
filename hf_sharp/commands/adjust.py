"""`hf-sharp adjust`: fold a correction for class imbalance, or the costs of mistakes, into the head of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from rich.console import Console

from hf_sharp.commands.costs import adjust_for_costs
from hf_sharp.losses import LOSSES
from hf_sharp.model.posthoc import METHODS, RECORD, adjust_head, choose_strength
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.changed import card_with_section, save_changed
from hf_sharp.recipe.parser import command_parser, read_flags
from hf_sharp.recipe.recorded import recorded, set_flags
from hf_sharp.recipe.saved import SavedArguments, SavedModel, choose_data, new_folder, open_saved
from hf_sharp.recipe.showing import per_class_field, rows_shown, show_report, write_report
from hf_sharp.reports.long_tail_report import long_tail_report

logger = logging.getLogger(__name__)

_EXAMPLE = """hf-sharp adjust outputs/photos photos/ --validation_fraction 0.1 \\
           --output_dir outputs/photos_adjusted
         hf-sharp adjust outputs/photos --cost costs.csv --output_dir outputs/photos_costs"""


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
            "help": "Instead of a correction: what mistakes cost, as a CSV file with a row per true class and a column "
            'per predicted class, or as JSON such as {"fraud": 5}.'
        },
    )
    loss: str | None = field(
        default=None, metadata={"help": f"predicted_norm: the loss of the training: {', '.join(LOSSES)}."}
    )
    loss_gamma: float | None = field(default=None, metadata={"help": "predicted_norm: its gamma."})
    label_column: str = field(default="label", metadata={"help": "The column with the labels."})
    per_class: str | None = per_class_field()
    batch_size: int = field(default=64, metadata={"help": "Examples per batch."})
    head: str | None = field(
        default=None, metadata={"help": "Name of the layer that makes the logits, if it is not found automatically."}
    )


def main(argv: list[str]) -> None:
    """Adjust a model, save it, and show the result.

    Args:
        argv: the words after `hf-sharp adjust`.

    Raises:
        ValueError: options that do not fit each other, the model or the data; or an output folder that is not empty.
    """
    parser = command_parser(
        "adjust",
        (AdjustArguments, SavedArguments),
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
        adjust_for_costs(names.model, what.cost, output, recorded(names.model), data, what.head)
        return
    record = choose_data(what, data, names.model, names.data, argv)
    _warn_of_corrected_model(record, what.method)
    automatic = what.strength == "auto"
    if automatic and data.validation_split is None and data.validation_fraction is None:
        raise ValueError(
            "strength 'auto' is chosen on validation data: name it with --validation_split, or hold it out of the "
            "training set with --validation_fraction 0.1 (the model should not have been trained on it). Or give "
            "--strength a number."
        )
    splits = load_splits(data, what.label_column)
    splits.pop("test")  # the choice of the strength must not see it
    saved = open_saved(names.model, splits, data, what.label_column, subset=False)
    options = {name: getattr(what, name) for name in ("loss", "loss_gamma") if getattr(what, name) is not None}
    options["strength"] = _choose(saved, what, options) if automatic else _number(what.strength)
    adjusted = adjust_head(saved.model, saved.frequencies.counts, what.method, head=what.head, **options)
    card = _card(names.model, getattr(adjusted.config, RECORD))
    save_changed(names.model, adjusted, saved.processor, output, card, record)
    if "validation" in splits:
        _show(replace(saved, model=adjusted), what, output, rows)
    Console().print(f"model    {output}", highlight=False, soft_wrap=True)


def _choose(saved: SavedModel, what: AdjustArguments, options: Mapping[str, Any]) -> float:
    batches, counts = saved.batches("validation", what.batch_size), saved.frequencies.counts
    strength, scores = choose_strength(saved.model, batches, counts, what.method, head=what.head, **options)
    Console().print(
        f"strength {strength:g}: balanced accuracy {100 * scores[0.0]:.1f} → {100 * scores[strength]:.1f} on "
        f"{len(saved.splits['validation']):,} validation examples"
        + ("; no correction is better than none: the head stays as it is" if strength == 0 else ""),
        highlight=False,
    )
    return strength


def _show(adjusted: SavedModel, what: AdjustArguments, output: Path, rows: int | None) -> None:
    logits, labels = adjusted.predict("validation", what.batch_size)
    probabilities, references = logits.double().softmax(1).numpy(), labels.numpy()
    predictions = probabilities.argmax(1)
    report = long_tail_report(predictions, references, adjusted.frequencies, probabilities)
    title = f"after the correction, validation: {len(references):,} examples"
    if rows != 0:
        show_report(Console(), output.name, report, title, rows)
    write_report(output / "validation", output.name, report, predictions, references, probabilities, title)


def _warn_of_corrected_model(record: Mapping[str, Any], method: str) -> None:
    loss = str(record.get("options", {}).get("loss", "cross_entropy"))
    if loss in ("cross_entropy", "focal", "large_margin") and "reweight_after" not in record.get("options", {}):
        return
    if record:
        logger.warning(
            "The model was trained with loss=%s, which corrects for the class counts already; %s does it twice.",
            loss,
            method,
        )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"strength {text!r} is neither a number nor 'auto'.") from error


def _card(model: str, record: dict) -> ModelCard:
    options = ", ".join(f"{name} {value}" for name, value in record.items() if name not in ("method", "class_counts"))
    if record["strength"] == 0:
        said = f"`hf-sharp adjust` found no strength of {record['method']} above 0 better: the head is unchanged."
    else:
        said = (
            f"The classifier head was corrected for class imbalance with `hf-sharp adjust`: {record['method']} "
            f"({options}), for class counts from {max(record['class_counts']):,} to {min(record['class_counts'])}. "
            "Figures above are those of the model before the correction."
        )
    return card_with_section(model, "Adjusted after training", said, "adjusted")
