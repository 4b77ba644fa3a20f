"""`hf-sharp calibrate`: temperature, thresholds per class and calibration scores, from validation data."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.special import softmax

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.class_names import shown
from hf_sharp.data.local_paths import shortened
from hf_sharp.model.confidence import (
    TEMPERATURES,
    Threshold,
    calibration_scores,
    class_thresholds,
    examples_needed,
    fit_temperature,
    fold_temperature,
    rare_classes,
)
from hf_sharp.model.posthoc import Model
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.changed import save_changed
from hf_sharp.recipe.decisions import Decisions, read_decisions
from hf_sharp.recipe.parser import command_parser, read_flags
from hf_sharp.recipe.saved import HeadArguments, choose_data, new_folder, open_saved
from hf_sharp.recipe.showing import per_class_field, rows_shown
from hf_sharp.registry.limits import check_number
from hf_sharp.reports.calibration import calibration_bins
from hf_sharp.reports.card_changes import PREDICTIONS, PROBABILITIES, RELIABILITY, threshold_cells
from hf_sharp.reports.card_training import method_of, treats_classes_alike
from hf_sharp.reports.plots import plot_reliability
from hf_sharp.reports.results import write_json

logger = logging.getLogger(__name__)

_IN_CARD = 10  # classes listed in the model card
_COVERAGE = 0.9  # the table and the card report which classes have too few examples for this coverage
_EXAMPLE = "hf-sharp calibrate outputs/photos/logit_adjusted photos/ --output_dir sure"


@dataclass
class CalibrateArguments:
    """How to calibrate."""

    output_dir: str = field(metadata={"help": "A new folder for the calibrated model.", "aliases": ["--output"]})
    precision: float = field(
        default=0.9,
        metadata={"help": "Each class's threshold is the lowest confidence above which this share is right."},
    )
    balanced: bool = field(
        default=False,
        metadata={
            "help": "Choose the temperature so that every class counts alike, as for a model that treats all classes "
            "alike."
        },
    )
    per_class: str | None = per_class_field()


def main(argv: list[str]) -> None:
    """Calibrate a model on validation data, save it, and show the result.

    Args:
        argv: the arguments after `hf-sharp calibrate`.

    Raises:
        ValueError: the options do not fit each other, the model or the data; or the output folder is not empty.
    """
    parser = command_parser(
        "calibrate",
        (CalibrateArguments, HeadArguments),
        "Choose temperature, thresholds and calibration scores on validation data that the model was not trained on, "
        "and save them with the model for hf-sharp predict. The temperature is folded into the head.",
        _EXAMPLE,
    )
    what, data, names = read_flags(parser, argv)
    rows = rows_shown(what.per_class)
    check_number("--precision", what.precision, above=0, most=1, share=True)
    record = choose_data(what, data, names.model, names.data, argv)
    if record and not what.balanced and treats_classes_alike(method_of(record["options"])):
        logger.warning(
            "The model was trained to make up for the class counts: with --balanced, all classes count alike here too, "
            "as on data in which they are equally common."
        )
    output = new_folder(what.output_dir)
    if not data.has_validation:
        raise ValueError(
            "calibration needs validation data: name a split with --validation_split, or hold it out of the training "
            "set with --validation_fraction 0.1 (the model should not have been trained on it)."
        )
    splits = load_splits(data, data.label_column)
    splits.pop("test")  # the test split must not be used to choose anything
    saved = open_saved(names.model, splits, data)
    decisions = read_decisions(names.model, saved.model.config)
    if decisions.class_costs is not None:
        raise ValueError("the head holds costs, so its scores are no probabilities. Calibrate before adjust --cost.")
    logits, labels = (values.numpy() for values in saved.predict("validation"))
    temperature = fit_temperature(logits, labels, _balanced_weights(labels) if what.balanced else None)
    if not TEMPERATURES[0] * 1.01 < temperature < TEMPERATURES[1] / 1.01:
        logger.warning("The temperature is at its limit: nearly every validation example is right, or none is.")
    result, thresholds, decisions = _calibrate(logits, labels, temperature, what.precision, decisions)
    model, decisions = _scaled(saved.model, temperature, decisions, data.head)
    result["options"] = shortened({"model": names.model} | asdict(what) | {"data": asdict(data)})
    change = _change(result, thresholds, saved.frequencies) | {"balanced": what.balanced}
    change["folded"] = model is not saved.model
    if change["folded"] and saved.model.dtype not in (torch.float32, torch.float64):
        change["effect"] = PREDICTIONS  # rounding of the weights may change some predictions
    save_changed(names.model, model, saved.processor, output, change, record, decisions)
    write_json(output / "calibration.json", result)
    title = f"validation, {len(labels):,} examples, temperature {temperature:.2f}"
    plot_reliability(_probabilities(logits, temperature), labels, output / RELIABILITY, title)
    _show(result, thresholds, saved.frequencies, rows, output)


def _calibrate(
    logits: np.ndarray, labels: np.ndarray, temperature: float, precision: float, decisions: Decisions
) -> tuple[dict[str, Any], list[Threshold], Decisions]:
    before, after = _probabilities(logits, decisions.temperature), _probabilities(logits, temperature)
    thresholds, scores = class_thresholds(after, labels, precision), calibration_scores(after, labels)
    decisions = replace(
        decisions,
        precision=precision,
        # Rounded so that borderline examples are accepted: float32 and batch padding change the last digits.
        thresholds=[None if limit is None else math.floor(limit * 1e6) / 1e6 for limit, *_ in thresholds],
        scores=[(np.ceil(of_class * 1e6) / 1e6).tolist() for of_class in scores],
    )
    result = {
        "temperature": temperature,
        "examples": len(labels),
        "before": _figures(before, labels),
        "after": _figures(after, labels),
        "precision": precision,
        "thresholds": [threshold._asdict() for threshold in thresholds],
        "calibration_examples": [len(of_class) for of_class in scores],
        f"in_every_set_of_coverage_{_COVERAGE:g}": [decisions.classes[c] for c in rare_classes(scores, _COVERAGE)],
        "classes": decisions.classes,
    }
    return result, thresholds, decisions


def _scaled(model: Model, temperature: float, decisions: Decisions, head: str | None) -> tuple[Model, Decisions]:
    try:
        folded = fold_temperature(model, temperature, len(decisions.classes), head=head)
        return folded, replace(decisions, temperature=1.0)
    except ValueError as error:
        logger.warning("The temperature is kept beside the model, for hf-sharp predict: %s", error)
        return model, replace(decisions, temperature=temperature)


def _probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits.astype(np.float64) / temperature, axis=1)


def _balanced_weights(labels: np.ndarray) -> np.ndarray:
    counts = np.bincount(labels)
    return 1 / counts[labels]


def _figures(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    of_label = probabilities[np.arange(len(labels)), labels]
    return {
        "calibration_error": calibration_bins(probabilities.argmax(1), labels, probabilities).error,
        "negative_log_likelihood": float(-np.log(of_label.clip(min=np.finfo(float).tiny)).mean()),
        "mean_confidence": float(probabilities.max(1).mean()),
    }


def _show(
    result: Mapping[str, Any],
    thresholds: Sequence[Threshold],
    frequencies: ClassFrequencies,
    rows: int | None,
    output: Path,
) -> None:
    console = Console()
    before, after = result["before"], result["after"]
    console.print(
        f"temperature {result['temperature']:.2f}: calibration error {100 * before['calibration_error']:.1f} → "
        f"{100 * after['calibration_error']:.1f} %, negative log-likelihood {before['negative_log_likelihood']:.3f} → "
        f"{after['negative_log_likelihood']:.3f} on {result['examples']:,} validation examples",
        highlight=False,
    )
    if rows != 0:
        console.print(thresholds_table(thresholds, result["calibration_examples"], frequencies, rows))
    few = result[f"in_every_set_of_coverage_{_COVERAGE:g}"]
    every = f": {shown(few)}" if few else ""
    never = sum(threshold.confidence is None for threshold in thresholds)
    console.print(
        f"thresholds for a precision of {100 * result['precision']:g} %: {len(thresholds) - never} of "
        f"{len(thresholds)} classes reach it\nprediction sets: {len(few)} of {len(thresholds)} classes have fewer than "
        f"{examples_needed(_COVERAGE)} validation examples and are in every set of coverage {_COVERAGE:g}{every}",
        highlight=False,
    )
    console.print(f"figures  {output / 'calibration.json'}\nmodel    {output}", highlight=False, soft_wrap=True)


def thresholds_table(
    thresholds: Sequence[Threshold], examples: Sequence[int], frequencies: ClassFrequencies, rows: int | None
) -> Table:
    """Show the thresholds of the classes, those with the fewest training examples first.

    Args:
        thresholds: K thresholds, one per class.
        examples: (K,) the validation examples of each class.
        frequencies: the class frequencies of the training set.
        rows: how many classes to show; None: all.

    Returns:
        A `rich` table.
    """
    order = np.argsort(frequencies.counts, kind="stable")[:rows]
    table = Table(title="thresholds, the rarest class first", title_justify="left", title_style="bold")
    table.add_column("class", overflow="fold")
    for heading in ("training\nexamples", "validation\nexamples", "threshold", "answered", "right\nin %"):
        table.add_column(heading, justify="right")
    for c in order.tolist():
        cells = threshold_cells(thresholds[c]._asdict())
        table.add_row(escape(frequencies.name(c)), f"{frequencies.counts[c]:,}", f"{examples[c]:,}", *cells)
    if len(order) < len(thresholds):
        table.caption, table.caption_justify = f"the {len(order)} rarest of {len(thresholds):,} classes", "left"
    return table


def _change(
    result: Mapping[str, Any], thresholds: Sequence[Threshold], frequencies: ClassFrequencies
) -> dict[str, Any]:
    rarest = np.argsort(frequencies.counts, kind="stable")[:_IN_CARD].tolist()
    return {
        "command": "calibrate",
        "effect": PROBABILITIES,
        "calibration_error": [result[when]["calibration_error"] for when in ("before", "after")],
        "thresholds": [
            {"class": frequencies.name(c), "examples": result["calibration_examples"][c], **thresholds[c]._asdict()}
            for c in rarest
        ],
        "classes": len(thresholds),
        "needed": examples_needed(_COVERAGE),
        **{name: result[name] for name in ("temperature", "examples", "precision")},
    }
