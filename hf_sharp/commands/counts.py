"""`hf-sharp counts`: how the classes of a dataset are distributed, and what to try first. Works without torch."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_sharp.data.checking import Checks, check_splits
from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.label_columns import name_classes
from hf_sharp.data.labels import call_it_label, no_label_column
from hf_sharp.data.listed import parse_lists
from hf_sharp.data.loading import load, no_split, pool_splits
from hf_sharp.data.local_names import near_here
from hf_sharp.data.long_tail import long_tail
from hf_sharp.data.split import drop_repeats
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.flags import Flags
from hf_sharp.registry.words import quantity

logger = logging.getLogger(__name__)

SHOWN = 30


def _flags() -> Flags:
    parser = Flags(
        prog="hf-sharp counts",
        usage="hf-sharp counts DATASET [options]",
        description="Count the examples of every class in a dataset.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="the dataset, as for --dataset of the recipes")
    parser.add_argument("--dataset_config", help="configuration of a dataset on the Hub")
    parser.add_argument("--split_lists", nargs="+", default=[], help="split=file: a text file of `path label` lines")
    parser.add_argument(
        "--train_split", default="train", help="the split to count (default: train); train+test joins two splits"
    )
    parser.add_argument("--unique_column", help="count only the first row of those with the same value in this column")
    parser.add_argument("--label_column", default="label", help="the label column (default: label, or labels)")
    parser.add_argument("--class_names", nargs="+", help="class names, in the order of the class numbers")
    parser.add_argument(
        "--skip_broken",
        nargs="?",
        const="true",
        default="false",
        choices=["true", "false"],
        help="leave out rows without a label",
    )
    parser.add_argument("--separator", help="the column separator of CSV files (default: a comma)")
    parser.add_argument(
        "--imbalance_factor", type=float, help="make the split long-tailed first: largest over smallest class count"
    )
    parser.add_argument("--picture", help="save a plot of the counts in this file")
    return parser


def main(argv: list[str]) -> None:
    """Count the classes, show them, and suggest a loss and a sharpness method.

    Args:
        argv: the arguments after `hf-sharp counts`.

    Raises:
        ValueError: the dataset, split or label column does not exist, or the labels cannot be used as classes.
    """
    flags = _flags().read(argv)
    with stage(f"the dataset {flags.dataset!r} cannot be loaded", near_here(flags.dataset).strip()):
        splits = load(flags.dataset, flags.dataset_config, flags.separator, parse_lists(flags.split_lists))
        splits = pool_splits(splits, flags.train_split)
    if flags.train_split not in splits:
        raise ValueError(f"{no_split(flags.train_split, splits)} Choose with --train_split.")
    data = splits[flags.train_split]
    data = call_it_label(data, flags.label_column)
    if flags.label_column not in data.column_names:
        raise ValueError(no_label_column(flags.label_column, data.column_names, "--label_column"))
    checks = Checks("off", flags.skip_broken == "true")
    data = check_splits({flags.train_split: data}, flags.label_column, checks)[0][flags.train_split]
    if flags.unique_column is not None:
        data = drop_repeats(data, flags.unique_column)
    data = name_classes({flags.train_split: data}, flags.label_column, flags.class_names)[flags.train_split]
    if flags.imbalance_factor is not None:
        data = long_tail(data, flags.imbalance_factor, label_column=flags.label_column)
    frequencies = ClassFrequencies.from_dataset(data, flags.label_column)
    _ask_for_labels(frequencies, flags.label_column)
    console = Console()
    console.print(counts_table(frequencies, f"{flags.dataset}, split {flags.train_split}"))
    for line in suggestions(frequencies):
        console.print(f"• {line}", highlight=False)
    if flags.picture is not None:
        from hf_sharp.reports.plots import plot_counts  # imported here because it needs matplotlib and torch

        with stage(f"the picture {flags.picture!r} cannot be written"):
            plot_counts(frequencies, flags.picture, flags.dataset)
        console.print(f"picture  {flags.picture}", highlight=False, soft_wrap=True)


def _ask_for_labels(frequencies: ClassFrequencies, label_column: str) -> None:
    counts = frequencies.counts
    if len(counts) <= SHOWN or 2 * len(counts) <= counts.sum():
        return
    text = f"column {label_column!r} has {len(counts):,} different values in {counts.sum():,} rows. Is it the column "
    text += "with the labels? Name another one with --label_column."
    if counts.max() == 1:
        raise ValueError(text)
    logger.warning("%s", text)


def counts_table(frequencies: ClassFrequencies, title: str) -> Table:
    """Show the classes from the most frequent to the rarest, and the groups that reports use.

    Args:
        frequencies: the counts.
        title: the table's title.

    Returns:
        A `rich` table; if there are more than 30 classes, those in the middle are left out.
    """
    counts = frequencies.counts
    groups = {int(c): name for name, indices in frequencies.groups.items() for c in indices}
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    table = Table(title=escape(title), title_justify="left", title_style="bold", caption_justify="left")
    for name, justify in (
        ("class", "left"),
        ("examples", "right"),
        ("share", "right"),
        ("group", "left"),
        ("", "left"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    kept = order if len(order) <= SHOWN else [*order[: SHOWN // 2], None, *order[-SHOWN // 2 :]]
    for c in kept:
        if c is None:
            table.add_row("…", "", "", "", f"{len(order) - SHOWN} more")
            continue
        bar = "█" * max(round(30 * counts[c] / counts.max()), int(counts[c] > 0))
        share = f"{100 * frequencies.priors[c]:.2f} %"
        table.add_row(escape(frequencies.name(c)), f"{counts[c]:,}", share, groups[c], bar)
    sizes = ", ".join(f"{name} {len(indices)}" for name, indices in frequencies.groups.items())
    table.caption = (
        f"{counts.sum():,} examples, {len(counts)} classes: {sizes} (few: n < {frequencies.rare_threshold}, many: n > "
        f"{frequencies.common_threshold}); imbalance factor {frequencies.imbalance_factor:.1f}"
    )
    return table


def suggestions(frequencies: ClassFrequencies) -> list[str]:
    """Suggest a loss and a sharpness method for these counts, following docs/choosing_a_loss.md.

    Args:
        frequencies: the counts.

    Returns:
        One sentence per suggestion.
    """
    if frequencies.imbalance_factor < 1.5:
        return [
            "nearly balanced: loss cross_entropy; also try --sharpness sam --ascent momentum, which needs no extra pass"
        ]
    lines = [
        "loss logit_adjusted when every class counts alike; choose its loss_tau on validation data (hf-sharp tune)",
        "loss cross_entropy when the test data has the same shares, and every mistake costs the same",
        "a second pass for sharpness (sam, focal_sam) only where training fits every example",
    ]
    if number := len(frequencies.groups["few"]):
        few = f"{number} of the classes {'has' if number == 1 else 'have'} fewer than {frequencies.rare_threshold}"
        lines.append(
            f"{few} examples: also try --sharpness imbsam --rho 0.15, and --sharpness sam --ascent momentum, which "
            "needs no extra pass (hf-sharp tune tries the latter), and compare on validation data"
        )
    if absent := int((frequencies.counts == 0).sum()):
        classes_have = quantity(absent, "class has", "classes have")
        lines.append(f"{classes_have} no examples at all: nothing can learn {'it' if absent == 1 else 'them'}")
    return lines
