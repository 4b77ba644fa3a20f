"""`hf-sharp train`: a config, through accelerate."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PLACES = (Path(__file__).parents[1] / "accelerate", Path(__file__).parents[2] / "recipes" / "accelerate")


def accelerate_config(name: str) -> Path:
    """Find an accelerate config: a file, or one of the recipes' by name.

    Args:
        name: a path, or `single_gpu`, `ddp`, `fsdp2`, `multi_node`.

    Returns:
        The file.

    Raises:
        ValueError: there is none; those that there are are named.
    """
    candidates = [Path(name), *(folder / f"{name}.yaml" for folder in _PLACES)]
    for file in candidates:
        if file.is_file():
            return file
    known = sorted({file.stem for folder in _PLACES for file in folder.glob("*.yaml")})
    raise ValueError(f"there is no accelerate config {name!r}; expected a file, or one of {', '.join(known)}.")


def launch(config: str, flags: Sequence[str], accelerate: str = "single_gpu") -> None:
    """Train as a config says, in processes that accelerate starts.

    Args:
        config: a YAML file of options.
        flags: options that override it.
        accelerate: as for `accelerate_config`.

    Raises:
        SystemExit: the training failed; it has said why.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(accelerate_config(accelerate))]
    command += ["--quiet"]  # no traceback of the launcher below what the training said
    command += ["-m", "hf_sharp.recipe", "--config", config, *flags]
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def main(argv: list[str]) -> None:
    """Launch.

    Args:
        argv: the words after `hf-sharp train`.
    """
    parser = argparse.ArgumentParser(
        prog="hf-sharp train",
        description="Train as a config says. Every option of the recipes is a flag that overrides it: --rho 0.1, "
        "--compare_with baseline, --resume_from_checkpoint true, ... `python -m hf_sharp.recipe --help` lists them, "
        "those of hf_sharp last.",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="A YAML file of options, as in recipes/configs.")
    parser.add_argument(
        "--accelerate", default="single_gpu", help="An accelerate config: single_gpu, ddp, fsdp2, multi_node or a file."
    )
    arguments, flags = parser.parse_known_args(argv)
    launch(arguments.config, flags, arguments.accelerate)
