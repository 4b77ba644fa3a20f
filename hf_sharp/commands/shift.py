"""`hf-sharp shift`: the class shares of new, unlabelled data, and whether they are still those of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_sharp.data.checking import Checks, check_splits
from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import without_labels
from hf_sharp.data.unlabelled import load_unlabelled
from hf_sharp.model.label_shift import ShiftEstimate, estimate_shares, fold_shares
from hf_sharp.model.posthoc import check_unadjusted
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.changed import save_changed
from hf_sharp.recipe.parser import command_parser, read_flags
from hf_sharp.recipe.recorded import recorded, set_flags
from hf_sharp.recipe.saved import HeadArguments, SavedModel, choose_data, new_folder, open_saved
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.words import quantity
from hf_sharp.reports.card_changes import NOTHING, PREDICTIONS, SHARES
from hf_sharp.reports.plots.shift import plot_shares
from hf_sharp.reports.results import write_json

THRESHOLD_PASSED = 3  # the exit status if the shares moved by more than the threshold
_SHOWN = 12  # classes shown in the table
_NEW = "new"  # the name of the split with the new data

_EXAMPLE = "hf-sharp shift outputs/photos/logit_adjusted new_photos/ --threshold 0.1"


@dataclass
class ShiftArguments:
    """Which data to compare, and what to do about it."""

    split: str = field(
        default="validation",
        metadata={
            "help": "The labelled split to calibrate the model on: validation, or test if no validation split was held "
            "out. The model should not have been trained on it.",
            "choices": ["validation", "test"],
        },
    )
    new_split: str | None = field(default=None, metadata={"help": "The split of the new data, if it has several."})
    new_config: str | None = field(default=None, metadata={"help": "Configuration of new data on the Hub."})
    new_separator: str | None = field(
        default=None, metadata={"help": "The column separator of new CSV files. Default: that of the training data."}
    )
    threshold: float | None = field(
        default=None,
        metadata={
            "help": "Exit with status 3 if more than this share of the examples, in (0, 1), moved to another class, "
            "and chance does not explain it."
        },
    )
    bootstrap: int = field(default=200, metadata={"help": "Bootstrap draws for intervals and test, at least 20."})
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap draws."})
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "A new folder for shift.json, shares.png and the model with the new shares.",
            "aliases": ["--output"],
        },
    )


def main(argv: list[str]) -> None:
    """Estimate the class shares of new data, show them, and save what `--output_dir` asks for.

    Args:
        argv: the arguments after `hf-sharp shift`.

    Raises:
        ValueError: the options do not fit each other, the model or the data.
        SystemExit: with status 3, if the shares moved by more than the threshold.
    """
    parser = command_parser(
        "shift",
        (ShiftArguments, HeadArguments),
        "Estimate the class shares of new, unlabelled data, test whether they differ from those of training, and fold "
        "them into the model's head.",
        _EXAMPLE,
        f"{THRESHOLD_PASSED} if the shares moved by more than --threshold (in cron: hf-sharp shift ... --threshold "
        f"0.1; [ $? -eq {THRESHOLD_PASSED} ] && retrain)",
        data="Unlabelled data: a folder of pictures, a .txt, CSV, JSON or Parquet file, ...",
    )
    what, data, names = read_flags(parser, argv)
    _check(what, names.model, argv)
    choose_data(what, data, names.model, None, argv)
    output = None if what.output_dir is None else new_folder(what.output_dir)
    saved = _open(what, data, names)
    if output is not None:
        check_unadjusted(saved.model)
    logits, labels = saved.predict(what.split)
    new_logits, _ = saved.predict(_NEW)
    estimate = estimate_shares(
        logits.numpy(),
        labels.numpy(),
        new_logits.numpy(),
        saved.frequencies.counts,
        bootstrap=what.bootstrap,
        seed=what.seed,
    )
    passed = what.threshold is not None and estimate.moved() and estimate.distance > what.threshold
    console, said = Console(), verdict(estimate, saved.frequencies)
    console.print(shares_table(estimate, saved.frequencies, f"{names.data}: {len(new_logits):,} examples"))
    for line in said:
        console.print(escape(line), highlight=False)
    if output is not None:
        result = summary(estimate, saved.frequencies) | {"threshold": what.threshold, "passed": passed, "said": said}
        _save(output, result, estimate, saved, data.head)
        for file in ("shift.json", SHARES):
            console.print(f"{output / file}", highlight=False, soft_wrap=True)
        console.print(f"model    {output}", highlight=False, soft_wrap=True)
    if passed:
        console.print(f"the shares moved by more than {what.threshold:g}: exit status {THRESHOLD_PASSED}")
        raise SystemExit(THRESHOLD_PASSED)


def _check(what: ShiftArguments, model: str, argv: list[str]) -> None:
    check_number("--threshold", what.threshold, above=0, below=1, share=True, optional=True)
    check_number("--bootstrap", what.bootstrap, least=20, whole=True)
    if not recorded(model) and "dataset" not in set_flags(argv):
        raise ValueError(
            f"the model {model!r} does not say what it was trained on: name the labelled data with --dataset, as in "
            "the training."
        )


def _open(what: ShiftArguments, data: HeadArguments, names: Any) -> SavedModel:
    # Load the model, the labelled splits and the new data.
    if what.split == "validation" and not data.has_validation:
        raise ValueError(
            "calibration needs labelled examples that the model was not trained on: name them with "
            "--validation_split, or use the test split: --split test."
        )
    splits = load_splits(data, data.label_column)
    images = isinstance(splits["train"].features.get(data.image_column), datasets.Image)
    column = data.image_column if images else data.text_column
    separator = what.new_separator or data.separator
    with stage(f"the new data {names.data!r} cannot be loaded"):
        rows = load_unlabelled(names.data, column, what.new_config, separator, what.new_split)
    if images and not isinstance(rows.features[column], datasets.Image):
        raise ValueError(f"column {column!r} of {names.data!r} holds no pictures, and the model takes pictures.")
    checks = Checks(data.check_data, data.skip_broken)
    (rows,) = check_splits({names.data: rows}, "", checks, image_column=column, text_column=column)[0].values()
    classes = splits["train"].features[data.label_column].names
    kept = {split: splits[split] for split in ("train", what.split)}
    kept[_NEW] = without_labels(rows, data.label_column, classes)
    return open_saved(names.model, datasets.DatasetDict(kept), data, subset=False)


def verdict(estimate: ShiftEstimate, frequencies: ClassFrequencies) -> list[str]:
    """State in words which class shares moved, and how far to trust the estimate.

    Args:
        estimate: the estimated shares.
        frequencies: the class frequencies of the training set, with the class names.

    Returns:
        One to four lines.
    """
    chance = f"p = {estimate.p_value:.3f}"
    if not estimate.moved():
        lines = [f"no change of the class shares beyond chance ({chance})."]
    else:
        lines = [f"the class shares moved: {100 * estimate.distance:.1f} % of the examples changed class ({chance})."]
        changes, order = estimate.changes(), np.argsort(-np.abs(estimate.shares - estimate.training), kind="stable")
        for word in ("grew", "shrank"):
            if indices := [c for c in order if changes[c] == word]:
                parts = [
                    f"{frequencies.name(c)} ({100 * estimate.training[c]:.1f} → {100 * estimate.shares[c]:.1f} %)"
                    for c in indices[:5]
                ]
                more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
                lines.append(f"{word}: {', '.join(parts)}{more}.")
    if not estimate.agrees:
        lines.append(
            "the check by predicted labels alone (BBSE) disagrees: more than the shares may have changed. Label a "
            "sample."
        )
    if missing := int((~estimate.estimated).sum()):
        have = quantity(missing, "class has", "classes have")
        lines.append(f"{have} no labelled example to calibrate on: the shares of training are kept for them.")
    return lines


def summary(estimate: ShiftEstimate, frequencies: ClassFrequencies) -> dict[str, Any]:
    """Convert the estimate to JSON values.

    Args:
        estimate: the estimated shares.
        frequencies: the class frequencies of the training set, with the class names.

    Returns:
        `classes` (one dict per class), `distance`, `p_value`, `moved`, `agrees`, `examples`, `temperature`.
    """
    changes = estimate.changes()
    classes = [
        {
            "name": frequencies.name(c),
            "training": float(estimate.training[c]),
            "share": float(estimate.shares[c]),
            "interval": [float(estimate.low[c]), float(estimate.high[c])],
            "bbse": float(estimate.check[c]),
            "estimated": bool(estimate.estimated[c]),
            "change": changes[c],
        }
        for c in range(len(estimate.shares))
    ]
    return {
        "examples": estimate.examples,
        "distance": estimate.distance,
        "p_value": estimate.p_value,
        "moved": estimate.moved(),
        "agrees": estimate.agrees,
        "temperature": 1 / estimate.calibration.scale,
        "classes": classes,
    }


def shares_table(estimate: ShiftEstimate, frequencies: ClassFrequencies, title: str) -> Table:
    """Show the shares of the classes that changed most, in percent.

    Args:
        estimate: the estimated shares.
        frequencies: the class frequencies of the training set, with the class names.
        title: the table's title.

    Returns:
        A `rich` table with at most 12 classes.
    """
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("class", overflow="fold")
    for name in ("training %", "new data %", "95 %", "BBSE %"):
        table.add_column(name, justify="right")
    table.add_column("change")
    changes = estimate.changes()
    order = np.argsort(-np.abs(estimate.shares - estimate.training), kind="stable")
    shown = [c for c in range(len(order)) if c in set(order[:_SHOWN].tolist())]
    for c in shown:
        values = (estimate.training[c], estimate.shares[c], estimate.low[c], estimate.high[c], estimate.check[c])
        training, share, low, high, check = (f"{100 * value:.1f}" for value in values)
        figures = (share, f"{low} – {high}", check) if estimate.estimated[c] else ("–", "–", "–")
        table.add_row(escape(frequencies.name(c)), training, *figures, changes[c] or "")
    if len(order) > _SHOWN:
        table.caption = f"the {_SHOWN} of {len(order)} classes that changed most"
    return table


def _save(output: Path, result: dict[str, Any], estimate: ShiftEstimate, saved: SavedModel, head: str | None) -> None:
    folded, names = fold_shares(saved.model, estimate, head=head), saved.frequencies.labels
    change = {"command": "shift", "effect": PREDICTIONS if estimate.moved() else NOTHING}
    change |= {name: result[name] for name in ("examples", "said")}
    save_changed(saved.name, folded, saved.processor, output, change, recorded(saved.name))
    with stage(f"the estimate cannot be saved in {str(output)!r}"):
        write_json(output / "shift.json", result)
        title = f"class shares of {estimate.examples:,} new examples"
        found = estimate.training, estimate.shares, estimate.low, estimate.high, estimate.changes(), estimate.examples
        plot_shares(*found, names, output / SHARES, title)
