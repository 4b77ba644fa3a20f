"""Sends plots to the trackers in `report_to`, through the Trainer's callbacks and without importing the trackers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hf_sharp.reports.plots import plot_recall_by_count


def takes_pictures(callback: Any) -> bool:
    """Tell whether a callback belongs to a tracker that can show images and has an active run."""
    if getattr(callback, "tb_writer", None) is not None:
        return True
    return _tracker(callback) is not None and bool(getattr(callback, "_initialized", False))


def send_picture(callbacks: Iterable[Any], name: str, file: str | Path, step: int) -> None:
    """Log an image to tensorboard, wandb and trackio, as far as they are among the callbacks.

    Args:
        callbacks: the Trainer's callbacks, `trainer.callback_handler.callbacks`.
        name: the name of the image in the tracker, such as `eval/recall_by_count`.
        file: the image file.
        step: the training step.
    """
    with Image.open(file) as image:
        picture = image.convert("RGB")
    for callback in filter(takes_pictures, callbacks):
        if (tracker := _tracker(callback)) is not None:
            tracker.log({name: tracker.Image(picture), "train/global_step": step})
        else:
            callback.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
            callback.tb_writer.flush()


def send_recall(callbacks: Sequence[Any], report: Mapping[str, Any], prefix: str, step: int) -> None:
    """Draw recall against class count, and log the plot to the trackers that can show images.

    Args:
        callbacks: the Trainer's callbacks.
        report: a long-tail report.
        prefix: the prefix of the image's name in the tracker, such as `eval`.
        step: the training step.
    """
    if any(map(takes_pictures, callbacks)):
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder, "recall_by_count.png")
            plot_recall_by_count({"this model": report}, picture)
            send_picture(callbacks, f"{prefix}/recall_by_count", picture, step)


def finish_runs(callbacks: Iterable[Any]) -> None:
    """Close the trackers' runs, so that the next training in this process starts a new one."""
    for callback in filter(takes_pictures, callbacks):
        if (tracker := _tracker(callback)) is not None:
            tracker.finish()
            callback._initialized = False
        else:
            callback.tb_writer.close()
            callback.tb_writer = None


def _tracker(callback: Any) -> Any:
    return getattr(callback, "_wandb", None) or getattr(callback, "_trackio", None)
