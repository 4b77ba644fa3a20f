"""Opens text files in UTF-8, plain or compressed, and says what is wrong with others."""

from __future__ import annotations

import gzip
from typing import Any

# Separators of columns, and how to write them on a command line.
SEPARATORS = {",": "','", ";": "';'", "\t": "'\\t'", "|": "'|'"}


def as_separator(given: str) -> str:
    """Return a separator as one character; raise a ValueError unless it is one, or `tab`."""
    separator = {"\\t": "\t", "tab": "\t"}.get(given, given)
    if len(separator) != 1:
        raise ValueError(f"the separator of columns is one character, got {separator!r}.")
    return separator


def open_text(file: str, errors: str = "strict") -> Any:
    """Open a text file in UTF-8, or one that is compressed (.gz), to read it with unchanged line ends.

    Args:
        file: the path of the file.
        errors: what to do with bytes that are not UTF-8, as for `open`.
    """
    opened: Any = gzip.open if file.lower().endswith(".gz") else open
    return opened(file, "rt", encoding="utf-8-sig", errors=errors, newline="")


def not_utf8(where: str) -> str:
    """Say that a file is not UTF-8 text, and how to convert it."""
    return (
        f"{where} is not UTF-8 text. Convert it: iconv -f latin1 -t utf-8 FILE > NEW (or -f utf-16), or save it as "
        "'CSV UTF-8'."
    )
