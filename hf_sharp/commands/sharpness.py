"""`hf-sharp sharpness`: how flat the loss is around a trained model, over all classes and per group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_sharp.data.labels import read_labels
from hf_sharp.data.loading import no_split
from hf_sharp.model.curvature import measure_curvature
from hf_sharp.model.group_batches import GROUPS, stratified_sample
from hf_sharp.option_checks import check_least
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.parser import command_parser, read_flags
from hf_sharp.recipe.saved import LookArguments, SavedModel, choose_data, new_folder, open_saved
from hf_sharp.registry.limits import check_number
from hf_sharp.reports.plots import plot_loss_along
from hf_sharp.reports.results import machine_class, write_json

_EXAMPLE = "hf-sharp sharpness outputs/photos/sam photos/ --output_dir flat"
_AT_LEAST = {
    "examples": 1,
    "hessian_examples": 1,
    "eigenvalues": 1,
    "probes": 2,
    "directions": 2,
}


@dataclass
class SharpnessArguments:
    """What to measure, and on which examples."""

    output_dir: str = field(
        metadata={"help": "A new folder for sharpness.json and sharpness.png.", "aliases": ["--output"]}
    )
    compare_with: str | None = field(default=None, metadata={"help": "Another model to compare with."})
    split: str = field(
        default="train",
        metadata={
            "help": "The split to measure on: train, test or validation.",
            "choices": ["train", "test", "validation"],
        },
    )
    examples: int = field(default=1000, metadata={"help": "Number of examples, drawn stratified by class."})
    hessian_examples: int = field(
        default=100, metadata={"help": "Number of these examples for the eigenvalues and traces, which are expensive."}
    )
    rho: float = field(default=0.05, metadata={"help": "Radius within which sharpness is measured."})
    eigenvalues: int = field(default=1, metadata={"help": "Number of eigenvalues to compute, the largest first."})
    tolerance: float = field(default=0.05, metadata={"help": "Relative tolerance of the eigenvalues."})
    probes: int = field(default=8, metadata={"help": "Number of random vectors for the trace."})
    directions: int = field(default=4, metadata={"help": "Number of random directions for the average sharpness."})
    rare_threshold: int = field(default=20, metadata={"help": "Classes with fewer training examples are 'few'."})
    common_threshold: int = field(default=100, metadata={"help": "Classes with more training examples are 'many'."})
    seed: int = field(default=0, metadata={"help": "Seed of the sample and of the random directions."})


def main(argv: list[str]) -> dict[str, Any]:
    """Measure the sharpness, and print, plot and save it.

    Args:
        argv: the arguments after `hf-sharp sharpness`.

    Returns:
        The content of sharpness.json.

    Raises:
        ValueError: the options do not fit each other, the models or the data; or the output folder is not empty.
    """
    parser = command_parser(
        "sharpness",
        (SharpnessArguments, LookArguments),
        "How flat the loss is around a trained model: sharpness, and eigenvalues and trace of the Hessian, per group "
        "of classes.",
        _EXAMPLE,
    )
    parser.set_defaults(batch_size=32)  # small, because second derivatives need much memory
    what, data, names = read_flags(parser, argv)
    check_least(vars(what), _AT_LEAST)
    check_number("--rho", what.rho, above=0)
    check_number("--tolerance", what.tolerance, least=0, below=1)
    choose_data(what, data, names.model, names.data, argv)
    output = new_folder(what.output_dir)
    splits = load_splits(data, data.label_column)
    if what.split not in splits:
        raise ValueError(f"{no_split(what.split, splits)} Name it with --{what.split}_split.")
    models = {}
    for label, name in _labels(names.model, what.compare_with).items():
        models[label] = _measured(open_saved(name, splits, data), what)
    console = Console()
    console.print(sharpness_table(models))
    result = {
        "models": models,
        "options": {"model": names.model} | asdict(what) | {"data": asdict(data)},
        "machine": machine_class(),
        "versions": {name: version(name) for name in ("hf-sharp", "torch", "transformers", "scipy")},
    }
    output.mkdir(parents=True, exist_ok=True)
    file = output / "sharpness.json"
    write_json(file, result)
    picture = output / "sharpness.png"
    plot_loss_along(models, picture, f"{Path(data.dataset).name}, {what.split}, ρ = {what.rho:g}")
    console.print(f"figures  {file}\npicture  {picture}", highlight=False, soft_wrap=True)
    return result


def sharpness_table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """Make a table of the sharpness of one or more models, with a row per group and model.

    Args:
        reports: model name to the result of `measure_curvature`, all on the same examples.

    Returns:
        A `rich` table. If there are several models, the lowest figure of a group is bold if it is lower by more than
        the standard errors.
    """
    first = next(iter(reports.values()))
    title = f"sharpness at ρ = {first['rho']:g}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("classes (examples)", overflow="fold")
    for head in ("loss", "worst\ncase", "average", "λ max", "trace"):
        table.add_column(head, justify="right", no_wrap=True)
    for group in GROUPS:
        label = f"{group} ({first[group]['examples'] if first[group] else 0:,})"
        if len(reports) > 1:
            table.add_row(label)
        for i, model in enumerate(reports):
            cells = _cells([report[group] for report in reports.values()], i)
            table.add_row(
                f"  {escape(model)}" if len(reports) > 1 else label, *cells, end_section=i + 1 == len(reports)
            )
    table.caption = (
        f"Lower is flatter{'; bold: the lowest by more than the errors' if len(reports) > 1 else ''}. many n > "
        f"{first['common_threshold']}, few n < {first['rare_threshold']} training examples. λ max and trace: top "
        f"eigenvalue and trace of the Hessian, on {first['all']['hessian_examples']:,} of the examples."
    )
    table.caption_justify = "left"
    return table


def _cells(figures: list[Mapping[str, Any] | None], i: int) -> list[str]:
    mine = figures[i]
    if mine is None:
        return ["–"] * 5
    cells = []
    for name, error in (
        ("loss", None),
        ("worst_case", None),
        ("average", "average_error"),
        ("top_eigenvalues", None),
        ("trace", "trace_error"),
    ):
        values = [_first(row[name]) for row in figures if row is not None]
        value = _first(mine[name])
        if value is None:
            cells.append("–")
            continue
        spreads = [float(row[error] or 0) if error else 0.0 for row in figures if row is not None]
        text = _short(value, 3) + (f" ± {_short(mine[error], 1)}" if name == "trace" and error and mine[error] else "")
        others = [figure for j, figure in enumerate(values) if j != i and figure is not None]
        lowest = others and value < min(others) - math.hypot(*spreads)
        cells.append(f"[bold]{text}[/bold]" if lowest else text)
    return cells


def _short(value: float, digits: int) -> str:
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    return np.format_float_positional(float(f"{value:.{digits}g}"), trim="-")


def _first(value: Any) -> float | None:
    return value[0] if isinstance(value, list) else value


def _labels(*models: str | None) -> dict[str, str]:
    named = [model for model in models if model is not None]
    short = [Path(model).name for model in named]
    labels = short if len(set(short)) == len(short) else named
    if len(set(labels)) < len(labels):
        raise ValueError(f"the model would be compared with itself: {named[0]!r}.")
    return dict(zip(labels, named, strict=True))


def _measured(saved: SavedModel, what: SharpnessArguments) -> dict[str, Any]:
    frequencies = replace(saved.frequencies, rare_threshold=what.rare_threshold, common_threshold=what.common_threshold)
    split = saved.splits[what.split]
    labels = read_labels(split, saved.data.label_column)
    rows = stratified_sample(labels, what.examples, what.seed)
    rows = rows[np.argsort(frequencies.group_of[labels[rows]], kind="stable")]  # batches then mostly hold one group
    chosen = replace(saved, splits=datasets.DatasetDict({what.split: split.select(rows)}))
    return measure_curvature(
        saved.model.float(),
        chosen.batches(what.split),
        frequencies,
        rho=what.rho,
        eigenvalues=what.eigenvalues,
        tolerance=what.tolerance,
        probes=what.probes,
        directions=what.directions,
        hessian_examples=what.hessian_examples,
        seed=what.seed,
        progress=Path(saved.name).name,
    )
