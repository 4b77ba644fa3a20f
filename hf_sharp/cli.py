"""The `hf-sharp` command. Every command imports what it needs when it is called, so that `--help` is there at once."""

from __future__ import annotations

import importlib
import sys

from hf_sharp import __version__

# Name to what it does, in one line; how, is in the module of `hf_sharp.commands` of that name.
COMMANDS = {
    "counts": "how many examples each class of a dataset has, and what to begin with",
    "train": "train as a config says, through accelerate",
    "compare": "train two configs with the same seeds, and say by how much one is ahead",
    "evaluate": "the long-tail report of any checkpoint",
    "sharpness": "how flat a trained model lies, per group of classes, alone or beside another one",
    "card": "write the model card of a folder that a recipe trained",
    "adjust": "fold a correction for class imbalance into the head of a trained model",
}


def usage() -> str:
    """Show the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
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

    command = importlib.import_module(f"hf_sharp.commands.{name}")
    return run_recipe(lambda: command.main(rest)) or 0


if __name__ == "__main__":
    sys.exit(main())
