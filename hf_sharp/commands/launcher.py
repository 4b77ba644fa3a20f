"""The process between `hf-sharp train` and the training: accelerate's launcher, without its tracebacks."""

from __future__ import annotations

import signal
import sys
from typing import Any


def main() -> int:
    """Launch what the command line says; Ctrl-C and a failed training are reported by the training alone."""
    interrupted = []

    def note(number: int, frame: Any) -> None:
        interrupted.append(number)

    signal.signal(signal.SIGINT, note)  # the training gets it too, and answers; this process waits for it
    from accelerate.commands.launch import main as launch

    try:
        launch()
    except SystemExit as end:
        return 128 + interrupted[0] if interrupted else int(end.code or 0) if not isinstance(end.code, str) else 1
    except BaseException:  # torch's elastic launcher raises for signals and failed workers
        if interrupted:
            return 128 + interrupted[0]
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
