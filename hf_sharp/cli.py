"""The `hf-sharp` command. Every command imports what it needs when it is called, so that `--help` is there at once."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hf_sharp import __version__


def _adjust(argv: list[str]) -> None:
    from hf_sharp.commands.adjust import main

    main(argv)


# Name to what it does, in one line, and the function that does it.
COMMANDS: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    "adjust": ("fold a correction for class imbalance into the head of a trained model", _adjust),
}


def usage() -> str:
    """Show the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (what, _) in COMMANDS.items()]
    return "\n".join(
        [
            f"hf-sharp {__version__}: fine-tuning on data where a few classes have most of the examples",
            "",
            "usage: hf-sharp COMMAND [options]; hf-sharp COMMAND --help",
            "",
            *lines,
        ]
    )


def main(argv: list[str] | None = None) -> int | str:
    """Run a command; an error of this package's own is one line and exit status 1."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        return f"error: unknown command {name!r}; the commands are {', '.join(COMMANDS)}."
    from hf_sharp.recipe.runs import run_recipe

    return run_recipe(lambda: COMMANDS[name][1](rest)) or 0


if __name__ == "__main__":
    sys.exit(main())
