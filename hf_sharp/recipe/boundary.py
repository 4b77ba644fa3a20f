"""Reports mistakes in one line: exceptions of libraries, Ctrl-C, missing packages. Works without torch.

`stage` wraps a part of a command outside the training step: options, data, model, output. An exception of a library
there is more often the user's mistake than a bug, and is shown as a mistake. Exceptions in a training step keep their
traceback.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TRACEBACK_FLAG = "--traceback"
_TRACEBACK = "HF_SHARP_TRACEBACK"  # the environment variable that passes the flag to started processes
_LONGEST = 400  # characters that are shown of a library's message
_RESUME = "--resume_from_checkpoint"
_new_folders: dict[Path, bool] = {}  # folders that the command writes, and whether they existed before


class UserError(ValueError):
    """A user's mistake, described in one or two lines."""


@contextmanager
def stage(failed: str, hint: str = "") -> Iterator[None]:
    """Turn exceptions of libraries into a `UserError`.

    Args:
        failed: what cannot be done if the block raises, as in "the dataset 'x' cannot be loaded".
        hint: what the user can do about it.

    Yields:
        Nothing.

    Raises:
        UserError: with `failed`, the first lines of the library's message, and `hint`. ValueErrors of this package are
            raised unchanged.
    """
    try:
        yield
    except Exception as error:
        if _is_ours(error):
            raise
        raise UserError(f"{failed}: {_in_short(error)}{' ' if hint else ''}{hint}") from error


def check_writable(folder: Path) -> None:
    """Raise a ValueError for an output folder that cannot be created or written to."""
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(
            f"the output folder {str(folder)!r} cannot be created: {str(above)!r} is not a writable folder."
        )


def discard_if_incomplete(folder: Path) -> None:
    """Make Ctrl-C and errors remove what the command has written into a new folder, so that it can be run again."""
    _new_folders[folder] = folder.exists()


def run_recipe(main: Callable[[], Any], interrupted: str | None = None) -> int | str | None:
    """Run a command; a user's mistake is returned as one line instead of a traceback.

    Args:
        main: the command, a function without arguments.
        interrupted: the message after Ctrl-C, with how to go on; None for the message of a training.

    Returns:
        The exit status: None, an error message, or 130 after Ctrl-C.

    Raises:
        Exception: for a bug in this package or the user's model; with `--traceback`, for every error.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    _silence_datasets()
    take_traceback_flag(sys.argv)
    _new_folders.clear()
    try:
        with _each_message_once():
            main()
        _leave_process_group()
    except KeyboardInterrupt:
        _discard_new_folders()
        if _shows_traceback():
            raise
        print(f"interrupted: {interrupted or _after_training()}", file=sys.stderr)
        return 130
    except Exception as error:
        _discard_new_folders()
        message = _message(error)
        if message is None or _shows_traceback():
            raise
        return f"error: {message}"
    return None


def _silence_datasets() -> None:
    # Failures in datasets are reported by this module. A script may already have imported datasets.
    if os.environ.setdefault("DATASETS_VERBOSITY", "critical") == "critical" and "datasets" in sys.modules:
        sys.modules["datasets"].logging.set_verbosity(logging.CRITICAL)


@contextmanager
def _each_message_once() -> Iterator[None]:
    """Show each log message of this package only once: options are checked again for each run to compare."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        if not record.name.startswith("hf_sharp"):
            return True
        kept = vars(record)
        if "is_new" not in kept:  # several handlers get the same record
            kept["is_new"] = record.getMessage() not in seen
            seen.add(record.getMessage())
        return bool(kept["is_new"])

    handlers = list(logging.root.handlers)
    for handler in handlers:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_new)


def _discard_new_folders() -> None:
    for folder, was_there in _new_folders.items():
        shutil.rmtree(folder, ignore_errors=True)
        if was_there:
            folder.mkdir()


def _after_training() -> str:
    # Commands that start trainings already make them resume.
    how = (
        "the same command"
        if any(word.replace("-", "_").startswith(_RESUME.replace("-", "_")) for word in sys.argv)
        else f"{_RESUME} true"
    )
    return f"{how} continues from the last checkpoint, if one was saved"


def take_traceback_flag(words: list[str]) -> None:
    """Remove `--traceback` from a command line, and remember it for this process and those that it starts."""
    if TRACEBACK_FLAG in words:
        words.remove(TRACEBACK_FLAG)
        os.environ[_TRACEBACK] = "1"


def _shows_traceback() -> bool:
    return bool(os.environ.get(_TRACEBACK))


def _message(error: Exception) -> str | None:
    # Returns None for an exception that is not the user's mistake.
    if isinstance(error, UserError):
        return f"{error} ({TRACEBACK_FLAG} shows where)" if error.__cause__ else str(error)
    if isinstance(error, ValueError) and _is_ours(error):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("hf_sharp"):
        return f"{_in_short(error)}. Install it with `pip install {str(error.name).split('.')[0]}`."
    return None


def _is_ours(error: BaseException) -> bool:
    if isinstance(error, UserError):
        return True
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    if not raised_in.is_file():  # frames of compiled libraries have relative names
        return False
    # Not the script's folder itself, which may contain a virtual environment.
    in_script = raised_in.is_relative_to(Path(sys.argv[0]).resolve().parent) and "site-packages" not in raised_in.parts
    return in_script or raised_in.is_relative_to(Path(__file__).resolve().parents[1])


def _in_short(error: BaseException) -> str:
    # A wrapper such as datasets.DatasetGenerationError is less informative than the exception that it wraps.
    while type(error).__name__ == "DatasetGenerationError" and error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _leave_process_group() -> None:
    # A process that leaves without destroying its group can abort the others.
    if (torch := sys.modules.get("torch")) is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
