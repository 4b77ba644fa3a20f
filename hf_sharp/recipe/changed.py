"""Saving a model that was changed after training: weights, processor, card, and what the training recorded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.decisions import Decisions
from hf_sharp.recipe.recorded import keep_record
from hf_sharp.reports.evaluation_pictures import PICTURES
from hf_sharp.reports.model_card import PICTURE


def save_changed(
    name: str,
    model: Any,
    processor: Any,
    output: Path,
    card: ModelCard,
    record: Mapping[str, Any],
    decisions: Decisions | None = None,
) -> None:
    """Save a changed model into a new folder.

    Args:
        name: the folder or Hub name of the model before the change, whose card's pictures are copied.
        model: the changed model.
        processor: its image processor or tokenizer.
        output: the folder.
        card: the changed model's card.
        record: what the training recorded, as from `recorded`.
        decisions: what is decided after the model's probabilities.

    Raises:
        ValueError: the folder cannot be written.
    """
    with stage(f"the changed model cannot be saved in {str(output)!r}"):
        model.save_pretrained(output)
        processor.save_pretrained(output)
        card.save(output / "README.md")
        keep_record(record, output)
        for picture in (PICTURE, *PICTURES):
            if (source := Path(name) / picture).is_file() and picture in card.text:
                shutil.copy(source, output / picture)
        if decisions is not None:
            decisions.save(output)


def card_with_section(model: str, heading: str, said: str, what: str) -> ModelCard:
    """Add a section to the card of a model; a model without a card gets a short one.

    Args:
        model: the model's folder or Hub name.
        heading: of the section.
        said: Markdown.
        what: what was done to the model, for the title of a new card.

    Returns:
        The card.
    """
    try:
        card = ModelCard.load(Path(model) / "README.md" if Path(model).is_dir() else model)
    except (OSError, ValueError):  # no card or no network: write a short one
        card = ModelCard(f"---\nlibrary_name: transformers\n---\n\n# {Path(model).name}, {what}\n")
    card.text = f"{card.text.rstrip()}\n\n## {heading}\n\n{said}\n"  # an empty line ends HTML
    return card
