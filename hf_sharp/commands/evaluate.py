"""`hf-sharp evaluate`: the long-tail report of any checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import HfArgumentParser

from hf_sharp.data.views import TTA, check_tta
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.parser import read_flags
from hf_sharp.recipe.saved import SavedArguments, choose_data, new_folder, open_saved
from hf_sharp.reports.long_tail_report import check_finite, long_tail_report
from hf_sharp.reports.plots import plot_recall_by_count
from hf_sharp.reports.table import comparison_table


@dataclass
class EvaluateArguments:
    """What to evaluate, and where to write the report."""

    split: str = field(default="test", metadata={"help": "The split to evaluate: test or validation."})
    label_column: str = field(default="label", metadata={"help": "The column with the labels."})
    rare_threshold: int = field(default=20, metadata={"help": "Few: classes with fewer training examples."})
    common_threshold: int = field(default=100, metadata={"help": "Many: classes with more training examples."})
    batch_size: int = field(default=64, metadata={"help": "Examples per batch."})
    tta: str = field(
        default="none",
        metadata={"help": f"Images: average the logits of several crops: {', '.join(TTA)}."},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "A new folder for report.json and the picture.", "aliases": ["--output"]}
    )


def main(argv: list[str]) -> None:
    """Evaluate a model, and show and save its report.

    Args:
        argv: the words after `hf-sharp evaluate`.

    Raises:
        ValueError: options that do not fit each other, the model or the data.
    """
    classes: Any = (EvaluateArguments, SavedArguments)
    parser = HfArgumentParser(classes, prog="hf-sharp evaluate", allow_abbrev=False)
    parser.add_argument("model", help="The model: a folder, or a name on the Hub.")
    parser.add_argument("data", metavar="DATASET", nargs="?", help="The data; the same as --dataset.")
    what, data, names = read_flags(parser, argv)
    check_tta(what.tta)
    choose_data(what, data, names.model, names.data, argv)
    output = None if what.output_dir is None else new_folder(what.output_dir)
    splits = load_splits(data, what.label_column)
    if what.split not in splits:
        raise ValueError(f"there is no split {what.split!r}; the splits are {', '.join(map(repr, splits))}.")
    saved = open_saved(names.model, splits, data, what.label_column)
    logits, labels = saved.predict(what.split, what.batch_size, what.tta)
    check_finite(logits.numpy(), f"the {what.split} split")
    probabilities = logits.softmax(1).numpy()
    report = long_tail_report(
        probabilities.argmax(1),
        labels.numpy(),
        saved.frequencies.counts,
        probabilities,
        class_names=saved.frequencies.names,
        rare_threshold=what.rare_threshold,
        common_threshold=what.common_threshold,
    )
    name, console = Path(names.model).name, Console()
    title = f"{data.dataset}, split {what.split}: {len(labels):,} examples"
    if TTA[what.tta]:
        title += f" in {len(TTA[what.tta])} views"
        report["tta"] = what.tta
    console.print(comparison_table({name: report}, title))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        plot_recall_by_count({name: report}, output / "recall_by_count.png", title)
        (output / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        console.print(f"report   {output / 'report.json'}", highlight=False, soft_wrap=True)
