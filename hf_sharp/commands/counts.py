"""`hf-sharp counts`: how the classes of a dataset are distributed, and what to begin with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import HfArgumentParser

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.loading import load
from hf_sharp.data.long_tail import long_tail
from hf_sharp.recipe import read_flags
from hf_sharp.reports.plots import plot_counts

SHOWN = 30


@dataclass
class CountsArguments:
    """Which labels."""

    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    train_split: str = field(default="train", metadata={"help": "The split to count."})
    label_column: str = field(default="label", metadata={"help": "The column with the labels."})
    imbalance_factor: float | None = field(
        default=None, metadata={"help": "Make the split long-tailed first: largest over smallest class count."}
    )
    picture: str | None = field(default=None, metadata={"help": "Draw the counts into this file."})


def main(argv: list[str]) -> None:
    """Count, show, suggest.

    Args:
        argv: the words after `hf-sharp counts`.

    Raises:
        ValueError: there is no such split or column.
    """
    classes: Any = CountsArguments
    parser = HfArgumentParser(classes, prog="hf-sharp counts", allow_abbrev=False)
    parser.add_argument("dataset", help="The dataset: as --dataset of the recipes.")
    what, names = read_flags(parser, argv)
    splits = load(names.dataset, what.dataset_config)
    if what.train_split not in splits:
        raise ValueError(f"there is no split {what.train_split!r}; the splits are {', '.join(map(repr, splits))}.")
    data = splits[what.train_split]
    if what.imbalance_factor is not None:
        data = long_tail(data, what.imbalance_factor, label_column=what.label_column)
    frequencies = ClassFrequencies.from_dataset(data, what.label_column)
    console = Console()
    console.print(counts_table(frequencies, f"{names.dataset}, split {what.train_split}"))
    for line in suggestions(frequencies):
        console.print(f"• {line}", highlight=False)
    if what.picture is not None:
        plot_counts(frequencies, what.picture, names.dataset)
        console.print(f"picture  {what.picture}", highlight=False, soft_wrap=True)


def counts_table(frequencies: ClassFrequencies, title: str) -> Table:
    """Show the classes from the most frequent to the rarest, and the groups that reports speak of.

    Args:
        frequencies: the counts.
        title: of the table.

    Returns:
        A `rich` table; of more than 30 classes the middle is left out.
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
    """Say what docs/choosing_a_loss.md suggests for such counts.

    Args:
        frequencies: the counts.

    Returns:
        Some sentences.
    """
    factor, classes = frequencies.imbalance_factor, frequencies.num_classes
    if factor < 1.5:
        return ["nearly balanced: loss cross_entropy, and sharpness sam where training is long enough to overfit"]
    if factor < 20 and classes <= 10:
        loss = "moderate imbalance, few classes: loss class_balanced or weighted are simple and enough"
    else:
        loss = "loss logit_adjusted when every class counts alike"
    lines = [loss, "loss cross_entropy when the test data has the same shares, and every mistake costs the same"]
    if len(frequencies.groups["few"]):
        number = len(frequencies.groups["few"])
        few = f"{number} of the classes {'has' if number == 1 else 'have'} fewer than {frequencies.rare_threshold}"
        lines.append(f"{few} examples: sharpness focal_sam, and compare with --compare_with baseline")
    else:
        lines.append("no class is very rare: sharpness sam costs less than focal_sam; compare with sharpness none")
    if absent := int((frequencies.counts == 0).sum()):
        lines.append(f"{absent} classes have no examples at all: nothing can learn them")
    return lines
