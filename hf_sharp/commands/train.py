"""`hf-sharp train`: train from a config, from flags or from both, through accelerate."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from hf_sharp.recipe.config_file import read_config
from hf_sharp.recipe.flags import Flags

_PLACES = (Path(__file__).parents[1] / "accelerate", Path(__file__).parents[2] / "recipes" / "accelerate")
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # by system
_GRACE = 30  # seconds that a training has to shut down


class _Stopped(BaseException):
    """Raised when a signal asks for the training to end."""


def accelerate_config(name: str) -> Path:
    """Find an accelerate config: a file, or one that comes with the recipes.

    Args:
        name: a path, or `single_gpu`, `ddp`, `fsdp2`, `multi_node`.

    Returns:
        The path of the config.

    Raises:
        ValueError: there is no such config; the error lists the available ones.
    """
    candidates = [Path(name), *(folder / f"{name}.yaml" for folder in _PLACES)]
    for file in candidates:
        if file.is_file():
            return file
    known = sorted({file.stem for folder in _PLACES for file in folder.glob("*.yaml")})
    raise ValueError(f"there is no accelerate config {name!r}; expected a file, or one of {', '.join(known)}.")


def launch(config: str | None, flags: Sequence[str], accelerate: str = "single_gpu") -> None:
    """Train in processes that accelerate starts, and that end when this process ends.

    Args:
        config: a YAML file of options, or None.
        flags: options that override it.
        accelerate: as for `accelerate_config`.

    Raises:
        SystemExit: the training failed or was stopped; it has reported why.
    """
    command = _command(config, flags, accelerate)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, _raise_stopped)
    training = subprocess.Popen(command, start_new_session=True)  # a process group of its own, to pass signals to
    try:
        code = training.wait()
    except _Stopped as stopped:
        code = _stop(training, int(stopped.args[0]))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise SystemExit(code)


def _command(config: str | None, flags: Sequence[str], accelerate: str) -> list[str]:
    launcher = [sys.executable, "-m", "hf_sharp.commands.launcher"]
    launcher += ["--config_file", str(accelerate_config(accelerate)), "--quiet", "-m", "hf_sharp.recipe"]
    return [*launcher, *(["--config", config] if config else []), *flags]


def _raise_stopped(number: int, frame: Any) -> None:
    raise _Stopped(number)


def _stop(training: subprocess.Popen, number: int) -> int:
    try:
        _send(training, number)
        training.wait(_GRACE)
    except (_Stopped, subprocess.TimeoutExpired):  # a second signal, or no answer
        pass
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        _send(training, getattr(signal, "SIGKILL", signal.SIGTERM))  # whatever still runs
    training.wait()
    return 128 + number


def _send(training: subprocess.Popen, number: int) -> None:
    if hasattr(os, "killpg"):
        os.killpg(training.pid, number)
    else:  # on Windows, every signal ends a process
        for process in (*psutil.Process(training.pid).children(recursive=True), training):
            process.terminate()


def main(argv: list[str]) -> None:
    """Launch a training.

    Args:
        argv: the arguments after `hf-sharp train`.

    Raises:
        ValueError: there is no such config or accelerate config, or neither config nor flags name data and model.
    """
    parser = Flags(
        prog="hf-sharp train",
        usage="hf-sharp train [CONFIG] [options]",
        description="Train from CONFIG, a YAML file of options, from flags, or from both. Every option of the "
        "recipes is a flag that overrides the config: --rho 0.1, --compare_with baseline, "
        "--resume_from_checkpoint true, ... `python -m hf_sharp.recipe --help` lists them, those of hf_sharp last.",
    )
    parser.add_argument(
        "--accelerate",
        default="single_gpu",
        help="an accelerate config: single_gpu, ddp, fsdp2, multi_node or a file (default: single_gpu)",
    )
    # Only the first argument can be a config: an argument after a flag is its value.
    config = argv[0] if argv and not argv[0].startswith("-") else None
    arguments, flags = parser.parse_known_args(argv[1:] if config else argv)
    if config is None and not flags:
        raise ValueError("name a config, or the data and the model: hf-sharp train CONFIG, or --dataset and others.")
    if config is not None:
        read_config(config)  # report mistakes at once: starting the processes takes seconds
    launch(config, flags, arguments.accelerate)
