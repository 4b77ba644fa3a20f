"""Checkpoint files: load weights under any key names, compare methods, and find complete checkpoints."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from accelerate.state import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint import FileSystemReader
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_sharp.sharpness.ascent import widest_dtype
from hf_sharp.training_args import PLAIN_METHOD

logger = logging.getLogger(__name__)

_WEIGHTS = ("model*.safetensors", "pytorch_model*", "adapter_model.*", "*/adapter_model.*")


# Options that older checkpoints do not record, and the values that those checkpoints were trained with.
NEW_OPTIONS = {
    "adaptive_scope": "matrices",
    "cosine_head": False,
    "head_init": "none",
    "rho_end": 0.0,
    "rho_update": "sign",
    "sharpness_after": 0.0,
}


def is_whole_model(model: Any, folder: str | os.PathLike[str]) -> TypeGuard[PreTrainedModel]:
    """Tell whether a folder holds all weights of a transformers model, not those of an adapter or another module."""
    adapter = os.path.isfile(os.path.join(folder, "adapter_config.json"))
    return isinstance(model, PreTrainedModel) and not adapter


def load_weights(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Load saved weights into a model, in place, whichever key names they were saved under.

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
        """Makes `from_pretrained` load into a copy of this model, as the config may not describe it completely."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return saved  # not of this class, so that __init__ is not called

    _, report = AsItIs.from_pretrained(
        folder,
        config=copy.deepcopy(model.config),
        dtype=widest_dtype(model),  # so that no parameter is rounded
        output_loading_info=True,
        local_files_only=True,
    )
    check_keys(os.fspath(folder), report["missing_keys"], report["unexpected_keys"])
    model.load_state_dict(saved.state_dict())


