"""Fonts for names in any script: installed fallback fonts, or readable substitutes if there are none."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from rich.cells import cell_len, set_cell_size

from hf_sharp.reports.markdown import one_line

logger = logging.getLogger(__name__)

MAIN_FONT = "DejaVu Sans"  # comes with matplotlib
# Fonts that draw a box for every character, or that matplotlib cannot show.
_USELESS = ("last resort", "emoji", "adobe blank")
_NO_FONT, _ALIKE = "no installed font has its characters", "shortened, it looks like another"
_EXPLAINED = 10  # the most names in a log line


def fallback_fonts(texts: Iterable[str]) -> list[str]:
    """Find installed fonts for the characters that the main font lacks.

    Args:
        texts: the texts that will be drawn.

    Returns:
        The names of the fonts, for `font.family`.
    """
    missing = {ord(character) for text in texts for character in text} - _main_characters()
    fonts = []
    for name, path in _installed() if missing else ():
        if covered := missing & _characters(path):
            fonts.append(name)
            missing -= covered
        if not missing:
            break
    return fonts


def drawable(text: str) -> str:
    r"""Escape the characters that no installed font has.

    Args:
        text: any text.

    Returns:
        One line; characters without a font are \u or \U escapes instead of boxes.

    Example:
        >>> drawable("naïve\n\U000f0000")
        'naïve'
    """
    line = one_line(text)
    missing = _undrawable(line)
    return "".join(c.encode("unicode_escape").decode() if c in missing else c for c in line)


def class_labels(names: Sequence[str], longest: int = 24) -> list[str]:
    """Shorten class names for a plot; a name that no installed font can draw becomes its number, such as #7.

    Names that begin alike lose their middle instead of their end, and if that is not enough, become numbers. One line
    of the log says which names the numbers stand for.

    Args:
        names: (K,) the names.
        longest: the maximum width in columns; a Chinese character, for example, takes two.

    Returns:
        (K,) labels, all different.

    Example:
        >>> class_labels(["snow leopard", "\U000f0000", "a" * 30], longest=12)
        ['snow leopard', '#1', 'aaaaaaaaaaa…']
        >>> class_labels(["retinopathy, stage 1", "retinopathy, stage 2"], longest=12)
        ['retin…tage 1', 'retin…tage 2']
    """
    lines = [one_line(name) for name in names]
    labels = [_cut(line, longest - 1) for line in lines]
    seen = Counter(labels)
    labels = [
        label if seen[label] == 1 else _cut(line, longest // 2 - 1, longest // 2)
        for label, line in zip(labels, lines, strict=True)
    ]
    seen, reasons = Counter(labels), {}
    for i, label in enumerate(labels):
        if reason := "empty" if not label else _NO_FONT if _undrawable(label) else _ALIKE if seen[label] > 1 else None:
            reasons[i] = reason
    mark = "#"
    while any(f"{mark}{i}" in seen for i in reasons):
        mark += "#"
    numbers = {i: f"{mark}{i}" for i in reasons}
    if numbers:
        _explain(tuple((numbers[i], lines[i], reason) for i, reason in reasons.items()))
    return [numbers.get(i, label) for i, label in enumerate(labels)]


@cache  # log the same names only once
def _explain(replaced: tuple[tuple[str, str, str], ...]) -> None:
    clauses = []
    for reason in dict.fromkeys(reason for *_, reason in replaced):
        named = [f"{number} stands for {name!r}" for number, name, why in replaced if why == reason]
        more = f" and {len(named) - _EXPLAINED} more" if len(named) > _EXPLAINED else ""
        clauses.append(f"{', '.join(named[:_EXPLAINED])}{more} ({reason})")
    logger.warning("In pictures, %s.", "; ".join(clauses))


def _cut(line: str, head: int, tail: int = 0) -> str:
    # Keeps `head` columns at the start and `tail` at the end, with a single-column ellipsis between them.
    if cell_len(line) <= head + tail + 1:
        return line
    start, end = set_cell_size(line, head), set_cell_size(line[::-1], tail)[::-1]
    return f"{start.rstrip()}…{end.lstrip()}"


def _undrawable(line: str) -> set[str]:
    missing = {character for character in line if ord(character) not in _main_characters()}
    return {c for c in missing if not any(ord(c) in _characters(path) for _, path in _installed())}


def import_matplotlib() -> Any:
    """Import matplotlib, ignoring the backend that the environment names if it cannot be imported."""
    # MPLBACKEND may name a backend that is missing here, such as that of the notebook that started this process.
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib


def _main_characters() -> frozenset[int]:
    import_matplotlib()
    from matplotlib.font_manager import findfont

    return _characters(findfont(MAIN_FONT))


@cache
def _installed() -> list[tuple[str, str]]:
    import_matplotlib()
    from matplotlib.font_manager import fontManager

    fonts: dict[str, str] = {}
    for entry in sorted(fontManager.ttflist, key=_preference):
        if not any(word in entry.name.lower() for word in _USELESS):
            fonts.setdefault(entry.name, entry.fname)
    return list(fonts.items())


def _preference(entry: Any) -> tuple[bool, bool, bool, str]:
    # Prefer an upright sans-serif font of normal weight, which looks most like the main font.
    return (
        "Sans" not in entry.name,
        entry.style != "normal",
        entry.weight not in (400, "normal", "regular"),
        entry.name,
    )


@cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # an unreadable font counts as not installed
        return frozenset()
