"""The budget of a search: a number of runs, or a time."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Budget:
    """A number of runs, or a time.

    Attributes:
        runs: the number of runs, or None.
        seconds: the time in seconds, or None.
    """

    runs: int | None = None
    seconds: float | None = None

    def allows(self, durations: list[float]) -> bool:
        """Tell whether the budget allows another run.

        Args:
            durations: the seconds of the runs so far; another run is expected to take their mean.

        Returns:
            True if the next run fits; the first run always does.

        Example:
            >>> Budget(seconds=100).allows([40.0, 20.0]), Budget(seconds=100).allows([40.0, 30.0])
            (True, False)
            >>> Budget(runs=3).allows([40.0, 30.0])
            True
        """
        if self.runs is not None:
            return len(durations) < self.runs
        mean = sum(durations) / len(durations) if durations else 0.0
        return sum(durations) + mean <= (self.seconds or 0.0) or not durations


def read_budget(text: str) -> Budget:
    """Read a budget.

    Args:
        text: such as 20runs, 90s, 30m, 2h or 1d.

    Returns:
        The budget.

    Raises:
        ValueError: the text has none of these forms, or is 0.

    Example:
        >>> read_budget("20runs"), read_budget("1.5h")
        (Budget(runs=20, seconds=None), Budget(runs=None, seconds=5400.0))
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(runs?|s|m|min|h|d)", str(text).strip().lower())
    number, unit = (float(found[1]), found[2]) if found else (0.0, "")
    whole = unit.startswith("run") and number == int(number)
    if number <= 0 or (unit.startswith("run") and not whole):
        raise ValueError(f"budget must be a number of runs or a time above 0, such as 20runs or 2h; got {text!r}.")
    return Budget(runs=int(number)) if whole else Budget(seconds=number * _SECONDS[unit])
