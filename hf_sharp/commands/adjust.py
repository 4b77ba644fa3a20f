"""`hf-sharp adjust`: fold a correction for class imbalance into the head of a trained model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from rich.console import Console
from transformers import HfArgumentParser

from hf_sharp.losses import LOSSES
from hf_sharp.model.posthoc import METHODS, RECORD, adjust_head, choose_strength
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.parser import read_flags
from hf_sharp.recipe.saved import LookArguments, choose_data, new_folder, open_saved

logger = logging.getLogger(__name__)


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
    loss: str | None = field(
        default=None, metadata={"help": f"predicted_norm: the loss of the training: {', '.join(LOSSES)}."}
    )
    loss_gamma: float | None = field(default=None, metadata={"help": "predicted_norm: its gamma."})
    label_column: str = field(default="label", metadata={"help": "The column with the labels."})
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
    classes: Any = (AdjustArguments, LookArguments)
    parser = HfArgumentParser(classes, prog="hf-sharp adjust", allow_abbrev=False)
    parser.add_argument("model", help="The model: a folder, or a name on the Hub.")
    parser.add_argument("data", metavar="DATASET", nargs="?", help="The data; the same as --dataset.")
    what, data, names = read_flags(parser, argv)
    record = choose_data(what, data, names.model, names.data, argv)
    _warn_of_corrected_model(record, what.method)
    output = new_folder(what.output_dir)
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
    counts, console = saved.frequencies.counts, Console()
    if automatic:
        batches = saved.batches("validation", what.batch_size)
        options["strength"], scores = choose_strength(
            saved.model, batches, counts, what.method, head=what.head, **options
        )
        best, before = scores[options["strength"]], scores[0.0]
        console.print(
            f"strength {options['strength']:g}: balanced accuracy {100 * before:.1f} → {100 * best:.1f} on "
            f"{len(splits['validation']):,} validation examples"
            + ("; no correction is better than none: the head stays as it is" if options["strength"] == 0 else ""),
            highlight=False,
        )
    else:
        options["strength"] = _number(what.strength)
    adjusted = adjust_head(saved.model, counts, what.method, head=what.head, **options)
    with stage(f"the adjusted model cannot be saved in {str(output)!r}"):
        adjusted.save_pretrained(output)
        saved.processor.save_pretrained(output)
        _card(names.model, getattr(adjusted.config, RECORD)).save(output / "README.md")
    console.print(f"model    {output}", highlight=False, soft_wrap=True)


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


def append_to_card(model: str, heading: str, said: str) -> ModelCard:
    """Add a section to the card of a model.

    Args:
        model: the model's folder or Hub name.
        heading: the section's heading.
        said: its text.

    Returns:
        The card; a short one where the model has none.
    """
    try:
        card = ModelCard.load(Path(model) / "README.md" if Path(model).is_dir() else model)
    except (OSError, ValueError):  # no card or no network: write a short one
        card = ModelCard(f"---\nlibrary_name: transformers\n---\n\n# {Path(model).name}, adjusted\n")
    card.text = f"{card.text.rstrip()}\n\n## {heading}\n\n{said}\n"  # an empty line ends HTML
    return card


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
    return append_to_card(model, "Adjusted after training", said)
