"""The parts of a model card on changes after training: the figures that still hold, a notice, and sections.

A change is a dict with the `command` that made it, the `model` before it, its `effect` on predictions, and the results
of the command. `all_results.json` of the changed model lists the changes under `changes`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_sharp.model.records import RECORD, TEMPERATURE
from hf_sharp.registry.words import quantity
from hf_sharp.reports.evaluation_pictures import PICTURES
from hf_sharp.reports.figures import half_width, percent
from hf_sharp.reports.markdown import code, escaped
from hf_sharp.reports.results import RESULTS

# The effects of a change. `decisions` means that only hf-sharp predict decides differently, from equal probabilities.
NOTHING, DECIDED, PROBABILITIES, PREDICTIONS = "nothing", "decisions", "probabilities", "predictions"
RELIABILITY, SHARES = "calibrated_reliability.png", "shares.png"
# The entries of results that depend on predictions.
OF_OTHER_PREDICTIONS = ("report", "split", "pictures", "tta", "over_seeds")
_OF_TRAINING_SET = ("class_counts", "rare_threshold", "common_threshold", "class_names")


def changed_results(
    results: Mapping[str, Any], change: Mapping[str, Any], measured: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Copy the results of a model for its changed version, without those that no longer hold.

    Args:
        results: the results of the model before the change.
        change: the change.
        measured: the long-tail report of the changed model on validation data, or None. It is left out if it has the
            class counts of another training set.

    Returns:
        The results, for `build_card`; with `split` if their report is not on the test split.
    """
    kept, report = dict(results), results["report"]
    if change["effect"] == PREDICTIONS:
        kept = {name: item for name, item in results.items() if name not in OF_OTHER_PREDICTIONS}
        if measured is not None and measured["class_counts"] == report["class_counts"]:
            pictures = [f"validation/{name}" for name in PICTURES]
            kept |= {"report": measured, "split": "validation", "pictures": pictures}
        else:
            kept["report"] = {name: report[name] for name in _OF_TRAINING_SET if name in report}
    elif change["effect"] == PROBABILITIES:
        kept["report"] = {name: item for name, item in report.items() if name != "calibration_error"}
        kept["pictures"] = [name for name in results.get("pictures", ()) if Path(name).name != "reliability.png"]
    return kept | {"changes": [*results.get("changes", ()), dict(change)]}


