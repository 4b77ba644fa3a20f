"""The parts of a model card on evaluation: tables of results, classes and confusions, and the limitations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.registry.words import quantity
from hf_sharp.reports.evaluation_pictures import PICTURES
from hf_sharp.reports.figures import (
    cost_per_example,
    group_labels,
    half_width,
    half_widths,
    is_finite_number,
    percent,
    without_examples,
)
from hf_sharp.reports.markdown import code, escaped
from hf_sharp.reports.pairs import paired

_FOLDED_ABOVE = 20  # the table of classes is folded if there are more classes
_FEW_TEST_EXAMPLES = 20
_NAMED_CLASSES = 10  # classes named in a limitation; the table of classes has all of them
_OVERPREDICTED = 1.1  # the ratio of predictions to occurrences from which over-prediction is mentioned


def evaluation_section(
    report: Mapping[str, Any],
    plain: Mapping[str, Any] | None,
    frequencies: ClassFrequencies,
    picture: str | None,
    pictures: Sequence[str] = (),
    over_seeds: Mapping[str, Any] | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Collect the template's values for the evaluation.

    Args:
        report: the long-tail report.
        plain: the report of plain training, or None.
        frequencies: the class frequencies of the training set.
        picture: the file name of the plot of recall against class count, or None.
        pictures: the file names of further plots, from `PICTURES`.
        over_seeds: the same figures for several seeds, or None (see `build_card`).
        split: the name of the split that the report is on.

    Returns:
        Variable in the template to value.
    """
    width = half_widths(report, frequencies).get("accuracy")
    return {
        "results": results_table(report, plain, frequencies, over_seeds),
        "split": split,
        "seeds": len(over_seeds["seeds"]) if over_seeds else 0,
        "calibration": percent(report.get("calibration_error"), width),
        "cost": cost_per_example(report),
        "rare": frequencies.rare_threshold,
        "common": frequencies.common_threshold,
        "left_out": len(without_examples(report)),
        "num_classes": frequencies.num_classes,
        "pictures": [(PICTURES[name], file) for file in pictures if (name := Path(file).name) in PICTURES],
        "picture": quote(picture) if picture and "per_class_recall" in report else None,
        "classes": class_table(report, frequencies, split),
        "folded": frequencies.num_classes > _FOLDED_ABOVE,
        "confusions": confusions_table(report),
    }


def test_time_augmentation(record: Mapping[str, Any] | None) -> str | None:
    """Say how many views of each image the figures use, and give the figures for one view.

    Args:
        record: `tta` of the results, or None.

    Returns:
        Markdown, or None if there was one view.
    """
    if not record:
        return None
    one = record["one_view"]
    return (
        f"The figures are for the mean of the logits of {record['views']} views of each image "
        f"({code(record['name'])}). With one view, as `pipeline()` has it, the accuracy is "
        f"{percent(one['accuracy'], None)} % and the balanced accuracy {percent(one['balanced_accuracy'], None)} %."
    )


def results_table(
    report: Mapping[str, Any],
    plain: Mapping[str, Any] | None,
    frequencies: ClassFrequencies,
    over_seeds: Mapping[str, Any] | None = None,
) -> list[list[str]]:
    """Make the table of results of this model and of plain training, in percent with 95 % intervals.

    Args:
        report: the long-tail report.
        plain: the report of plain training, or None.
        frequencies: the class frequencies of the training set.
        over_seeds: the same figures for several seeds, or None.

    Returns:
        The heading and the rows; empty if the weights were not evaluated.
    """
    labels = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
    labels |= {f"{group}_accuracy": label for group, label in group_labels(frequencies, report).items()}
    labels |= {"worst_class_recall": "worst class", "macro_f1": "macro F1"}
    reports = [report, plain] if plain else [report]
    widths = [half_widths(column, frequencies) for column in reports]
    heading = ["in %", "this model", *(["plain training"] if plain else [])]
    if over_seeds:
        heading += [f"{len(over_seeds['seeds'])} seeds", *(["gain"] if "plain" in over_seeds else [])]
    rows = [
        [
            label,
            *(_result(column, metric, width) for column, width in zip(reports, widths, strict=True)),
            *(_over_seeds(over_seeds, metric) if over_seeds else ()),
        ]
        for metric, label in labels.items()
        if any(metric in column for column in reports)
    ]
    return [heading, *rows] if rows else []


def _over_seeds(over_seeds: Mapping[str, Any], metric: str) -> list[str]:
    values = over_seeds["metrics"].get(metric)
    if values is None:
        return ["–"] * (2 if "plain" in over_seeds else 1)
    cells = [f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values):.1f}"]
    if "plain" in over_seeds:
        gain = paired(over_seeds["plain"][metric], values)
        interval = cast(float, gain["interval"])  # there are two seeds or more
        cells.append(f"{100 * gain['difference']:+.1f} ± {100 * interval:.1f}")
    return cells


def _result(report: Mapping[str, Any], metric: str, widths: Mapping[str, float]) -> str:
    if metric == "worst_class_recall":
        return _worst_class(report) or "–"
    if metric == "macro_f1":  # it has no interval, so it is rounded like the recalls that it depends on
        return percent(report.get(metric), widths.get("balanced_accuracy")) or "–"
    return percent(report.get(metric), widths.get(metric), interval=True) or "–"


def _worst_class(report: Mapping[str, Any]) -> str | None:
    recall, worst = report.get("per_class_recall", []), report.get("worst_class_recall")
    width = half_width([worst], [report["per_class_support"][recall.index(worst)]]) if worst in recall else None
    cell = percent(worst, width)
    others = f" and {quantity(recall.count(worst) - 1, 'other', 'others')}" if recall.count(worst) > 1 else ""
    return f"{cell} ({escaped(report['worst_class'])}{others})" if cell else None


