"""The saving part of the trainer: exact resuming, and pushes that report failures and contain no local paths."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput

from hf_sharp.data.local_paths import without_paths
from hf_sharp.model.records import forget_records
from hf_sharp.trainer import choosing
from hf_sharp.trainer.checkpoint_files import (
    MethodState,
    best_beside,
    check_adapter_keys,
    check_keys,
    check_same_method,
    check_whole,
    is_whole_model,
    load_weights,
    method_file,
    whole_checkpoint,
    written_method,
)
from hf_sharp.trainer.hub import ADAPTER, fetch_checkpoint, hide_paths, make_branch, name_no_local_base, show_paths
from hf_sharp.trainer.training_record import TrainingRecord, advice, weights_are_finite
from hf_sharp.training_args import SAVED_AS, SharpTrainingArguments

logger = logging.getLogger(__name__)


class NotFiniteError(ValueError):
    """Raised when losses or weights become infinite or NaN during training."""


class SavingTrainer(Trainer):
    """`Trainer` that resumes exactly from a checkpoint, or says why it cannot, and that reports failed pushes.

    It loads weights under any key names, skips incomplete checkpoints, and rejects those of a different method.
    """

    args: SharpTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stateful: dict[str, Any] = {}
        self.method_state = MethodState({}, self.args.world_size, self.args.save_only_model)
        self.add_callback(self.method_state)
        self._pushes, self._best = False, cast(str | None, None)
        self._hidden: dict[Path, str] = {}  # files that are being pushed, and their original contents
        self.record = TrainingRecord(self.args.device)
        self.add_callback(self.record)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does; a checkpoint to resume from must be complete, with the same method and class counts.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the last complete one in `output_dir`.
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            As for `Trainer`.

        Raises:
            ValueError: the checkpoint is incomplete, or has a different method or class counts; or losses or weights
                became infinite or NaN.
        """
        self._settle_options()
        if resume_from_checkpoint is True:
            index, processes = self.args.process_index, self.args.world_size
            resume_from_checkpoint = whole_checkpoint(str(self.args.output_dir), index, processes) or True
        elif resume_from_checkpoint:
            resume_from_checkpoint = fetch_checkpoint(os.fspath(resume_from_checkpoint), self.args.hub_token)
            check_whole(resume_from_checkpoint, self.args.process_index)
        if isinstance(resume_from_checkpoint, str):
            check_same_method(resume_from_checkpoint, self.method_state.method)
            self._best = best_beside(resume_from_checkpoint)
        forget_records(self.model)
        self._before_training(fresh=not resume_from_checkpoint)
        self.record.start_again({}, 0)
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._stop_if_not_finite(ended=True)
        return output._replace(training_loss=output.metrics.get("train_loss", output.training_loss))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as `Trainer` does; time and loss of a resumed training include the parts before it was resumed.

        Args:
            logs: the values to log.
            start_time: the start of training.

        Raises:
            ValueError: the training losses since the last log are not finite.
        """
        if "train_runtime" in logs:
            self._stop_if_not_finite(weights=False)
            logs.update(self.record.of_all_parts(logs, self.state.global_step))
        super().log(logs, start_time)
        if "loss" in logs:
            self._stop_if_not_finite(weights=False)

    def _stop_if_not_finite(self, weights: bool = True, ended: bool = False) -> None:
        # Called only where values are read from the device anyway: at logs, at checkpoints and at the end.
        processes = self.args.world_size

        def total(sums: torch.Tensor) -> torch.Tensor:
            return self.accelerator.reduce(sums, "sum") if processes > 1 else sums

        bad, seen = self.record.pop(total, processes)
        if not (bad or weights):
            return
        sound = weights_are_finite(cast(nn.Module, self.model), total)
        # The float16 scaler skips steps with infinite losses, which is harmless as long as other losses are finite.
        tolerated = getattr(self.accelerator, "scaler", None) is not None and not (ended and bad == seen)
        if sound and (not bad or tolerated):
            return
        message = advice(self.args, self.state.global_step, "the loss is" if sound else "loss and weights are")
        if self.hp_search_backend is None:
            raise NotFiniteError(message)
        logger.warning("%s The search goes on.", message)
        self.control.should_training_stop = True

    def _settle_options(self) -> None:
        """Check options that were changed after the trainer was created, and apply them."""

    def _before_training(self, fresh: bool) -> None:
        """Prepare a training; `fresh` is False if it resumes from a checkpoint."""

    def _check_best_metric(self, metrics: Mapping[str, float]) -> None:
        # An evaluation comes before the checkpoint of its step, so save one: the training so far must not be lost.
        try:
            choosing.check_reported(self.args.metric_for_best_model, metrics)
        except ValueError as error:
            if self.state.global_step and self.hp_search_backend is None:
                self._save_checkpoint(cast(nn.Module, self.model), None)
                folder = self._get_output_dir(None)
                raise ValueError(f"{error} The training so far is saved in {folder!r}: resume from there.") from error
            raise

    def _remember(self, method: dict[str, Any] | None = None, **stateful: Any) -> None:
        """Set the method, and its parts with a state, that checkpoints record.

        Args:
            method: a new method, whose parts replace all earlier parts; None adds parts to the current method.
            **stateful: the parts by name: objects with a `state_dict`, or None.
        """
        before = {} if method is not None else self._stateful
        self._stateful = before | {name: part for name, part in stateful.items() if part is not None}
        self.method_state.stateful = list(self._stateful)
        if method is not None:
            self.method_state.method = method

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._stateful:
            states = {name: part.state_dict() for name, part in self._stateful.items()}
            os.makedirs(output_dir, exist_ok=True)
            torch.save(states, os.path.join(output_dir, method_file(self.args.process_index)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if not self._stateful or checkpoint is None:
            return
        own, first = (os.path.join(checkpoint, method_file(index)) for index in (self.args.process_index, 0))
        if os.path.isfile(file := own if os.path.isfile(own) else first):
            states = torch.load(file, map_location="cpu", weights_only=True)
            same_processes = (written_method(Path(checkpoint)) or {}).get("num_processes") == self.args.world_size
            for name, part in self._stateful.items():
                part.load_state_dict(states[name])
                if not same_processes and hasattr(part, "drop_half"):
                    part.drop_half()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._stop_if_not_finite()
        # This file is written last and marks a checkpoint as complete, so an older one must be removed first.
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.is_world_process_zero():
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)
        states = cast(dict, self.state.stateful_callbacks)
        for kind in (MethodState, TrainingRecord):  # missing after resuming from a plain Trainer's checkpoint
            states.setdefault(kind.__name__, {})
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # transformers 5 saves ViT, Swin, BEiT and others under older key names. Trainer does not convert them when it
        # loads a checkpoint, and silently keeps every tensor that does not match. from_pretrained converts the names.
        target = self.model if model is None else model
        if not self.is_fsdp_enabled and is_whole_model(target, resume_from_checkpoint):
            load_weights(target, resume_from_checkpoint)
        else:
            check_adapter_keys(target, resume_from_checkpoint)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        # restore_callback_states_from_checkpoint would otherwise restore the state written by the earlier training.
        for kept in (self.method_state, self.record):
            self.callback_handler.remove_callback(type(kept))
            self.add_callback(kept)
        written = cast(dict, self.state.stateful_callbacks).get(TrainingRecord.__name__, {})
        self.state.best_model_checkpoint = self.state.best_model_checkpoint or self._best
        self.record.start_again(written if isinstance(written, dict) else {}, self.state.global_step)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if not self.is_fsdp_enabled and is_whole_model(self.model, best):
            logger.info("Loading the best model from %s.", best)
            load_weights(self.model, best)
        else:
            super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        check_keys("the checkpoint", load_result.missing_keys, load_result.unexpected_keys)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save as `Trainer` does, with absolute paths in `training_args.bin` shortened to their last component."""
        with self._arguments_without_paths():
            super().save_model(*args, **kwargs)
        if self.is_world_process_zero():
            folder = kwargs.get("output_dir", args[0] if args else None) or self.args.output_dir
            name_no_local_base(str(folder))
            if self._pushes:
                self._hidden |= hide_paths(str(folder))

    def save_state(self) -> None:
        """Save the state as `Trainer` does, with only the last component of the best checkpoint's path."""
        kept = self.state.best_model_checkpoint
        self.state.best_model_checkpoint = kept and without_paths(kept)
        try:
            super().save_state()
        finally:
            self.state.best_model_checkpoint = kept

    @contextmanager
    def _arguments_without_paths(self) -> Iterator[None]:
        values = vars(self.args)
        values[SAVED_AS] = {k: without_paths(v) for k, v in values.items() if type(v) is str}
        try:
            yield
        finally:
            values.pop(SAVED_AS, None)  # may be gone: a save that pushes calls save_model again

    def init_hf_repo(self, token: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Create the repository as `Trainer` does, and the branch `hub_revision`, before training starts."""
        super().init_hf_repo(token, *args, **kwargs)
        if self.is_world_process_zero():
            self._make_branch(self.args.hub_revision, token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Push as `Trainer` does, and create the branch `revision` if it does not exist.

        If the push fails, the error says where the model is saved, and how to push it again.
        """
        self._pushes = True
        try:
            if revision is not None and self.is_world_process_zero():
                if self.hub_model_id is None:
                    self.init_hf_repo(token, *args, **{k: v for k, v in kwargs.items() if k == "private"})
                self._make_branch(revision, token)
            pushed = super().push_to_hub(commit_message, blocking, token, revision, *args, **kwargs)
            if hasattr(pushed, "add_done_callback"):  # the push goes on in the background
                pushed.add_done_callback(lambda _: show_paths(self._hidden))
            else:
                show_paths(self._hidden)
            return pushed
        except Exception as error:
            show_paths(self._hidden)
            error.add_note(
                f"Nothing that was saved in {str(self.args.output_dir)!r} is lost. Push it again with "
                f"trainer.push_to_hub(), or: hf upload {self.hub_model_id or 'USER/MODEL'} {self.args.output_dir} "
                f"--exclude '{PREFIX_CHECKPOINT_DIR}-*' --exclude '_*'"
            )
            raise
        finally:
            self._pushes = False

    def _make_branch(self, revision: str | None, token: str | None) -> None:
        make_branch(str(self.hub_model_id), revision, self.args.hub_token if token is None else token)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._report_failed_pushes()  # before Trainer discards them
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            held = hide_paths(checkpoint_folder)
            if adapter := held.get(Path(checkpoint_folder, ADAPTER)):  # Trainer copies it beside the checkpoint
                held[Path(str(self.args.output_dir), ADAPTER)] = adapter
            self._hidden |= held
            for code in Path(checkpoint_folder).glob("*.py"):  # a model's own code, which Trainer does not copy
                shutil.copy(code, str(self.args.output_dir))
        with self._arguments_without_paths():
            super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._report_failed_pushes()
        if not self._pushes:
            show_paths(self._hidden)

    def _report_failed_pushes(self) -> None:
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", [])
        for job in [job for job in jobs if job.done()]:
            jobs.remove(job)
            if not job.cancelled() and (error := job.exception()) is not None:
                logger.warning("Pushing a checkpoint to %s failed: %s", self.hub_model_id, error)
