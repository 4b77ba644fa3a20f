"""The `hf-sharp` command. Each subcommand is imported only when it is called, so that `--help` is fast."""

from __future__ import annotations

import importlib
import sys

from hf_sharp import __version__
from hf_sharp.recipe.boundary import run_recipe, take_traceback_flag
from hf_sharp.registry.nearest import did_you_mean

# Each command is the `main` of the module of that name in `hf_sharp.commands`.
COMMANDS = {
    "counts": "how many examples each class has, and what to try first",
    "train": "train from a config or from flags, through accelerate",
    "tune": "choose loss strength, method and radius on validation data",
    "compare": "train two configs with the same seeds: which is ahead, by how much",
    "evaluate": "the long-tail report of any checkpoint",
    "sharpness": "how flat the loss is around a trained model, per group of classes",
    "adjust": "correct a trained model for class imbalance, or for costs",
    "calibrate": "choose temperature and thresholds on validation data",
    "predict": "what a model says about new images or texts, row by row",
    "shift": "the class shares of new, unlabelled data: have they moved?",
    "card": "write the model card of a folder that a recipe trained",
}
# What to print after Ctrl-C instead of "nothing was saved". Training processes print their own message.
INTERRUPTED = {
    "tune": "the same command goes on with the search",
    "compare": "the same command goes on with the comparison",
}


def usage() -> str:
    """List the commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            f"hf-sharp {__version__}: fine-tuning where a few classes have most of the examples",
            "",
            "usage: hf-sharp COMMAND [options]; hf-sharp COMMAND --help lists them",
            "--version shows the version; --traceback where an error was raised",
            "",
            *lines,
        ]
    )


def main(argv: list[str] | None = None) -> int | str:
    """Run a command; an error made by the user is reported in one line, with exit status 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    take_traceback_flag(words)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        return f"error: unknown command {name!r}; the commands are {', '.join(COMMANDS)}.{did_you_mean(name, COMMANDS)}"
    said = INTERRUPTED.get(name, "nothing was saved")
    return run_recipe(lambda: importlib.import_module(f"hf_sharp.commands.{name}").main(rest), said) or 0


if __name__ == "__main__":
    sys.exit(main())
