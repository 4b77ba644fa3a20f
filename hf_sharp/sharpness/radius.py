"""The radius ρ of the ascent, over the course of training."""

from __future__ import annotations

import math
from collections.abc import Callable

RHO_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
}


def scheduled_rho(rho: float, schedule: str, progress: float) -> float:
    """Give the radius at a point of training.

        constant: ρ        linear: ρ (1 − t)        cosine: ρ (1 + cos πt) / 2

    Args:
        rho: ρ >= 0, the radius at the start, an L2 norm over all trainable parameters.
        schedule: one of `RHO_SCHEDULES`.
        progress: t, the fraction of training done; beyond [0, 1] it counts as the nearer end.

    Returns:
        The radius, a number on the host.

    Raises:
        ValueError: an unknown schedule.

    Example:
        >>> scheduled_rho(0.1, "linear", 0.25), scheduled_rho(0.1, "cosine", 0.5)
        (0.07500000000000001, 0.05)
    """
    if schedule not in RHO_SCHEDULES:
        raise ValueError(f"unknown rho_schedule {schedule!r}; the schedules are {', '.join(RHO_SCHEDULES)}.")
    return rho * RHO_SCHEDULES[schedule](min(max(progress, 0.0), 1.0))
