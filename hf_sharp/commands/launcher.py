"""The process between `hf-sharp train` and the training: accelerate's launcher, without its tracebacks."""

from __future__ import annotations

import signal
import sys
from typing import Any


def main() -> int:
    """Launch the given command line; only the training reports Ctrl-C and its own failures."""
    interrupted = []

    def note(number: int, frame: Any) -> None:
        interrupted.append(number)

    signal.signal(signal.SIGINT, note)  # the training receives it too, and handles it; this process waits
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
