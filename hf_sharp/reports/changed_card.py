"""The card of a changed model whose training recorded no results, built from the card of the model before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from hf_sharp.reports import card_evaluation as evaluation
from hf_sharp.reports.card_changes import PREDICTIONS, notice, sections
from hf_sharp.reports.evaluation_pictures import PICTURES
from hf_sharp.reports.long_tail_report import frequencies_of
from hf_sharp.reports.markdown import escaped, one_line
from hf_sharp.reports.model_card import read_config, shown_folder, template_file, usage


def build_changed_card(
    folder: Path,
    change: Mapping[str, Any],
    before: ModelCard | None = None,
    measured: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> ModelCard:
    """Build the card of a changed model from its config and the card of the model before.

    Args:
        folder: the folder of the changed model, with its `config.json`.
        change: the change, as `hf_sharp.reports.card_changes` describes it.
        before: the card of the model before, if it has one. Its metadata is kept, except for results.
        measured: the long-tail report of the changed model on validation data, or None.
        base_model: the model before, if it is on the Hub.

    Returns:
        The card.
    """
    config, folder = read_config(folder), folder.absolute()
    task, opened = config.get("pipeline_tag"), one_line(shown_folder(folder)) or "model"
    data = ModelCardData(library_name="transformers", pipeline_tag=task)
    for key, value in before.data.to_dict().items() if before else ():
        if key not in ("model-index", "metrics"):
            setattr(data, key, value)
    data.base_model = base_model or data.base_model
    report = measured if measured and change["effect"] == PREDICTIONS else {}
    card = ModelCard.from_template(
        ModelCardData(),  # the template would take any metadata for its values
        template_path=str(template_file()),
        name=escaped(folder.name),
        notice=notice([change], report, "validation"),
        sections=sections([change], opened),
        before=re.sub(r"\A#\s.*\n?", "", before.text.strip()).strip() if before else "",
        **usage(task, opened, custom_code=config["custom_code"]),
        **(_figures(report) if report else {}),
    )
    card.data = data
    return ModelCard(str(card))


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    pictures: Sequence[str] = [f"validation/{name}" for name in PICTURES]
    return evaluation.evaluation_section(report, None, frequencies_of(report), None, pictures, split="validation")