def check_same_model(config: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Check that the results beside a model belong to it.

    Args:
        config: the model's config.
        results: the results beside the model.

    Raises:
        ValueError: only one of config and results records a change of the head.
    """
    changes = results.get("changes", ())
    for key, commands in _RECORDS.items():
        if config and (key in config) != any(c["command"] in commands and c.get("folded", True) for c in changes):
            says, says_not = ("config.json", RESULTS) if key in config else (RESULTS, "config.json")
            raise ValueError(
                f"{says} says that the model was changed after training ({key}), but {says_not} does not: its figures "
                "may be those of another model. hf-sharp adjust, calibrate and shift write both, and the card."
            )


def notice(changes: Sequence[Mapping[str, Any]], report: Mapping[str, Any], split: str) -> str | None:
    """Describe how a model was changed after training, and which model and data its card's figures are for.

    Args:
        changes: the changes, in their order.
        report: the long-tail report in the card.
        split: the name of the split that the report is on.

    Returns:
        Markdown in one line; None for a model as it was trained.
    """
    if not changes:
        return None
    before, effects = code(changes[0]["model"]), {change["effect"] for change in changes}
    what = f"**This is {before}, {'unchanged' if effects == {NOTHING} else 'changed after training'}.**"
    said = [_NOTICES[change["command"]](change) for change in changes]
    if PREDICTIONS not in effects:
        same = "What `pipeline()` predicts is" if DECIDED in effects else "Its predictions are"
        said.append(f"{same} the same{', and so are the figures below' if 'accuracy' in report else ''}.")
    elif "accuracy" in report:
        chosen = split == "validation" and any(change.get("chosen") for change in changes)
        said.append(
            f"The figures below are its own, on {sum(report['per_class_support']):,} {split} examples"
            + (", on which the strength was chosen: expect slightly lower ones on new data." if chosen else ".")
        )
    else:
        said.append(f"There are no figures of it here, and those in the card of {before} are not its own.")
    return " ".join((what, *said))


def sections(changes: Sequence[Mapping[str, Any]], opened: str) -> list[tuple[str, str]]:
    """Write the sections on changes that a user of the model needs details about.

    Args:
        changes: the changes, in their order.
        opened: the name to open the model with: its name on the Hub, or its folder.

    Returns:
        Headings and Markdown. Thresholds and costs saved beside the model are left out if a later change replaced them
        or the head.
    """
    shown: dict[str, Mapping[str, Any]] = {}
    for change in changes:
        if change["effect"] == PREDICTIONS:
            shown.clear()
        if change["command"] in _SECTIONS and change["effect"] != NOTHING:
            shown[change["command"]] = change
    by_cost = any(change["effect"] == DECIDED for change in shown.values())
    described = ((*_SECTIONS[command], change) for command, change in shown.items())
    return [(heading, describe(change, opened, by_cost)) for heading, describe, change in described]


def limits_of(changes: Sequence[Mapping[str, Any]], trained_alike: bool) -> str | None:
    """Say why a model's probabilities do not fit data like its training set; None if they do.

    Args:
        changes: the changes, in their order.
        trained_alike: whether the training treated all classes alike.

    Returns:
        The start of a sentence.
    """
    said = "It was trained to treat all classes alike" if trained_alike else None
    for change in changes:
        if change["effect"] == PREDICTIONS and change["command"] in ("adjust", "shift"):
            said = "It was corrected in favour of rare classes" if change["command"] == "adjust" else None
    return said


def threshold_cells(threshold: Mapping[str, Any]) -> list[str]:
    """Format a threshold, rounded down, with the number of predictions above it and the share that are correct.

    Args:
        threshold: the fields of a `Threshold`.

    Returns:
        Three cells of a table.
    """
    confidence, answered = threshold["confidence"], threshold["answered"]
    limit = "–" if confidence is None else f"{math.floor(confidence * 1000) / 1000:.3f}"
    right = percent(threshold["precision"], half_width([threshold["precision"]], [answered])) or "–"
    return [limit, f"{answered} of {threshold['predictions']}", right]


def _table(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * texts}{'---:|' * (len(rows[0]) - texts)}", *lines[1:]])


def _adjusted(change: Mapping[str, Any]) -> str:
    method = code(change["method"])
    if change["effect"] == NOTHING and change["chosen"]:
        return f"`hf-sharp adjust` found no strength of {method} above 0 better."
    options = [f"{name} {change[name]}" for name in ("strength", "loss", "loss_gamma") if name in change]
    return (
        f"Its classifier head was corrected for class imbalance with `hf-sharp adjust`: {method} "
        f"({escaped(', '.join(options))})."
    )


def _calibrated(change: Mapping[str, Any]) -> str:
    how = "were divided" if change["folded"] else "are divided by `hf-sharp predict`, and not by `pipeline()`,"
    return f"Its logits {how} by a temperature of {change['temperature']:.3g}, chosen by `hf-sharp calibrate`."


def _weighed(change: Mapping[str, Any]) -> str:
    if change["effect"] == PREDICTIONS:
        return "The costs of mistakes are in its classifier head (`hf-sharp adjust --cost`)."
    return "The costs of mistakes are beside it (`hf-sharp adjust --cost`), and `pipeline()` does not use them."


def _shifted(change: Mapping[str, Any]) -> str:
    if change["effect"] == NOTHING:
        return "`hf-sharp shift` found the class shares of training in new data."
    return "Its classifier head was changed for the class shares of new data with `hf-sharp shift`."


def _confidence(change: Mapping[str, Any], opened: str, by_cost: bool) -> str:
    before, after = (100 * error for error in change["calibration_error"])
    alike = ", where every class counted alike" if change["balanced"] else ""
    paragraphs = [
        f"The temperature was chosen on {change['examples']:,} validation examples{alike}. On these, the expected "
        f"calibration error was {before:.1f} % before and {after:.1f} % after.",
        f"![Accuracy of the validation predictions against their confidence]({RELIABILITY})",
        f"{code(f'{_predict(opened)} --coverage 0.9')} gives sets of classes that hold the true one in 90 % of the "
        f"cases, for each class alone; a class with fewer than {change['needed']} validation examples is in every "
        "such set.",
    ]
    if not by_cost:  # the thresholds are for the most likely class, not for that of least expected cost
        rows = [["class", "validation examples", "threshold", "answered", "right in %"]]
        rows += [[escaped(row["class"]), f"{row['examples']:,}", *threshold_cells(row)] for row in change["thresholds"]]
        rest = f" The {len(rows) - 1} rarest classes:" if len(rows) - 1 < change["classes"] else ""
        paragraphs.append(
            f"{code(f'{_predict(opened)} --abstain saved')} answers only from a threshold per class, the lowest "
            f"confidence from which {100 * change['precision']:g} % of the validation predictions of the class were "
            f"right.{rest}"
        )
        paragraphs.append(_table(rows))
    return "\n\n".join(paragraphs)


def _predict(opened: str) -> str:
    return f"hf-sharp predict {shlex.quote(opened)} DATA"


def _costs(change: Mapping[str, Any], opened: str, by_cost: bool) -> str:
    if not by_cost:
        how = "The class with the highest score is the one of least expected cost, and the scores are no probabilities."
    else:
        how = (
            f"{code(_predict(opened))} chooses the class of least expected cost by the table in "
            "`decisions.json`; a plain `pipeline()` still chooses the most likely class."
        )
    by_class = all(row["predicted"] is None for row in change["costs"])
    rows = [["true class", "a mistake costs"] if by_class else ["true class", "predicted class", "costs"]]
    for row in change["costs"]:
        names = [row["true"]] if by_class else [row["true"], row["predicted"]]
        rows.append([*map(escaped, names), f"{row['cost']:g}"])
    rest = quantity(change["further"], "further class costs no more", "further classes cost no more")
    rest = f"{rest}." if by_class else "These are the highest; `decisions.json` has all."
    return "\n\n".join([how, _table(rows, len(rows[0]) - 1), *([rest] if change["further"] else [])])


def _class_shares(change: Mapping[str, Any], opened: str, by_cost: bool) -> str:
    found = "\n".join(f"- {escaped(line, 2000)}" for line in change["said"])
    return (
        f"`hf-sharp shift` compared {quantity(change['examples'], 'unlabelled example', 'unlabelled examples')} with "
        f"the training data:\n\n{found}\n\nThe head now aims at accuracy on data like these.\n\n"
        f"![Class shares of training and of the new data]({SHARES})"
    )


# Key in the config to the commands that set it.
_RECORDS = {RECORD: ("adjust", "adjust --cost", "shift"), TEMPERATURE: ("calibrate",)}
_NOTICES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "adjust": _adjusted,
    "adjust --cost": _weighed,
    "calibrate": _calibrated,
    "shift": _shifted,
}
_SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any], str, bool], str]]] = {
    "adjust --cost": ("Costs of mistakes", _costs),
    "calibrate": ("Confidence", _confidence),
    "shift": ("New class shares", _class_shares),
}
