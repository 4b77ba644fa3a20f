"""Checkpoints: weights under whatever key names they have, the method that wrote them, and which ones are whole."""

from __future__ import annotations

import copy
import functools
import importlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput

from hf_sharp.trainer.hub import HubTrainer, fetch_checkpoint
from hf_sharp.training_args import PLAIN_METHOD, SharpTrainingArguments

logger = logging.getLogger(__name__)

_WEIGHTS = ("model*.safetensors", "pytorch_model*", "adapter_model.*", "*/adapter_model.*")


def is_whole_model(model: Any, folder: str | os.PathLike[str]) -> TypeGuard[PreTrainedModel]:
    """Say whether a folder holds all weights of a transformers model, not an adapter's or another module's."""
    adapter = os.path.isfile(os.path.join(folder, "adapter_config.json"))
    return isinstance(model, PreTrainedModel) and not adapter


def load_weights(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Load a saved model's weights into a model, in place, under whatever key names they were saved.

    Args:
        model: the model to load into.
        folder: a folder that `save_pretrained` or a checkpoint wrote.

    Raises:
        ValueError: a key is missing in the checkpoint or unknown to the model.
        FileNotFoundError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"the checkpoint {os.fspath(folder)!r} is not a folder.")
    saved = copy.deepcopy(model)

    class AsItIs(type(model)):  # type: ignore[misc]
        """Makes `from_pretrained` load into a copy of the model at hand, which its config may not describe in full."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return saved  # not of this class, so that __init__ is not called

    _, report = AsItIs.from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=widest_dtype(model),  # so that no parameter is rounded on its way
        output_loading_info=True,
        local_files_only=True,
    )
    check_keys(os.fspath(folder), report["missing_keys"], report["unexpected_keys"])
    model.load_state_dict(saved.state_dict())


class MethodState(TrainerCallback, ExportableState):
    """Puts into every checkpoint's trainer_state.json what the training was, so that no other one goes on from it.

    Args:
        method: the options in effect and the class counts, as JSON knows them.
        num_processes: how many processes there are, each of which writes its random state.
        save_only_model: whether a checkpoint is weights alone.
        stateful: the names of the method's parts that have a state of their own.
    """

    def __init__(
        self,
        method: dict[str, Any],
        num_processes: int = 1,
        save_only_model: bool = False,
        stateful: Sequence[str] = (),
    ) -> None:
        self.method, self.num_processes, self.save_only_model = method, num_processes, save_only_model
        self.stateful = list(stateful)

    def state(self) -> dict[str, Any]:
        """Return what is written.

        Returns:
            What `__init__` takes, as `args`, and no `attributes`.
        """
        return {"args": dict(vars(self)), "attributes": {}}


def check_same_method(folder: str | os.PathLike[str], method: Mapping[str, Any]) -> None:
    """Raise a ValueError that says what differs, where a checkpoint is of another method or other class counts.

    Args:
        folder: a whole checkpoint.
        method: the options in effect now, and the class counts.
    """
    written = _written(Path(folder))
    if written and written["save_only_model"]:
        logger.warning("%s holds weights alone (save_only_model): the optimizer's moments start anew.", folder)
    # A plain Trainer writes nothing of its method, and nothing of the class counts.
    saved = {**PLAIN_METHOD, "class_counts": method["class_counts"]} if written is None else written["method"]
    differ = [
        f"{name}: {_shown(name, saved, method)} there, {_shown(name, method, saved)} now"
        for name in sorted(saved.keys() | method.keys())
        if saved.get(name) != method.get(name)
    ]
    if differ:
        raise ValueError(
            f"the checkpoint {os.fspath(folder)!r} was written by another training ({'; '.join(differ)}). Go on with "
            "the same options and data; or start a new training from its weights, with from_pretrained on that folder."
        )


def _shown(name: str, values: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    value, other = values.get(name), others.get(name)
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other) > 8:
        where = [i for i in range(len(value)) if value[i] != other[i]]
        more = f", and {len(where) - 5} more" if len(where) > 5 else ""
        return ", ".join(f"[{i}] = {value[i]}" for i in where[:5]) + more
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(map(str, value[:8]))}, ... {len(value)} in all]"
    return "not used" if value is None else str(value)


def whole_checkpoint(output_dir: str | os.PathLike[str], process_index: int = 0, num_processes: int = 1) -> str | None:
    """Find the last checkpoint that every process finds whole; torn ones after it are named and put aside.

    A training that is killed while it writes a checkpoint leaves a torn one. It is renamed to `torn-checkpoint-...`, so
    that it neither counts in `save_total_limit` nor is taken for a checkpoint again.

    Args:
        output_dir: the folder with the checkpoints.
        process_index: of this process.
        num_processes: of the training that is to go on.

    Returns:
        The checkpoint's path, or None: there is none.
    """
    found = {folder: why_torn(folder, process_index) for folder in _checkpoints(output_dir)}
    everywhere = gather_object([found]) if num_processes > 1 else [found]
    last = None
    for folder in sorted(set().union(*everywhere), key=lambda folder: int(folder.rpartition("-")[2]), reverse=True):
        if any(folder not in reasons for reasons in everywhere):
            logger.warning("%s is not on every machine: not gone on from.", folder)
        elif reason := next(filter(None, (reasons[folder] for reasons in everywhere)), None):
            aside = Path(folder).with_name(f"torn-{Path(folder).name}")
            logger.warning("%s is torn (%s): put aside as %s.", folder, reason, aside.name)
            if PartialState().is_local_main_process:
                while aside.exists():
                    aside = aside.with_name(f"{aside.name}+")
                with suppress(FileNotFoundError):  # on a disk that machines share, another one has done it
                    Path(folder).rename(aside)
        else:
            last = folder
            break
    PartialState().wait_for_everyone()
    return last


def why_torn(folder: str | os.PathLike[str], process_index: int = 0) -> str | None:
    """Say what a checkpoint lacks for going on from it, as it was interrupted while it was written or deleted.

    Args:
        folder: the checkpoint.
        process_index: the process whose random state must be there.

    Returns:
        What is wrong with it, or None: it is whole.
    """
    path = Path(folder)
    try:
        written = _written(path) or {}
    except (OSError, ValueError) as error:  # what Trainer writes last
        return f"{TRAINER_STATE_NAME}: {error}"
    needed: dict[str, tuple[str, ...]] = {"model.safetensors (or other weights)": _WEIGHTS}
    if any(path.glob("model-*-of-*.safetensors")):
        needed["model.safetensors.index.json"] = ("model.safetensors.index.json",)
    if written and not written["save_only_model"]:  # whether a plain Trainer wrote all of it, nobody knows
        needed |= {"optimizer.pt (or .bin)": ("optimizer*",), "scheduler.pt": ("scheduler.pt",)}
        processes = written.get("num_processes", 1)
        if process_index < processes:
            random_state = f"rng_state_{process_index}.pth" if processes > 1 else "rng_state.pth"
            needed[random_state] = (random_state,)
        if written.get("stateful") and process_index < processes:
            needed[method_file(process_index)] = (method_file(process_index),)
    for what, patterns in needed.items():
        if not any(any(path.glob(pattern)) for pattern in patterns):
            return f"{what} is missing"
    for index in path.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except ValueError as error:
            return f"{index.name}: {error}"
        if missing := sorted(shard for shard in shards if not (path / shard).exists()):
            return f"{', '.join(missing)} is missing"
    for file in sorted(path.rglob("*")):
        if not _is_whole(file):
            return f"{file.relative_to(path)} ends too early"
    return None


def method_file(process_index: int) -> str:
    """Name the file of a checkpoint that holds what a process's method has learned beside the weights."""
    return f"method_{process_index}.pt"


