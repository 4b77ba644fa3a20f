"""Processes in which the real `huggingface_hub` client talks to the test server.

The client reads its server's address on import. So one process starts with that address, imports everything needed,
and is forked for every call: each call has its own client, and takes a tenth of a second.
"""

import contextlib
import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants


class Failed(Exception):
    """An exception raised in the client's process: its name, its text, and its printed traceback."""

    def __init__(self, kind: str, text: str, printed: str) -> None:
        self.kind, self.text, self.printed = kind, text, printed
        super().__init__(f"{kind}: {text}")


class Client:
    """Calls each function in a new process, and collects their logs in one file.

    Args:
        endpoint: the URL of the server.
        folder: for the client's home and the log.
    """

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.log, self.home = folder / "log.txt", folder / "home"
        self.environment = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_DEBUG": "1",  # logs every request, as a curl command
            "TRANSFORMERS_VERBOSITY": "debug",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(
            ["hf_sharp", "transformers.pipelines", "tests.hub.client", "tests.hub.tasks"]
        )
        with set_environment(self.environment):
            self.context.Process(target=os.getpid).start()

    def run(self, function: Callable, *arguments: Any, environment: dict[str, str] | None = None) -> Any:
        """Call a function in a new process, and return what it returns or raise `Failed`."""
        here, there = self.context.Pipe(duplex=False)
        target = (function, arguments, there, str(self.log), environment or {})
        process = self.context.Process(target=_run, args=target)
        process.start()
        there.close()
        try:
            returned, failed = here.recv()
        except EOFError:
            raise RuntimeError(f"the process ended:\n{self.log.read_text()[-3000:]}") from None
        process.join(60)
        if failed:
            raise Failed(*failed)
        return returned


@contextlib.contextmanager
def set_environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them."""
    before = dict(os.environ)
    os.environ.update(values)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(function: Callable, arguments: tuple, pipe: Any, log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    file = open(log, "a", buffering=1)  # noqa: SIM115
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    logging.basicConfig(level=logging.DEBUG, stream=file, force=True)
    print(f"==== {function.__name__}", file=file)
    try:
        if not constants.ENDPOINT.startswith("http://127.0.0.1:"):
            raise RuntimeError(f"{constants.ENDPOINT} is not the test server")
        pipe.send((function(*arguments), None))
    except Exception as error:
        printed = traceback.format_exc()
        print(printed, file=file)
        pipe.send((None, (type(error).__name__, str(error), printed)))
    pipe.close()
