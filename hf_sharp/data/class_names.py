"""Aligns the class names of data and models; one rule for every pair of lists.

the same names          aligned by name, whatever their order and the Unicode form of their accents
a subset                allowed for evaluation; the absent classes are reported
other names             rejected, with an error that shows both lists and a remedy
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hf_sharp.registry.nearest import did_you_mean
from hf_sharp.registry.words import quoted

_GENERATED = re.compile(r"LABEL_\d+")
_SHOWN = 8


def align_names(
    names: Sequence[str], expected: Sequence[str], which: str, other: str, *, subset: bool = False, remedy: str = ""
) -> np.ndarray:
    """Find the index in `expected` of every class in `names`.

    Args:
        names: K' class names.
        expected: K class names.
        which: what `names` belong to, such as "the test split", for error messages.
        other: what `expected` belong to, such as "the model".
        subset: allow `names` to lack some of `expected`, as evaluation data may.
        remedy: what the user can do about other names, for error messages.

    Returns:
        (K',) int64: `names[i]` is `expected[result[i]]`.

    Raises:
        ValueError: `names` has a name that `expected` does not have; or, unless `subset`, lacks one.

    Example:
        >>> align_names(["c", "a", "b"], ["a", "b", "c"], "the data", "the model").tolist()
        [2, 0, 1]
    """
    names, expected = list(map(str, names)), list(map(str, expected))
    key = composed if len(set(map(composed, expected))) == len(expected) else str
    index_of = {key(name): index for index, name in enumerate(expected)}
    unknown = [name for name in names if key(name) not in index_of]
    missing = [] if subset else [name for name in index_of if name not in set(map(key, names))]
    if unknown or missing or len(set(names)) < len(names):
        raise ValueError(
            f"the classes of {which} ({shown(names)}) are not those of {other} ({shown(expected)})"
            + (f"; {which} has {shown(unknown)}, which {other} lacks" if unknown else "")
            + (f"; {other} has {shown(missing)}, which {which} lacks" if missing else "")
            + f". {remedy}".rstrip()
        )
    return np.array([index_of[key(name)] for name in names], dtype=np.int64)


def composed(name: str) -> str:
    r"""Normalize the accents of a name (Unicode NFC), which file systems and keyboards store in different ways.

    Example:
        >>> composed("cafe\u0301") == "café"
        True
    """
    return unicodedata.normalize("NFC", name)


def match_names(
    names: Sequence[str] | None,
    expected: Sequence[str] | None,
    which: str,
    other: str,
    *,
    subset: bool = False,
    remedy: str = "",
) -> np.ndarray | None:
    """Find the index in `expected` of every class in `names`, if both have names.

    Args:
        names: as for `align_names`; None, or the numbers 0, 1, ..., if the classes have no names. Numbers in another
            order, or with gaps, count as names.
        expected: K class names, or None, likewise.
        which: as for `align_names`.
        other: as for `align_names`.
        subset: as for `align_names`.
        remedy: as for `align_names`.

    Returns:
        As for `align_names`; None if one side has no names, so that classes correspond by index.

    Raises:
        ValueError: as for `align_names`.

    Example:
        >>> match_names(["0", "1"], ["ham", "spam"], "the data", "the model") is None
        True
        >>> match_names(["1", "0"], ["0", "1"], "the data", "the model").tolist()
        [1, 0]
    """
    if names is None or expected is None or list(names) == list(expected):
        return None
    numbered = are_indices(names) + are_indices(expected)
    if numbered == 2 or (numbered and not set(map(str, names)) <= set(map(str, expected))):
        return None
    return align_names(names, expected, which, other, subset=subset, remedy=remedy)


def are_indices(names: Sequence[str]) -> bool:
    """Tell whether class names are only the class indices 0, 1, ..."""
    return list(map(str, names)) == [str(index) for index in range(len(names))]


def real_names(id2label: Mapping[Any, str] | None, num_classes: int) -> list[str] | None:
    """Read the class names of a model's config.

    Args:
        id2label: class index to name, from the config; keys may be strings.
        num_classes: K.

    Returns:
        K names; None if there are none, or only the generated names `LABEL_0`, `LABEL_1`, ...

    Example:
        >>> real_names({0: "cat", 1: "dog"}, 2), real_names({0: "LABEL_0", 1: "LABEL_1"}, 2)
        (['cat', 'dog'], None)
    """
    names = {int(index): str(name) for index, name in (id2label or {}).items()}
    if set(names) != set(range(num_classes)) or all(_GENERATED.fullmatch(name) for name in names.values()):
        return None
    return [names[index] for index in range(num_classes)]


def shown(names: Sequence[object]) -> str:
    """Format a list of names for a message: the first eight, and the number of the others."""
    rest = len(names) - _SHOWN
    return quoted(map(str, names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")


def indices_of_classes(labels: Iterable[Any], names: Sequence[str], what: str) -> list[int]:
    """Find the indices of classes that the user named.

    Args:
        labels: class names, or class indices unless all class names are integers.
        names: K class names.
        what: the option that names the classes, for error messages.

    Returns:
        The class indices.

    Raises:
        ValueError: there is no such class (the error suggests the nearest name), or a class is named twice.

    Example:
        >>> indices_of_classes(["fraud", 0], ["ham", "spam", "fraud"], "cost_matrix")
        [2, 0]
    """
    index_of = {str(label): index for index, label in enumerate(names)}
    if not_numbers := not all(map(_is_integer, index_of)):  # otherwise, 0 may be meant as a name that does not exist
        index_of = {str(index): index for index in range(len(names))} | index_of
    found = []
    for label in labels:
        if str(label) not in index_of:
            known = ", ".join(map(str, names[:10])) + (", …" if len(names) > 10 else "")
            hint = (not_numbers and did_you_mean(label, index_of)) or f" The labels are {known}."
            raise ValueError(f"{what} has the class {label!r}, which is not a label.{hint}")
        index = index_of[str(label)]
        if index in found:
            raise ValueError(f"{what} has the class {names[index]!r} twice. Keep one of them.")
        found.append(index)
    return found


def _is_integer(name: str) -> bool:
    try:
        int(name)
    except ValueError:
        return False
    return True
