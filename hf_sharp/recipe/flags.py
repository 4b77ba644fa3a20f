"""Command lines whose mistakes (unknown flags, extra arguments, wrong types) give one-line errors. Needs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, Never

from hf_sharp.registry.nearest import did_you_mean


def raise_errors(parser: argparse.ArgumentParser) -> None:
    """Make a parser raise a ValueError instead of printing its whole usage."""

    def error(message: str) -> Never:
        raise ValueError(f"{message}. --help lists the options.")

    setattr(parser, "error", error)  # noqa: B010 (a method, to mypy)


class Flags(argparse.ArgumentParser):
    """An `ArgumentParser` that allows no abbreviated flags and raises ValueErrors.

    Args:
        **options: as for `ArgumentParser`.

    Raises:
        ValueError: a flag is unknown (the nearest valid one is named), there is an extra argument, a value has a wrong
            type or is not a choice, or an argument is missing.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        raise_errors(self)

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse a command line; raise a ValueError for anything that the parser does not know."""
        parsed, unknown = self.parse_known_args(argv)
        refuse_words(unknown, flag_names(self))
        return parsed


def flag_names(parser: argparse.ArgumentParser) -> list[str]:
    """List the flags of a parser without their dashes."""
    return [flag.lstrip("-") for action in parser._actions for flag in action.option_strings if flag.startswith("--")]


def refuse_words(words: Sequence[str], known: Iterable[str]) -> None:
    """Raise a ValueError for unknown flags and extra arguments."""
    check_names([word.lstrip("-").split("=")[0] for word in words if word.startswith("--")], known, "flag")
    if words:
        raise ValueError(f"unexpected arguments on the command line: {' '.join(words)}")


def check_names(names: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Raise a ValueError for the first unknown name, and suggest the nearest known one."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what}: {name!r}.{did_you_mean(name, known) or ' --help lists the options.'}")
