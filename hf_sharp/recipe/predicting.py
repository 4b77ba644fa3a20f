"""Runs a saved model over rows, in batches and in order, with the preprocessing of its training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor
from transformers import PreTrainedModel

from hf_sharp.data.pictures import WIDE_MODES, to_rgb
from hf_sharp.recipe.boundary import UserError, stage
from hf_sharp.recipe.inputs import Row

_DECODER = datasets.Image()  # rotates images according to their EXIF data, as in training


@dataclass(frozen=True)
class Predictor:
    """A saved model with the preprocessing of its training.

    Args:
        model: the model, in evaluation mode and on its device.
        processor: its image processor or tokenizer.
        images: whether it takes images; otherwise it takes texts.
        max_length: texts are truncated to this many tokens.
        picture_range: the grey values to map to black and white in images of more than 8 bits per pixel, or None.
    """

    model: PreTrainedModel
    processor: Any
    images: bool
    max_length: int = 128
    picture_range: tuple[float, float] | None = None

    def batches(self, rows: Iterable[Row], batch_size: int) -> Iterator[tuple[list[Row], Tensor]]:
        """Run the model over rows; processes share the work, and every process gets all results.

        Args:
            rows: the rows; those with a fault are not passed to the model.
            batch_size: the number of rows per batch and process.

        Yields:
            The rows of a batch, with any new faults, and the logits (n, K) of the rows without a fault, in order.

        Raises:
            ValueError: the device does not have enough memory for a batch.
        """
        processes = PartialState()
        begin = processes.process_index * batch_size
        with ThreadPoolExecutor() as pool:
            following = iter(rows)
            while some := list(islice(following, batch_size * processes.num_processes)):
                prepared = list(pool.map(self._prepared, some[begin : begin + batch_size]))
                parts = [self._judged(some[begin : begin + batch_size], prepared)]
                if processes.num_processes > 1:
                    parts = gather_object(parts)
                yield [row for checked, _ in parts for row in checked], torch.cat([logits for _, logits in parts])

    def _judged(self, rows: list[Row], prepared: list[tuple[Any, str | None]]) -> tuple[list[Row], Tensor]:
        """Run the model over the rows without a fault; a row whose output is not finite gets a fault."""
        checked = [row._replace(value=None, fault=fault) for row, (_, fault) in zip(rows, prepared, strict=True)]
        inputs = [value for value, fault in prepared if fault is None]
        logits = self._logits(inputs) if inputs else torch.empty(0, int(self.model.config.num_labels or 0))
        sound = iter(logits)
        for i, row in enumerate(checked):
            if row.fault is None and not next(sound).isfinite().all():
                checked[i] = row._replace(fault="the model's output is not finite")
        return checked, logits[logits.isfinite().all(1)]

    def _prepared(self, row: Row) -> tuple[Any, str | None]:
        """Preprocess a row for a batch; return the model input, or None and the fault."""
        if row.fault is not None or not self.images:
            return row.value, row.fault
        try:
            value = row.value if isinstance(row.value, dict) else {"path": row.value, "bytes": None}
            picture = _DECODER.decode_example(value)
            if picture.mode in WIDE_MODES and self.picture_range is None:
                return None, (
                    f"an image of mode {picture.mode} has more than 8 bits, and the training recorded no range. Set "
                    "--picture_range LOW HIGH"
                )
            pixels = self.processor(to_rgb(picture, self.picture_range), return_tensors="pt")["pixel_values"]
            return pixels[0], None
        except FileNotFoundError:
            return None, "the file does not exist"
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error and others
            return None, " ".join(str(error).split())[:160] or type(error).__name__

    def _logits(self, inputs: list[Any]) -> Tensor:
        if self.images:
            batch: dict[str, Tensor] = {"pixel_values": torch.stack(inputs)}
        else:
            options = {"truncation": True, "max_length": self.max_length, "padding": True, "return_tensors": "pt"}
            batch = dict(self.processor(inputs, **options))
        try:
            with torch.inference_mode():
                on_device = {name: value.to(self.model.device) for name, value in batch.items()}
                return self.model(**on_device).logits.float().cpu()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{self.model.device} does not have enough memory for a batch of {len(inputs)}. Make it smaller with "
                "--batch_size."
            ) from error


def choose_device(name: str | None) -> torch.device:
    """Find the device to run on; if a launcher started several processes, connect to the others.

    Args:
        name: cpu, cuda, cuda:1, mps, ...; None for the accelerator that PyTorch finds, else the CPU.

    Returns:
        The device of this process.

    Raises:
        ValueError: this machine has no such device, or several processes would share it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if name not in (None, "cpu"):
            raise ValueError(f"every process uses its own accelerator, so --device {name} is not allowed. Remove it.")
        return PartialState(cpu=name == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")).device
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    with stage(f"the device {name!r} cannot be used", "Expected one such as cpu, cuda, cuda:1 or mps."):
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    return device
