import importlib.util
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "debian_sections.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("debian_sections", FILE)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_paragraphs_become_sections_and_texts(module):
    dump = (
        "Package: a\nSection: non-free/games\nDescription: a game\n of chess\n .\n  for two\nDescription-md5: 0\n\n"
        "Package: b\nDescription: no section\n\n"
        "Package: c\nSection: doc\nDescription-en: a manual\nTag: x\n y\n"
    )
    assert list(module.packages(dump)) == [("games", "a game of chess for two"), ("doc", "a manual")]


def test_the_test_split_is_balanced_and_no_text_is_in_both(module):
    rows = [(name, f"{name} {i}") for name, count in (("games", 50), ("doc", 25), ("web", 5)) for i in range(count)]
    splits = module.make_splits(rows + rows[:30], per_class=4, smallest=20, seed=0)
    assert splits["train"].features["label"].names == ["doc", "games"]
    assert np.bincount(splits["test"]["label"]).tolist() == [4, 4]
    assert np.bincount(splits["train"]["label"]).tolist() == [21, 46]
    assert not set(splits["train"]["text"]) & set(splits["test"]["text"])
    again = module.make_splits(rows, per_class=4, smallest=20, seed=0)
    assert again["test"]["text"][:] == splits["test"]["text"][:]
