"""Saves a model that was changed after training: weights, processor, card, and the records of the training."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_sharp.data.local_paths import without_paths
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.decisions import Decisions, read_decisions
from hf_sharp.recipe.recorded import keep_record
from hf_sharp.recipe.saved_adapter import merged_record
from hf_sharp.reports.card_changes import PREDICTIONS, RELIABILITY, SHARES, changed_results
from hf_sharp.reports.card_metadata import hub_id
from hf_sharp.reports.changed_card import build_changed_card
from hf_sharp.reports.evaluation_pictures import PICTURES
from hf_sharp.reports.model_card import PICTURE, write_card
from hf_sharp.reports.results import write_results

logger = logging.getLogger(__name__)

_PICTURES = (PICTURE, RELIABILITY, SHARES, *PICTURES, *(f"validation/{name}" for name in PICTURES))
_AUTHORS = ("license", "license_name", "license_link", "language")  # metadata that only the card's authors know


def save_changed(
    name: str,
    model: Any,
    processor: Any,
    output: Path,
    change: Mapping[str, Any],
    record: Mapping[str, Any],
    decisions: Decisions | None = None,
    measured: Mapping[str, Any] | None = None,
) -> None:
    """Save a changed model into a new folder, with a card that contains no figures of the model before the change.

    Args:
        name: the folder or Hub name of the model before the change.
        model: the changed model.
        processor: its image processor or tokenizer.
        output: the new folder.
        change: the change, as `hf_sharp.reports.card_changes` describes it, without `model`.
        record: what the training recorded, as `recorded` returns it.
        decisions: the decision rules to save with the model. Default: those that `still_decided` returns.
        measured: the long-tail report of the changed model on validation data, or None.

    Raises:
        ValueError: the folder cannot be written.
    """
    with stage(f"the changed model cannot be saved in {str(output)!r}"):
        model.save_pretrained(output)
        processor.save_pretrained(output)
        (still_decided(name, model, change["effect"]) if decisions is None else decisions).save(output)
        change, before = {"model": without_paths(name)} | dict(change), _card_of(name)
        if "class_counts" in record.get("report", {}):
            results = changed_results(merged_record(record), change, measured)
            write_results(output, results)
            _copy_pictures(Path(name), output, results.get("pictures", ()))
            rewrite_card(output, before)
        else:
            keep_record(record, output)
            card = build_changed_card(output, change, before, measured, hub_id(name))
            card.save(output / "README.md")
        text = (output / "README.md").read_text(encoding="utf-8")
        _copy_pictures(Path(name), output, [picture for picture in _PICTURES if f"]({picture})" in text])


def still_decided(name: str, model: Any, effect: str) -> Decisions:
    """Read the decision rules of a model that hold after a change, and warn of those that no longer do.

    Args:
        name: the folder or Hub name of the model before the change.
        model: the changed model.
        effect: the effect of the change, as in `hf_sharp.reports.card_changes`.

    Returns:
        All rules, or none if the predictions changed.
    """
    decisions = read_decisions(name, model.config)
    if effect != PREDICTIONS:
        return decisions
    if decisions.holds_something:
        logger.warning(
            "the thresholds, limits or costs saved with the model belong to its old head, and are left out: calibrate "
            "the new model"
        )
    return Decisions(decisions.classes)


def _card_of(model: str) -> ModelCard | None:
    try:
        file = Path(model) / "README.md" if Path(model).is_dir() else model
        return ModelCard.load(file, ignore_metadata_errors=True)
    except (OSError, ValueError):  # no card or no network
        return None


def _copy_pictures(source: Path, output: Path, names: Any) -> None:
    for name in _PICTURES:
        if name in names and (source / name).is_file() and not (output / name).exists():
            (output / name).parent.mkdir(exist_ok=True)
            shutil.copy(source / name, output / name)


def rewrite_card(folder: Path, before: ModelCard | None = None) -> Path:
    """Rewrite the card in a model's folder from its results, keeping the authors' metadata, such as the licence.

    Args:
        folder: the model's folder.
        before: the card to take the metadata from. Default: the card in the folder, if there is one.

    Returns:
        The path of the card.

    Raises:
        ValueError: as for `write_card`.
    """
    before = _card_of(str(folder)) if before is None else before
    file = write_card(folder)
    if before is None:
        return file
    card, said = ModelCard.load(file), before.data.to_dict()
    for key in _AUTHORS:
        if key in said:
            setattr(card.data, key, said[key])
    card.data.tags = list(dict.fromkeys([*(card.data.tags or ()), *(said.get("tags") or ())]))
    card.save(file)
    return file