def class_table(report: Mapping[str, Any], frequencies: ClassFrequencies, split: str = "test") -> list[list[str]]:
    """Make the table of classes, the most frequent first.

    Args:
        report: the long-tail report.
        frequencies: the class frequencies of the training set.
        split: the name of the split that the report is on.

    Returns:
        The heading and a row per class.
    """
    headings = {
        "per_class_support": f"{split} examples",
        "per_class_recall": "recall in %",
        "per_class_precision": "precision in %",
    }
    columns = [column for column in headings if column in report]
    table = [["class", "training examples", "group", *(headings[column] for column in columns)]]
    for i in sorted(range(frequencies.num_classes), key=lambda i: (-frequencies.counts[i], i)):
        cells = [_class_figure(report, column, i) for column in columns]
        table.append([escaped(frequencies.name(i)), f"{frequencies.counts[i]:,}", frequencies.group_of[i], *cells])
    return table


def _class_figure(report: Mapping[str, Any], column: str, index: int) -> str:
    value, support = report[column][index], report["per_class_support"][index]
    return f"{support:,}" if column == "per_class_support" else percent(value, half_width([value], [support])) or "–"


def confusions_table(report: Mapping[str, Any]) -> list[list[str]]:
    """Make the table of the five most frequent confusions; empty if there are none."""
    rows = [[escaped(c["true"]), escaped(c["predicted"]), f"{c['count']:,}"] for c in report.get("confusions", ())[:5]]
    return [["true class", "predicted class", "times"], *rows] if rows else []


def limitations(
    report: Mapping[str, Any],
    frequencies: ClassFrequencies,
    *,
    balanced: str | None,
    seed: Any,
    seeds: int = 0,
    split: str = "test",
) -> list[str]:
    """Describe the limitations of the model, as far as the figures support them.

    Args:
        report: the long-tail report.
        frequencies: the class frequencies of the training set.
        balanced: why the probabilities do not fit data like the training set, such as "It was trained to treat all
            classes alike"; None if they do.
        seed: the seed of the run.
        seeds: the number of seeds whose results are shown in addition to this run's, if any.
        split: the name of the split that the report is on.

    Returns:
        Sentences in Markdown.
    """
    names = frequencies.labels
    sentences = [*_weak_classes(report, names), *_unknown_classes(report, names, frequencies, split)]
    widths = half_widths(report, frequencies)
    many, few = (report.get(f"{group}_accuracy") for group in ("many", "few"))
    if is_finite_number(many) and is_finite_number(few):
        gap_width = math.hypot(*(widths.get(f"{group}_accuracy", 0.0) for group in ("many", "few")))
        if many - few > gap_width:  # type: ignore[operator]
            shown = [percent(report[f"{group}_accuracy"], widths.get(f"{group}_accuracy")) for group in ("few", "many")]
            sentences.append(
                f"The mean recall of the few classes is {shown[0]} %, that of the many classes {shown[1]} %."
            )
    if balanced:
        sentences.append(
            f"{balanced}, so its probabilities do not reflect how common each class is in practice."
            + _overprediction(report, frequencies, split)
        )
    if not seeds:
        variation = "; how much the figures vary between runs was not measured" if "accuracy" in report else ""
        sentences.append(f"It is one training run (seed {code(seed)}){variation}.")
    return sentences


def _weak_classes(report: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    recall = report.get("per_class_recall", [])
    weak = sorted((value, i) for i, value in enumerate(recall) if value is not None and round(100 * value) < 50)
    if not weak:
        return []
    shown = [f"{escaped(names[i])} ({value:.0%})".replace("%", " %") for value, i in weak[:_NAMED_CLASSES]]
    rest = f", and {len(weak) - _NAMED_CLASSES} more" if len(weak) > _NAMED_CLASSES else ""
    what = quantity(len(weak), "class is", "classes are")
    return [f"{what} recognised less than half of the time: {', '.join(shown)}{rest}."]


def _unknown_classes(
    report: Mapping[str, Any], names: Sequence[str], frequencies: ClassFrequencies, split: str
) -> list[str]:
    support = report.get("per_class_support", [])
    sentences = (
        ("No training examples", [i for i, count in enumerate(frequencies.counts) if count == 0]),
        (
            f"No {split} examples, so recall and precision are unknown",
            without_examples(report),
        ),
        (
            f"Fewer than {_FEW_TEST_EXAMPLES} {split} examples, so the recall is a rough estimate",
            [i for i, number in enumerate(support) if 0 < number < _FEW_TEST_EXAMPLES],
        ),
    )
    return [f"{what}: {_listed(classes, names)}." for what, classes in sentences if classes]


def _listed(classes: Sequence[int], names: Sequence[str]) -> str:
    if len(classes) == len(names):
        return "every class"
    rest = f", and {len(classes) - _NAMED_CLASSES} more" if len(classes) > _NAMED_CLASSES else ""
    return ", ".join(escaped(names[i]) for i in classes[:_NAMED_CLASSES]) + rest


def _overprediction(report: Mapping[str, Any], frequencies: ClassFrequencies, split: str) -> str:
    few = frequencies.groups["few"]
    if "per_class_predicted" not in report or not len(few):
        return ""
    predicted, occurring = (sum(report[f"per_class_{figure}"][c] for c in few) for figure in ("predicted", "support"))
    if not occurring or predicted < _OVERPREDICTED * occurring:
        return ""
    return f" On the {split} data it predicts the few classes {predicted / occurring:.1f} times as often as they occur."
