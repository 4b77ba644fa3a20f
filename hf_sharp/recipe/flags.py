"""Command lines: unknown flags, stray words and wrong types are errors of one line. Works without torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, Never

from hf_sharp.registry.nearest import did_you_mean


def raise_errors(parser: argparse.ArgumentParser) -> None:
    """Let a parser raise a ValueError where argparse prints its whole usage."""

    def error(message: str) -> Never:
        raise ValueError(f"{message}. --help lists the options.")

    setattr(parser, "error", error)  # noqa: B010 (a method, to mypy)


class Flags(argparse.ArgumentParser):
    """An `ArgumentParser` that takes no abbreviations and raises ValueErrors.

    Args:
        **options: as for `ArgumentParser`.

    Raises:
        ValueError: an unknown flag (the nearest valid one is named), a stray word, a wrong type or choice, or a
            missing argument.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        raise_errors(self)

    def read(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse a command line and refuse what the parser does not know."""
        parsed, unknown = self.parse_known_args(argv)
        refuse_words(unknown, flag_names(self))
        return parsed


def flag_names(parser: argparse.ArgumentParser) -> list[str]:
    """List the flags of a parser without their dashes."""
    return [flag.lstrip("-") for action in parser._actions for flag in action.option_strings if flag.startswith("--")]


def refuse_words(words: Sequence[str], known: Iterable[str]) -> None:
    """Raise a ValueError for unknown flags and stray words."""
    check_names([word.lstrip("-").split("=")[0] for word in words if word.startswith("--")], known, "flag")
    if words:
        raise ValueError(f"unexpected words on the command line: {' '.join(words)}")


def check_names(names: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Raise a ValueError for the first name that is not known, with the nearest known one."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what}: {name!r}.{did_you_mean(name, known) or ' --help lists the options.'}")
