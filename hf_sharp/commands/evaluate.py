"""`hf-sharp evaluate`: the long-tail report of any checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from hf_sharp.commands.costs import costs_of
from hf_sharp.data.loading import no_split
from hf_sharp.data.views import TTA, check_tta
from hf_sharp.recipe.arguments import load_splits
from hf_sharp.recipe.decisions import read_decisions
from hf_sharp.recipe.parser import command_parser, read_flags
from hf_sharp.recipe.recorded import is_trained_on
from hf_sharp.recipe.saved import LookArguments, choose_data, new_folder, open_saved
from hf_sharp.recipe.showing import REPORT, per_class_field, rows_shown, show_report, write_report
from hf_sharp.recipe.tested import check_card, check_figures, write_tested
from hf_sharp.registry.words import quantity
from hf_sharp.reports.long_tail_report import check_finite, long_tail_report

logger = logging.getLogger(__name__)

_EXAMPLE = """hf-sharp evaluate outputs/photos/logit_adjusted photos/ --per_class
hf-sharp evaluate outputs/adjusted --card"""


@dataclass
class EvaluateArguments:
    """What to evaluate, and where to write the report."""

    split: str = field(default="test", metadata={"help": "The split to evaluate: test or validation."})
    rare_threshold: int = field(default=20, metadata={"help": "Classes with fewer training examples are 'few'."})
    common_threshold: int = field(default=100, metadata={"help": "Classes with more training examples are 'many'."})
    per_class: str | None = per_class_field()
    cost_matrix: str | None = field(
        default=None,
        metadata={
            "help": "Costs of mistakes, for the expected cost: a CSV file with a row per true class and a column per "
            'predicted class, or JSON such as {"fraud": 5}. Default: the costs saved with the model, else those of '
            "the training.",
            "aliases": ["--cost"],
        },
    )
    tta: str = field(
        default="none",
        metadata={"help": f"Images: average the logits of several crops: {', '.join(TTA)}."},
    )
    card: bool = field(
        default=False,
        metadata={"help": "Also write the figures into the model's folder: its card and its all_results.json."},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "A new folder for report.json and the pictures.", "aliases": ["--output"]}
    )


def main(argv: list[str]) -> None:
    """Evaluate a model, and show and save its report.

    Args:
        argv: the arguments after `hf-sharp evaluate`.

    Raises:
        ValueError: the options do not fit each other, the model or the data.
    """
    what_it_does = "The long-tail report of a model: accuracy, and recall of frequent and of rare classes."
    parser = command_parser("evaluate", (EvaluateArguments, LookArguments), what_it_does, _EXAMPLE)
    what, data, names = read_flags(parser, argv)
    check_tta(what.tta)
    rows = rows_shown(what.per_class)
    record = choose_data(what, data, names.model, names.data, argv)
    output = None if what.output_dir is None else new_folder(what.output_dir)
    results = check_card(names.model, what.split, what.tta, data) if what.card else None
    counts = record.get("report", {}).get("class_counts")
    new = counts is not None and is_trained_on(record, data.dataset) is False
    splits = load_splits(data, data.label_column, new=new)
    if "train" not in splits:
        rows_are = quantity(len(splits["test"]), "example is", "examples are")
        logger.warning("%s evaluated: all of %r. The class counts are those of the training", rows_are, data.dataset)
    if what.split not in splits:
        raise ValueError(no_split(what.split, splits))
    saved = open_saved(names.model, splits, data, counts=counts)
    decisions = read_decisions(names.model, saved.model.config)
    if results is not None:
        check_figures(results, decisions, saved.frequencies.counts)
    if decisions.by_cost:
        logger.warning("predictions of least expected cost, with the costs saved with the model")
    costs = what.cost_matrix or costs_of(decisions, record)
    logits, labels = saved.predict(what.split, what.tta)
    check_finite(logits.numpy(), f"the {what.split} split")
    probabilities, predictions = (values.numpy() for values in decisions.decide(logits))
    report = long_tail_report(
        predictions,
        labels.numpy(),
        saved.frequencies.counts,
        probabilities,
        cost_matrix=costs,
        class_names=saved.frequencies.names,
        rare_threshold=what.rare_threshold,
        common_threshold=what.common_threshold,
    )
    name, console = Path(names.model).name, Console()
    title = f"{data.dataset}, split {what.split}: {len(labels):,} examples"
    if TTA[what.tta]:
        title += f" in {len(TTA[what.tta])} views"
        report["tta"] = what.tta
    show_report(console, name, report, title, rows)
    if output is not None:
        write_report(output, name, report, predictions, labels.numpy(), probabilities, title)
        console.print(f"report   {output / REPORT}", highlight=False, soft_wrap=True)
    if results is not None:
        of_pipeline = decisions.temperature == 1 and decisions.class_costs is None
        figures = report, predictions, labels.numpy(), probabilities if of_pipeline else None
        card = write_tested(Path(names.model), results, *figures)
        console.print(f"card     {card}", highlight=False, soft_wrap=True)
