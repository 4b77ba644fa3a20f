"""The committed cards are those that the code makes of the committed results."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_sharp.reports.model_card import write_card
from hf_sharp.reports.results import RESULTS

ROOT = Path(__file__).parents[2]
CARDS = sorted((ROOT / "model_cards").glob("*/*/README.md"))


def test_there_are_cards():
    assert len(CARDS) == 2


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.parent.name)
def test_a_card_is_what_its_results_make(card, tmp_path):
    folder = shutil.copytree(card.parent.parent, tmp_path / card.parent.parent.name) / card.parent.name
    (folder / "README.md").unlink()
    opened = f"outputs/{card.parent.parent.name}/{card.parent.name}"
    assert write_card(folder, draw=False, opened=opened).read_text() == card.read_text()
    results = json.loads((folder / RESULTS).read_text())
    evaluated = {result.metric_type: result.metric_value for result in ModelCard(card.read_text()).data.eval_results}
    assert evaluated["accuracy"] == round(results["report"]["accuracy"], 4)
    results["report"]["accuracy"] += 0.01
    (folder / RESULTS).write_text(json.dumps(results))
    changed = write_card(folder, draw=False, opened=opened).read_text()
    assert changed != card.read_text(), "the figures are those of the results"