def check_whole(folder: str | os.PathLike[str], process_index: int = 0) -> None:
    """Raise a ValueError that says what a checkpoint lacks, if it is torn, and which ones beside it are whole."""
    if not os.path.isdir(folder):
        raise ValueError(f"the checkpoint {os.fspath(folder)!r} is not a folder.")
    if reason := why_torn(folder, process_index):
        others = [other for other in _checkpoints(Path(folder).parent) if not why_torn(other)]
        whole = f"the last whole one is {others[-1]!r}" if others else "there is no whole one beside it"
        raise ValueError(f"the checkpoint {os.fspath(folder)!r} is torn: {reason}; {whole}.")


def _checkpoints(output_dir: str | os.PathLike[str]) -> list[str]:
    folders = (folder for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if folder.is_dir())
    numbered = [
        folder for folder in folders if folder.name.rpartition("-")[2].isdecimal() and folder.name.count("-") == 1
    ]
    return [str(folder) for folder in sorted(numbered, key=lambda folder: int(folder.name.rpartition("-")[2]))]


def _written(folder: Path) -> dict[str, Any] | None:
    state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    found = (state.get("stateful_callbacks") or {}).get(MethodState.__name__)
    return found and found["args"]


# What transformers, PEFT and `ResumableTrainer` write with torch.save; other files may be of any kind.
_ARCHIVES = (
    *("optimizer*.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "method_*.pt", "training_args.bin"),
    *("pytorch_model*.bin", "adapter_model.bin"),
)


def _is_whole(file: Path) -> bool:
    if any(map(file.match, _ARCHIVES)):  # torch.save writes a zip archive, whose directory comes last
        return zipfile.is_zipfile(file)
    if file.suffix == ".safetensors":
        try:
            safe_open(file, "pt").keys()
        except SafetensorError:
            return False
    if file.is_dir() and any(file.glob("*.distcp")):  # sharded over processes; an index, written last, says how long
        if not (file / ".metadata").exists():
            return False
        entries = FileSystemReader(file).read_metadata().storage_data.values()
        ends = {entry.relative_path: 0 for entry in entries}
        for entry in entries:
            ends[entry.relative_path] = max(ends[entry.relative_path], entry.offset + entry.length)
        return all((file / name).exists() and (file / name).stat().st_size >= end for name, end in ends.items())
    return True


def check_keys(source: str, missing: Any, unexpected: Any) -> None:
    """Raise a ValueError that names the keys which a checkpoint lacks, or has too many."""
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit the model: missing {sorted(missing) or 'nothing'}, unexpected "
            f"{sorted(unexpected) or 'nothing'}. It was saved from another model, or is incomplete."
        )


