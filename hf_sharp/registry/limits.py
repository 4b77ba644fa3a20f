"""Checks that a value is a number within its limits. Works without torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from numbers import Integral
from typing import Any

_LIMITS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    whole: bool = False,
    share: bool = False,
    optional: bool = False,
) -> None:
    """Raise a ValueError for a value that is not a finite number within its limits.

    Args:
        name: what the user calls the value.
        value: the value: a number of Python, NumPy or torch, but no text and no bool.
        above: the number must be larger.
        least: the smallest number allowed.
        below: the number must be smaller.
        most: the largest number allowed.
        whole: whether the number must be an integer.
        share: whether the number is a share, so that a number above 1 may be a percentage.
        optional: whether None is allowed.

    Raises:
        ValueError: what was expected, and the value; for a percentage also the share.

    Example:
        >>> check_number("coverage", 95, above=0, below=1, share=True)
        Traceback (most recent call last):
        ValueError: coverage must be a number > 0 and < 1, got 95. For 95 % write 0.95.
    """
    if optional and value is None:
        return
    limits = {
        sign: limit for sign, limit in zip(_LIMITS, (above, least, below, most), strict=True) if limit is not None
    }

    def fits(number: float) -> bool:
        return math.isfinite(number) and all(_LIMITS[sign](number, limit) for sign, limit in limits.items())

    number = math.nan if whole and not isinstance(value, Integral) else _as_float(value)
    if fits(number):
        return
    kind = "an integer" if whole else "a number" if {"<", "<="} & limits.keys() else "a finite number"
    bounds = " and ".join(f"{sign} {limit:.12g}" for sign, limit in limits.items())
    got = repr(value) if isinstance(value, str) else value
    hint = f" For {number:g} % write {number / 100:g}." if share and number > 1 and fits(number / 100) else ""
    raise ValueError(f"{name} must be {kind} {bounds}".rstrip() + f", got {got}.{hint}")


def check_numbers(options: Any, limits: Mapping[str, Mapping[str, Any]]) -> None:
    """Check the numbers among the options of a command line.

    Args:
        options: an object with the options as attributes: numbers, or lists of numbers.
        limits: the keywords of `check_number` by option.

    Raises:
        ValueError: as for `check_number`; the option is named as on the command line.

    Example:
        >>> from types import SimpleNamespace
        >>> check_numbers(SimpleNamespace(ridges=[0.1, 0.0]), {"ridges": {"above": 0}})
        Traceback (most recent call last):
        ValueError: --ridges must be a finite number > 0, got 0.0.
    """
    for name, limit in limits.items():
        value = getattr(options, name)
        for number in value if isinstance(value, list) else [value]:
            check_number(f"--{name}", number, **limit)


def _as_float(value: Any) -> float:
    if isinstance(value, (str, bytes, bool)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
