"""WordNet supersenses: predict the lexicographer file of a synset (noun.food, verb.motion, …) from its gloss.

Source: Debian package `wordnet-base` (WordNet 3.0, Princeton; its own permissive licence, in the package's copyright
file). In data.noun and data.verb, the second field of a line is the number of the lexicographer file, and the gloss
follows the bar; its quoted examples are removed. noun.Tops is left out, because it contains the roots of the other noun
files. One of each set of repeated glosses is kept, or none if they are in two files.

40 classes with 11,564 down to 42 synsets. Training takes a 120th of each class, which keeps the natural shares, but at
least 3: 96 down to 3 texts.
"""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np

from tasks.division import divide, unambiguous
from tasks.packages import cached, debian_files

NAME, VERSION, KIND, BACKBONE = "wordnet", 1, "text", "paraphrase-MiniLM-L3-v2"
EPOCHS, MAX_TOKENS = 8, 16
RATES = {"full": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}

# The lexicographer files by their numbers in WordNet 3.0 (its manual page lexnames): 4 to 28 nouns, 29 to 43 verbs.
NOUNS = (
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)
VERBS = (
    *("body", "change", "cognition", "communication", "competition", "consumption", "contact", "creation", "emotion"),
    *("motion", "perception", "possession", "social", "stative", "weather"),
)
CLASSES = (*(f"noun.{name}" for name in NOUNS), *(f"verb.{name}" for name in VERBS))


def read_line(line: str) -> tuple[str, int] | None:
    """Read one line of data.noun or data.verb.

    Args:
        line: a line of the file; lines of the licence at the top are indented.

    Returns:
        The gloss and the class; None if there is no class (noun.Tops, the licence).

    Example:
        >>> read_line('00001740 29 v 01 breathe 0 001 @ 0 v 0000 | draw air into the lungs; "I can breathe better"')
        ('draw air into the lungs', 25)
    """
    head, bar, gloss = line.partition(" | ")
    number = int(head.split()[1]) - 4 if bar and not line.startswith(" ") else -1
    if number < 0:
        return None
    return gloss.split('; "')[0].strip(), number


@cached(f"{NAME}_{VERSION}")
def prepare(folder: Path) -> datasets.Dataset:
    """Download and read the glosses, as the columns `text` and `label` (40 names)."""
    files = debian_files("wordnet-base", folder) / "usr/share/wordnet"
    lines = [line for name in ("data.noun", "data.verb") for line in (files / name).read_text().splitlines()]
    rows = [row for row in map(read_line, lines) if row and row[0]]
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    kept = unambiguous(texts, labels)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict(
        {"text": [texts[i] for i in kept], "label": [labels[i] for i in kept]}, features=features
    )


def split(data: datasets.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw 20 test and at most 15 validation glosses of every class, and thin the rest to a long tail."""
    labels = np.asarray(data["label"][:])
    natural = np.bincount(labels)
    wanted = np.maximum(natural // 120, 3)
    return divide(
        labels,
        np.arange(len(labels)),
        seed,
        test_per_class=20,
        validation_per_class=15,
        training_counts=lambda left: np.minimum(left, wanted),
    )