class MethodState(TrainerCallback, ExportableState):
    """Writes the method into every checkpoint's trainer_state.json, so that a different method cannot resume from it.

    Args:
        method: the options in effect and the class counts, in JSON types.
        num_processes: the number of processes, each of which writes its random state.
        save_only_model: whether checkpoints hold only weights.
        stateful: the names of the method's parts that have a state.
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
        """Return what is written into trainer_state.json.

        Returns:
            The arguments of `__init__` under `args`, and empty `attributes`.
        """
        return {"args": dict(vars(self)), "attributes": {}}


def check_same_method(folder: str | os.PathLike[str], method: Mapping[str, Any]) -> None:
    """Raise a ValueError that lists the differences, if a checkpoint has a different method or class counts.

    Args:
        folder: a complete checkpoint.
        method: the options that are now in effect, and the class counts.
    """
    written = written_method(Path(folder))
    if written and written["save_only_model"]:
        logger.warning("%s holds only weights (save_only_model): the optimizer's state starts from scratch.", folder)
    # A plain Trainer records neither method nor class counts.
    saved = {**PLAIN_METHOD, "class_counts": method["class_counts"]} if written is None else written["method"]
    saved = {name: value for name, value in NEW_OPTIONS.items() if name in method} | saved
    method = json.loads(json.dumps(method))  # tuples become lists, as in the file
    differ = [
        f"{name}: {_shown(name, saved, method)} there, {_shown(name, method, saved)} now"
        for name in sorted(saved.keys() | method.keys())
        if saved.get(name) != method.get(name)
    ]
    if differ:
        raise ValueError(
            f"the checkpoint {os.fspath(folder)!r} was written by another training ({'; '.join(differ)}). Resume with "
            "the same options and data; or start a new training from its weights, with from_pretrained on that folder."
        )


def _shown(name: str, values: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    value, other = values.get(name), others.get(name)
    if isinstance(value, list) and isinstance(other, list) and len(value) == len(other) > 8:
        different = [i for i in range(len(value)) if value[i] != other[i]]
        rest = f", and {len(different) - 5} more" if len(different) > 5 else ""
        return ", ".join(f"[{i}] = {value[i]}" for i in different[:5]) + rest
    if isinstance(value, list) and len(value) > 8:
        return f"[{', '.join(map(str, value[:8]))}, ... {len(value)} in all]"
    return "not used" if value is None else str(value)


def whole_checkpoint(output_dir: str | os.PathLike[str], process_index: int = 0, num_processes: int = 1) -> str | None:
    """Find the last checkpoint that is complete for every process, and rename incomplete ones after it.

    A training that is killed while it writes a checkpoint leaves an incomplete one. It is renamed to
    `torn-checkpoint-...`, so that it does not count in `save_total_limit` and is not mistaken for a checkpoint.

    Args:
        output_dir: the folder with the checkpoints.
        process_index: the index of this process.
        num_processes: the number of processes of the training that resumes.

    Returns:
        The checkpoint's path, or None.
    """
    found = {folder: why_torn(folder, process_index) for folder in _checkpoints(output_dir)}
    everywhere = gather_object([found]) if num_processes > 1 else [found]
    last = None
    for folder in sorted(set().union(*everywhere), key=lambda folder: int(folder.rpartition("-")[2]), reverse=True):
        if any(folder not in reasons for reasons in everywhere):
            logger.warning("%s is not on every machine: skipping it.", folder)
        elif reason := next(filter(None, (reasons[folder] for reasons in everywhere)), None):
            aside = Path(folder).with_name(f"torn-{Path(folder).name}")
            logger.warning("%s is incomplete (%s): renaming it to %s.", folder, reason, aside.name)
            if PartialState().is_local_main_process:
                while aside.exists():
                    aside = aside.with_name(f"{aside.name}+")
                with suppress(FileNotFoundError):  # on a shared disk, another machine may have renamed it
                    Path(folder).rename(aside)
        else:
            last = folder
            break
    PartialState().wait_for_everyone()
    return last


def best_beside(folder: str | os.PathLike[str]) -> str | None:
    """Find the best checkpoint that a checkpoint names, beside it: the folder of both may have been moved.

    Args:
        folder: the checkpoint.

    Returns:
        The path of the best checkpoint, or None if it is not there.
    """
    best = json.loads(Path(folder, TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("best_model_checkpoint")
    beside = Path(folder).absolute().with_name(Path(best or "nothing").name)
    return str(beside) if beside.is_dir() else None


def why_torn(folder: str | os.PathLike[str], process_index: int = 0) -> str | None:
    """Say why a checkpoint cannot be resumed from, if writing or deleting it was interrupted.

    Args:
        folder: the checkpoint.
        process_index: the process whose random state is needed.

    Returns:
        What is wrong with it, or None if it is complete.
    """
    path = Path(folder)
    try:
        written = written_method(path) or {}
    except (OSError, ValueError) as error:  # Trainer writes this file last
        return f"{TRAINER_STATE_NAME}: {error}"
    needed: dict[str, tuple[str, ...]] = {"model.safetensors (or other weights)": _WEIGHTS}
    if any(path.glob("model-*-of-*.safetensors")):
        needed["model.safetensors.index.json"] = ("model.safetensors.index.json",)
    if written and not written["save_only_model"]:  # what a plain Trainer meant to write is not known
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
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except ValueError as error:
            return f"{index.name}: {error}"
        if missing := sorted(shard for shard in shards if not (path / shard).exists()):
            return f"{', '.join(missing)} is missing"
    for file in sorted(path.rglob("*")):
        if not _is_whole(file):
            return f"{file.relative_to(path)} ends too early"
    return None


def method_file(process_index: int) -> str:
    """Return the name of the checkpoint file that holds the state of the method in a process."""
    return f"method_{process_index}.pt"


def check_whole(folder: str | os.PathLike[str], process_index: int = 0) -> None:
    """Raise a ValueError if a checkpoint is incomplete; it says what is missing, and names the last complete one."""
    if not os.path.isdir(folder):
        raise ValueError(f"the checkpoint {os.fspath(folder)!r} is not a folder.")
    if reason := why_torn(folder, process_index):
        others = [other for other in _checkpoints(Path(folder).parent) if not why_torn(other)]
        whole = f"the last complete one is {others[-1]!r}" if others else "there is no complete one in the same folder"
        raise ValueError(f"the checkpoint {os.fspath(folder)!r} is incomplete: {reason}; {whole}.")


def _checkpoints(output_dir: str | os.PathLike[str]) -> list[str]:
    folders = (folder for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if folder.is_dir())
    numbered = [
        folder for folder in folders if folder.name.rpartition("-")[2].isdecimal() and folder.name.count("-") == 1
    ]
    return [str(folder) for folder in sorted(numbered, key=lambda folder: int(folder.name.rpartition("-")[2]))]


def written_method(folder: Path) -> dict[str, Any] | None:
    """Read what `MethodState` wrote into a checkpoint; None if a plain Trainer wrote the checkpoint."""
    state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    found = (state.get("stateful_callbacks") or {}).get(MethodState.__name__)
    return found and found["args"]


# The files that transformers, PEFT and `SavingTrainer` write with torch.save; other files may have any format.
_ARCHIVES = (
    *("optimizer*.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "method_*.pt", "training_args.bin"),
    *("pytorch_model*.bin", "adapter_model.bin"),
)


def _is_whole(file: Path) -> bool:
    if any(map(file.match, _ARCHIVES)):  # torch.save writes a zip archive; its directory comes last
        return zipfile.is_zipfile(file)
    if file.suffix == ".safetensors":
        try:
            safe_open(file, "pt").keys()
        except SafetensorError:
            return False
    if file.is_dir() and any(file.glob("*.distcp")):  # sharded over processes; the index, written last, has the lengths
        if not (file / ".metadata").exists():
            return False
        entries = FileSystemReader(file).read_metadata().storage_data.values()
        ends = {entry.relative_path: 0 for entry in entries}
        for entry in entries:
            ends[entry.relative_path] = max(ends[entry.relative_path], entry.offset + entry.length)
        return all((file / name).exists() and (file / name).stat().st_size >= end for name, end in ends.items())
    return True


def check_keys(source: str, missing: Any, unexpected: Any) -> None:
    """Raise a ValueError that lists missing and unexpected keys of a checkpoint, if there are any."""
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit the model: missing {sorted(missing) or 'nothing'}, unexpected "
            f"{sorted(unexpected) or 'nothing'}. It was saved from another model, or is incomplete."
        )


def check_adapter_keys(model: Any, folder: str | os.PathLike[str]) -> None:
    """Raise a ValueError that lists missing and unexpected keys of a saved PEFT adapter, if there are any."""
    file = Path(folder, "adapter_model.safetensors")
    if file.is_file() and hasattr(model, "peft_config"):
        peft = importlib.import_module("peft")
        expected, found = peft.get_peft_model_state_dict(model).keys(), set(safe_open(file, "pt").keys())
        check_keys(os.fspath(folder), expected - found, found - expected)