def check_adapter_keys(model: Any, folder: str | os.PathLike[str]) -> None:
    """Raise a ValueError that names the keys which a saved adapter of a PEFT model lacks, or has too many."""
    file = Path(folder, "adapter_model.safetensors")
    if file.is_file() and hasattr(model, "peft_config"):
        peft = importlib.import_module("peft")
        expected, found = peft.get_peft_model_state_dict(model).keys(), set(safe_open(file, "pt").keys())
        check_keys(os.fspath(folder), expected - found, found - expected)


def widest_dtype(model: nn.Module) -> torch.dtype:
    """Find the type that holds every floating-point parameter of a model without rounding."""
    return functools.reduce(torch.promote_types, {p.dtype for p in model.parameters() if p.is_floating_point()})


class ResumableTrainer(HubTrainer):
    """`Trainer` that goes on from a checkpoint exactly, or says why it cannot.

    It loads weights under whatever key names they were saved, takes no torn checkpoint, and none of another method.
    """

    args: SharpTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stateful: dict[str, Any] = {}
        self.method_state = MethodState({}, self.args.world_size, self.args.save_only_model)
        self.add_callback(self.method_state)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does. Going on from a checkpoint needs a whole one, of the same method and class counts.

        Args:
            resume_from_checkpoint: a checkpoint's folder; or True for the last whole one in `output_dir`.
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            As `Trainer`.

        Raises:
            ValueError: the checkpoint is torn, or was written by another method or for other class counts.
        """
        if resume_from_checkpoint is True:
            index, processes = self.args.process_index, self.args.world_size
            resume_from_checkpoint = whole_checkpoint(str(self.args.output_dir), index, processes) or True
        elif resume_from_checkpoint:
            resume_from_checkpoint = fetch_checkpoint(os.fspath(resume_from_checkpoint), self.args.hub_token)
            check_whole(resume_from_checkpoint, self.args.process_index)
        if isinstance(resume_from_checkpoint, str):
            check_same_method(resume_from_checkpoint, self.method_state.method)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _remember(self, method: dict[str, Any] | None = None, **stateful: Any) -> None:
        """Put into checkpoints what the method is, and the parts of it that have a `state_dict` (None: no part).

        Args:
            method: what is new from here on; None: more parts of the method that there is.
            **stateful: the parts.
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
            same_processes = (_written(Path(checkpoint)) or {}).get("num_processes") == self.args.world_size
            for name, part in self._stateful.items():
                part.load_state_dict(states[name])
                if not same_processes and hasattr(part, "drop_half"):
                    part.drop_half()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # Written last, it says that a checkpoint is whole: an older one must not say so of this.
        folder = os.path.join(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.is_world_process_zero():
            Path(folder, TRAINER_STATE_NAME).unlink(missing_ok=True)
        states = cast(dict, self.state.stateful_callbacks)
        states.setdefault(MethodState.__name__, {})  # not there after going on from a plain Trainer's checkpoint
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # transformers 5 saves ViT, Swin, BEiT and others under older key names, and Trainer would load these raw: the
        # tensors that do not match stay what they were. from_pretrained converts the names.
        target = self.model if model is None else model
        if not self.is_fsdp_enabled and is_whole_model(target, resume_from_checkpoint):
            load_weights(target, resume_from_checkpoint)
        else:
            check_adapter_keys(target, resume_from_checkpoint)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        # With restore_callback_states_from_checkpoint it would be the one of the training that wrote the checkpoint.
        self.callback_handler.remove_callback(MethodState)
        self.add_callback(self.method_state)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if not self.is_fsdp_enabled and is_whole_model(self.model, best):
            logger.info("Loading the best model from %s.", best)
            load_weights(self.model, best)
        else:
            super()._load_best_model()

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        check_keys("the checkpoint", load_result.missing_keys, load_result.unexpected_keys)
