"""FOLDOC: predict the first topic (language, networking, …) of the definition of a computing term.

Source: Debian package `dict-foldoc` (the Free On-line Dictionary of Computing, editor Denis Howe, foldoc.org; GNU Free
Documentation License). The index says where an entry begins and ends; its topic is in angle brackets after the
headword, which is removed. Definitions of fewer than four words, repeated definitions, and topics with fewer than 20
definitions are left out.

53 classes, from 1,035 definitions down to 20. Of the examples of each class that are not used for test and validation,
training takes a seventh, but at least 4.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import datasets
import numpy as np

from tasks.division import divide, unambiguous
from tasks.packages import cached, debian_files

NAME, VERSION, KIND, BACKBONE = "foldoc", 1, "text", "paraphrase-MiniLM-L3-v2"
EPOCHS, MAX_TOKENS = 8, 24
RATES = {"full": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
SMALLEST = 20
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def number(text: str) -> int:
    """Read a number in a dict index: base 64, the most significant digit first.

    Args:
        text: the digits.

    Returns:
        The number.

    Example:
        >>> number("BA")
        64
    """
    value = 0
    for digit in text:
        value = 64 * value + _DIGITS.index(digit)
    return value


def read_entry(entry: str) -> tuple[str, str] | None:
    r"""Read one entry: its headwords, a blank line, and the definition with its topics.

    Args:
        entry: the text of the entry.

    Returns:
        The definition without markup, and the first topic; None if there is no topic.

    Example:
        >>> read_entry("tar\n\n   <tool, file format> A {Unix} program.\n\n   (1995-01-05)\n")
        ('A Unix program.', 'tool')
    """
    # The topic may be preceded by the number of a sense, and by the expansion of an abbreviation.
    found = re.match(r"\s*(?:1\.\s*)?((?:\([^()]*\)\s*)?)<([^<>@]+)>\s*(.*)", entry.partition("\n\n")[2], re.DOTALL)
    if found is None:
        return None
    text = re.sub(r"\(\d{4}-\d\d-\d\d\)", " ", re.split(r"\s2\.\s*<", found[1] + found[3])[0])
    text = re.sub(r"\s+", " ", re.sub(r"[{}]|__", "", text)).strip()
    return text, found[2].split(",")[0].strip().lower()


@cached(f"{NAME}_{VERSION}")
def prepare(folder: Path) -> datasets.Dataset:
    """Download and read the definitions, as the columns `text` and `label` (topics by name)."""
    files = debian_files("dict-foldoc", folder) / "usr/share/dictd"
    content = gzip.decompress((files / "foldoc.dict.dz").read_bytes())
    places = set()
    for line in (files / "foldoc.index").read_text().splitlines():
        _, start, length = line.split("\t")
        places.add((number(start), number(length)))
    entries = [
        read_entry(content[start : start + length].decode("utf-8", "replace")) for start, length in sorted(places)
    ]
    rows = [row for row in entries if row and len(row[0].split()) >= 4]
    topics = sorted({topic for _, topic in rows})
    kept = unambiguous([text for text, _ in rows], [topics.index(topic) for _, topic in rows])
    rows = [rows[i] for i in kept]
    found, counts = np.unique([topic for _, topic in rows], return_counts=True)
    names = sorted(str(name) for name, count in zip(found, counts, strict=True) if count >= SMALLEST)
    rows = [row for row in rows if row[1] in names]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict(
        {"text": [text for text, _ in rows], "label": [names.index(topic) for _, topic in rows]}, features=features
    )


def split(data: datasets.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw 8 test and at most 10 validation definitions of every topic; train on a seventh of the rest."""
    return divide(
        data["label"][:],
        np.arange(len(data)),
        seed,
        test_per_class=8,
        validation_per_class=10,
        training_counts=lambda left: np.minimum(left, np.maximum(left // 7, 4)),
    )
