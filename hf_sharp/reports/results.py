"""What a run leaves behind: `all_results.json`, from which its model card is made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from transformers import TrainerCallback

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.reports.long_tail_report import numbers_of, report_of_prediction

RESULTS = "all_results.json"


def read_results(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `all_results.json` of a run.

    Args:
        folder: the run's.

    Returns:
        The results.

    Raises:
        ValueError: there is no such file, or not one with a report: the Trainer's own `save_metrics` uses that name
            as well.
    """
    file = Path(folder) / RESULTS
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(results, dict) or not {"report", "options"} <= results.keys():
        raise ValueError(
            f"{str(file)!r} is not there, or has no long-tail report: the recipes write it after training."
        )
    return results


class ReportKeeper(TrainerCallback):
    """Computes the metrics of an evaluation, and keeps the whole report for as long as it is one of these weights.

    Args:
        frequencies: of the training set.
    """

    def __init__(self, frequencies: ClassFrequencies) -> None:
        self.frequencies = frequencies
        self.report: dict[str, Any] | None = None
        self._computed: dict[str, Any] | None = None  # by an evaluation, or by a prediction
        self._of_step: dict[int, dict[str, Any]] = {}

    def compute_metrics(self, prediction: Any) -> dict[str, float]:
        """Compute what `compute_metrics_for` does, and keep the report, if an evaluation asks for it."""
        self._computed = report_of_prediction(prediction, self.frequencies)
        return numbers_of(self._computed)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the report, and remember which step it is of; of a set without labels there is none."""
        self.report, self._computed = self._computed, None
        if self.report is not None:
            self._of_step[state.global_step] = self.report

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Forget what a prediction computed: it is about other examples."""
        self._computed = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the report: the weights are about to change."""
        self.report = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the report of the weights that were loaded at the end, if they are the best ones."""
        if args.load_best_model_at_end and state.best_global_step:
            self.report = self._of_step.get(state.best_global_step)
        self._of_step.clear()


def results_of(trainer: Any, report: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collect of a trainer what `all_results.json` would hold.

    Args:
        trainer: a `SharpTrainer`.
        report: the long-tail report of its weights as they are; None: they were not evaluated.

    Returns:
        Results, for `build_card`.
    """
    args, frequencies = trainer.args, trainer.class_frequencies
    logged: dict[str, Any] = next(
        (entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry), {}
    )
    common = (
        *("seed", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm"),
        *("bf16", "fp16"),
    )
    values = args.to_dict()
    started_from = getattr(getattr(trainer.model, "config", None), "_name_or_path", None)
    return {
        "report": report
        or {
            "class_counts": frequencies.counts.tolist(),
            "rare_threshold": frequencies.rare_threshold,
            "common_threshold": frequencies.common_threshold,
        },
        "training": {k: logged[k] for k in ("train_runtime", "train_steps_per_second", "train_loss") if k in logged},
        "options": args.method
        | {name: values[name] for name in common if name in values}
        | ({"model_name_or_path": started_from} if started_from else {}),
        "machine": machine_class(),
        "versions": versions(),
    }


def local_names(options: Mapping[str, Any]) -> list[str]:
    """Find which names of a run are files of this machine; kept with its results, for a card made on another one.

    Args:
        options: of the run, by name.

    Returns:
        Its data set and its model, as they were given, where they are no names on the Hub.
    """
    given = (options.get("dataset"), options.get("model_name_or_path"))
    return [name for name in given if name and os.path.exists(name)]


def machine_class() -> str:
    """Say what a figure was measured on: "2 CPU cores, x86_64", or the GPUs' names."""
    if torch.cuda.is_available():
        return f"{PartialState().num_processes} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def versions() -> dict[str, str]:
    """Say which versions of what matters are installed."""
    return {name: version(name) for name in ("hf-sharp", "torch", "transformers", "datasets", "accelerate")}
