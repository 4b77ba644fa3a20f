"""One training run, the key that its files are named after, and the machine that it runs on."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import tasks
import torch

RATE_SEEDS = (0,)
TUNING_SEEDS = (0, 1)
FINAL_SEEDS = (10, 11, 12, 13, 14)
BATCH = 32


class Run(NamedTuple):
    """One training run.

    Args:
        task: the task's name.
        tuning: "full", "lora" or "scratch".
        head: "noise" or "class_mean".
        rate: the learning rate.
        options: options of `SharpTrainingArguments`, as sorted pairs.
        seed: the seed of the split, the initial weights and the order of examples.
    """

    task: str
    tuning: str
    head: str
    rate: float
    options: tuple[tuple[str, Any], ...]
    seed: int

    def values(self) -> dict[str, Any]:
        """List everything the run depends on, as JSON values."""
        module = tasks.load(self.task)
        return {
            **self._asdict(),
            "options": dict(self.options),
            "version": module.VERSION,
            "epochs": module.EPOCHS,
            "backbone": module.BACKBONE,
            "batch": BATCH,
        }

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that identify the run."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()[:16]


def make_run(task: str, base: tuple[str, str], rate: float, seed: int, *options: Mapping[str, Any]) -> Run:
    """Make a run; later options override earlier ones."""
    merged = {name: value for part in options for name, value in part.items()}
    return Run(task, *base, rate, tuple(sorted(merged.items())), seed)


def machine_class() -> str:
    """Describe the machine without its name: cores, architecture, memory, and the GPU if there is one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f"{torch.cuda.get_device_name()}, several runs at a time" if torch.cuda.is_available() else "CPU only"
    return f"{os.cpu_count()} cores {platform.machine()}, {memory:.0f} GB, {gpu}, one thread per run"
