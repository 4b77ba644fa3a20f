"""`hf-sharp predict`: what a model says about new data, row by row."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from accelerate.state import PartialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm.auto import tqdm

from hf_sharp.commands.costs import warn_of_balanced_model
from hf_sharp.data.class_names import shown
from hf_sharp.data.costs import read_costs
from hf_sharp.data.unlabelled import STDIN
from hf_sharp.model.confidence import examples_needed
from hf_sharp.recipe.arguments import TRUST
from hf_sharp.recipe.choosing import Chooser
from hf_sharp.recipe.decisions import Decisions, read_decisions
from hf_sharp.recipe.inputs import Source
from hf_sharp.recipe.outputs import FORMATS, PredictionFile
from hf_sharp.recipe.parser import command_parser, read_flags
from hf_sharp.recipe.predicting import Predictor, choose_device
from hf_sharp.recipe.recorded import recorded, take_over
from hf_sharp.recipe.saved import LookArguments, load_saved, new_folder, takes_images
from hf_sharp.registry.words import quantity
from hf_sharp.reports.results import versions, write_json

logger = logging.getLogger(__name__)

SOME_BROKEN = 3  # exit status if some rows could not be predicted
_NAMED = 5  # failed rows shown in the terminal
_LISTED = 1000  # failed rows listed in summary.json; the predictions file contains all of them
_SHOWN = 20

_EXAMPLE = """hf-sharp predict outputs/photos/logit_adjusted new_photos/ --output_dir labels
hf-sharp predict outputs/mails/logit_adjusted mails.csv --keep id --abstain 0.9
cat mails.txt | hf-sharp predict outputs/mails/logit_adjusted - > labels.csv"""


@dataclass
class PredictArguments:
    """What to predict, how to decide, and where to write it."""

    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "A new folder for predictions.FORMAT and summary.json. Default: write the predictions to standard "
            "output.",
            "aliases": ["--output"],
        },
    )
    format: str = field(default="csv", metadata={"help": "The format of the predictions.", "choices": [*FORMATS]})
    keep: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns of the data to write beside the predictions; `label` is written as data_label, because "
            "the predictions have a column of that name."
        },
    )
    top_k: int = field(default=0, metadata={"help": "Also write the K most likely classes and their probabilities."})
    abstain: str | None = field(
        default=None,
        metadata={
            "help": "Give no label if its probability is below this number; or 'saved': below the threshold that "
            "hf-sharp calibrate saved for its class."
        },
    )
    coverage: float | None = field(
        default=None,
        metadata={
            "help": "Also write a set of classes that contains the true class with this probability, for examples of "
            "every class. Needs a model saved by hf-sharp calibrate."
        },
    )
    pool_rare: bool = field(
        default=False,
        metadata={
            "help": "With --coverage: let classes with too few calibration examples share one limit, instead of being "
            "in every set. The coverage then holds for these classes together."
        },
    )
    cost: str | None = field(
        default=None,
        metadata={
            "help": "Predict the class of least expected cost: a CSV file or JSON, as for hf-sharp adjust --cost. "
            "Default: the costs saved with the model."
        },
    )
    batch_size: int = field(default=64, metadata={"help": "Rows per batch."})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, cuda:1, mps, ... Default: the accelerator, if there is one."}
    )
    split: str | None = field(default=None, metadata={"help": "The split to predict, if the data has several."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    separator: str | None = field(default=None, metadata={"help": "The column separator of CSV files."})
    text_column: str = field(default="text", metadata={"help": "The column with the texts."})
    image_column: str = field(default="image", metadata={"help": "The column with the images, or with their paths."})
    max_length: int = field(default=128, metadata={"help": "Texts are truncated to this many tokens."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Name or folder of the tokenizer, if it is not the model's."}
    )
    picture_range: list[float] | None = field(
        default=None,
        metadata={"help": "Images of more than 8 bits per pixel: the grey values to map to black and white."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": TRUST})


def main(argv: list[str]) -> None:
    """Predict the class of every row, and write the predictions.

    Args:
        argv: the arguments after `hf-sharp predict`.

    Raises:
        ValueError: the options do not fit each other, the model or the data.
        SystemExit: with status 3, if some rows could not be predicted.
    """
    parser = command_parser(
        "predict",
        (PredictArguments,),
        "Predict the class of every image or text. Input options that are not set are those used in training.",
        _EXAMPLE,
        f"{SOME_BROKEN} if some rows could not be predicted; they are reported, and the output says why",
        data="A folder of images; a CSV, TSV, JSON, JSON Lines or Parquet file; a name on the Hub; a text file, or - "
        "for standard input, with a text or an image path on each line.",
    )
    what, names = read_flags(parser, argv)
    record = recorded(names.model)
    options = {name: value for name, value in record.get("options", {}).items() if name != "dataset_config"}
    take_over(record and record | {"options": options}, (what,), argv, None)
    output = None if what.output_dir is None else new_folder(what.output_dir)
    device, images = choose_device(what.device), takes_images(names.model, what.trust_remote_code)
    processes = PartialState()
    if processes.num_processes > 1 and names.data == STDIN:
        raise ValueError("several processes cannot share the standard input: name a file, or start one process.")
    if not processes.is_main_process:
        logging.disable(logging.WARNING)  # only the first process warns
    processes.wait_for_everyone()  # all processes must check that the output folder is new before one writes to it
    inputs = LookArguments(
        max_length=what.max_length,
        tokenizer_name=what.tokenizer_name,
        picture_range=what.picture_range,
        trust_remote_code=what.trust_remote_code,
    )
    model, processor = load_saved(names.model, images, inputs)
    if what.cost is not None and processes.is_main_process:
        warn_of_balanced_model(record)
    chooser = _chooser(what, read_decisions(names.model, model.config))
    column = what.image_column if images else what.text_column
    source = Source(names.data, images, column, what.keep or (), what.split, what.dataset_config, what.separator)
    limits = None if inputs.picture_range is None else (inputs.picture_range[0], inputs.picture_range[1])
    predictor = Predictor(model.to(device).eval(), processor, images, inputs.max_length, limits)
    summary = _run(predictor, chooser, source, what, output)
    if what.coverage is not None:
        summary["classes_with_few_calibration_examples"] = chooser.rare
    summary |= {"model": names.model, "data": names.data, "device": str(device), "options": asdict(what)}
    if not processes.is_main_process:
        return
    _tell(summary, output, what)
    if summary["broken"]:
        raise SystemExit(SOME_BROKEN)


def _chooser(what: PredictArguments, decisions: Decisions) -> Chooser:
    if what.cost is not None:
        if decisions.class_costs is not None:
            raise ValueError("the model's head contains costs already. Name the model without them, or omit --cost.")
        costs = read_costs(what.cost, decisions.classes, "--cost")
        decisions = replace(decisions, cost_matrix=costs.tolist())
    elif decisions.by_cost:
        logger.warning("Predicting the labels of least expected cost, with the costs saved with the model.")
    chooser = Chooser(decisions, what.top_k, what.abstain, what.coverage, what.pool_rare)
    if chooser.rare:
        logger.warning(
            "%s fewer than %d calibration examples (%s), and %s",
            f"{quantity(len(chooser.rare), 'class has', 'classes have')}",
            examples_needed(what.coverage or 0),
            shown(chooser.rare),
            "one limit for them all: the coverage holds for them together, not for each."
            if what.pool_rare
            else "so in every set; --pool_rare gives them one limit.",
        )
    return chooser


def _run(
    predictor: Predictor, chooser: Chooser, source: Source, what: PredictArguments, output: Path | None
) -> dict[str, Any]:
    opened = source.open()
    taken = {"input", "error", *chooser.columns}
    names = [f"data_{name}" if name in taken else name for name in source.keep]
    columns = {"input": "text"} | dict.fromkeys(names, "text") | chooser.columns | {"error": "text"}
    main = PartialState().is_main_process
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    labels, faults, start = Counter[str](), dict[str, str](), perf_counter()
    total = abstained = broken = 0
    try:
        with (
            PredictionFile(output, what.format, columns) if main else nullcontext() as file,
            tqdm(total=opened.total, desc="predicting", unit="row", leave=False, disable=not main) as bar,
        ):
            for rows, logits in predictor.batches(opened.rows, what.batch_size):
                chosen = iter(chooser.choose(logits))
                lines = []
                for row in rows:
                    line: dict[str, Any] = {} if row.fault else next(chosen)
                    lines.append(
                        {"input": row.name, "error": row.fault} | dict(zip(names, row.kept, strict=True)) | line
                    )
                    if row.fault:
                        broken += 1
                        if broken <= _LISTED:
                            faults[row.name] = row.fault
                    elif line["label"] is None:
                        abstained += 1
                    else:
                        labels[line["label"]] += 1
                if file is not None:
                    file.write(lines)
                total += len(rows)
                bar.update(len(rows))
    except BrokenPipeError:  # from `| head`, for example; standard output must not be flushed again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    if total == 0:
        raise ValueError(f"{'the standard input' if source.name == STDIN else repr(source.name)} has no rows.")
    figures = {"rows": total, "predicted": sum(labels.values()), "abstained": abstained, "broken": broken}
    return figures | {
        "labels": dict(labels.most_common()),
        "faults": faults,
        "seconds": round(perf_counter() - start, 3),
        "versions": versions(),
    }


def _tell(summary: Mapping[str, Any], output: Path | None, what: PredictArguments) -> None:
    if summary["broken"]:
        named = [f"{name}: {fault}" for name, fault in [*summary["faults"].items()][:_NAMED]]
        rest = f"; and {summary['broken'] - _NAMED:,} more" if summary["broken"] > _NAMED else ""
        logger.warning(
            "%s of %s could not be predicted: %s%s",
            f"{summary['broken']:,}",
            quantity(summary["rows"], "row", "rows"),
            "; ".join(named),
            rest,
        )
    console = Console(stderr=output is None)
    if output is not None:
        speed = summary["rows"] / max(summary["seconds"], 1e-3)
        console.print(
            f"{quantity(summary['rows'], 'row', 'rows')} in {summary['seconds']:.1f} s, {speed:,.0f} per second",
            highlight=False,
        )
        console.print(_labels_table(summary))
        file = output / "summary.json"
        write_json(file, summary)
        predictions = output / f"predictions.{what.format}"
        console.print(f"predictions  {predictions}\nsummary      {file}", highlight=False, soft_wrap=True)


def _labels_table(summary: Mapping[str, Any]) -> Table:
    table = Table(caption_justify="left")
    table.add_column("label", overflow="fold")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    counts = [*summary["labels"].items()]
    for label, number in counts[:_SHOWN]:
        table.add_row(escape(label), f"{number:,}", f"{100 * number / summary['rows']:.1f} %")
    for what in ("abstained", "broken"):
        if summary[what]:
            table.add_row(
                f"[italic]{what}[/italic]", f"{summary[what]:,}", f"{100 * summary[what] / summary['rows']:.1f} %"
            )
    if len(counts) > _SHOWN:
        table.caption = f"the {_SHOWN} most frequent of {len(counts)} labels"
    return table
