"""The records of a training beside its model, whose options later commands use as defaults."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError

from hf_sharp.data.loading import EMBEDDED
from hf_sharp.data.local_names import refuse_no_model
from hf_sharp.reports.results import RESULTS, with_local, write_results

logger = logging.getLogger(__name__)

# Options of the model that hold for any data; all others are taken over for the same data only.
_OF_MODEL = {"max_length", "tokenizer_name", "picture_range", "rare_threshold", "common_threshold"}
_NOT_TAKEN = {
    "output_dir",
    "dataset",
    "split",
    "seed",
    "batch_size",
    "head",
    "loss",
    "loss_gamma",
    "check_data",
    "left_out",
    "trust_remote_code",
    *("threshold", "bootstrap", "new_split", "new_config", "new_separator"),
    "cost_matrix",  # it does not change the training
}
# With different values than in the training, a held-out split contains training examples.
_OF_SPLITS = {"test_fraction", "validation_fraction", "train_split", "test_split", "validation_split"}
_OF_SPLITS |= {"group_column", "unique_column"}


def recorded(model: str) -> dict[str, Any]:
    """Read what the training of a model recorded in its folder.

    Args:
        model: a folder, or a name on the Hub.

    Returns:
        The content of `all_results.json`; empty if there is none, or if another program wrote it.

    Raises:
        ValueError: the file is damaged, or the model does not exist.
    """
    refuse_no_model(model)
    file = file_beside(model, RESULTS)
    try:
        results = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{RESULTS} of the model {model!r}, which has the options of its training, is damaged: {error}. Restore "
            "it, or delete it and give the options yourself."
        ) from error
    if not isinstance(results, dict) or not isinstance(results.get("options"), dict):
        return {}
    return with_local(model, results)


def file_beside(model: str, name: str) -> Path | None:
    """Find a file that was saved with a model.

    Args:
        model: a folder, or a name on the Hub.
        name: the file's name.

    Returns:
        The path, after a download if needed; None if there is no such file, or, with a warning, if the Hub cannot be
        reached.
    """
    if Path(model).exists():
        return file if (file := Path(model) / name).is_file() else None
    try:
        return Path(hf_hub_download(model, name))
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, HFValidationError):  # no such file or model
        return None
    except OSError as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        logger.warning("%s of the model %r cannot be looked up, and is assumed not to exist: %s", name, model, reason)
        return None


def keep_record(record: Mapping[str, Any], folder: Path) -> None:
    """Save the training's records of inputs and data with a changed model, without the report of the old model.

    Args:
        record: what `recorded` returned; nothing is written if it is empty.
        folder: the folder of the changed model.
    """
    if record:
        write_results(folder, {name: record[name] for name in ("options", "trained_in", "data") if name in record})


def set_flags(argv: Sequence[str]) -> set[str]:
    """List the options that a command line sets."""
    return {word.lstrip("-").split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}


def from_here(record: Mapping[str, Any], name: str) -> str:
    """Return a name in the options of a training so that it leads to the same file or folder from here.

    Args:
        record: what `recorded` returned.
        name: a path as it was set for the training, or a name on the Hub.

    Returns:
        The path; the name itself if it leads there, or if there was no such path where the training ran.
    """
    path = Path(record.get("trained_in", ""), Path(name).expanduser())
    there = os.path.exists(path)  # False for a folder of someone else, where Path.exists raises an error
    return name if name in EMBEDDED or not there or _leads_to(name, path) else str(path)


def _leads_to(name: str, path: Path) -> bool:
    return Path(name).expanduser().resolve() == path.resolve()


def is_trained_on(record: Mapping[str, Any], dataset: str) -> bool | None:
    """Tell whether data are those that a training recorded.

    Args:
        record: what `recorded` returned.
        dataset: the file, folder or name of the data.

    Returns:
        Whether they are; None if they have the same name, but it is unknown where the data of the training lay.
    """
    name = str(record["options"].get("dataset", "digits"))
    given, trained = Path(dataset).expanduser(), Path(from_here(record, name)).expanduser()
    if _leads_to(dataset, trained):
        return True
    is_known = os.path.exists(trained) and ("trained_in" in record or trained.is_absolute())
    return None if given.exists() and given.name == trained.name and not is_known else False


def take_over(record: Mapping[str, Any], groups: Sequence[Any], argv: Sequence[str], dataset: str | None) -> None:
    """Set the options that a command line does not set to those of the training.

    Options that are taken over are logged; a flag that contradicts the training gives a warning, and so do options that
    are not taken over because it is unknown whether the data are those of the training.

    Args:
        record: what `recorded` returned.
        groups: dataclass instances of options; they are changed in place.
        argv: the command line.
        dataset: the data that the command looks at; None if the options of the training hold whatever the data.
    """
    if not record:
        return
    options, flags = record["options"] | record.get("data", {}), set_flags(argv)
    same = dataset is None or is_trained_on(record, dataset)
    taken, contradicted, unused, trainings = {}, {}, {}, _options_of_trainings()
    for group in groups:
        for item in fields(group):
            name = item.name
            if (
                name in _NOT_TAKEN
                or name not in trainings
                or (same is False and name not in _OF_MODEL)
                or (name not in options and name not in flags)
            ):
                continue
            trained, value = options.get(name, item.default), getattr(group, name)
            if trained == value:
                continue
            if name in flags:
                contradicted[name] = f"{name} {value} (trained with {trained})"
            elif same is None and name not in _OF_MODEL:
                unused[name] = f"{name} {trained}"
            else:
                setattr(group, name, _paths_from_here(record, name, trained))
                taken[name] = f"{name} {trained}"
    if unused:
        logger.warning(
            "not taken over from the training, because %r may be other data than its %r: %s. Set these options if it "
            "is the same",
            *(dataset, options.get("dataset"), ", ".join(unused.values())),
        )
    if taken:
        logger.warning("taken over from the training: %s", ", ".join(taken.values()))
    if contradicted:
        overlap = (
            "; examples that were trained on may be among the others now" if _OF_SPLITS & set(contradicted) else ""
        )
        logger.warning("other options than in the training: %s%s", ", ".join(contradicted.values()), overlap)


def _options_of_trainings() -> set[str]:
    """List the options that a training has; other commands have further options."""
    from hf_sharp.recipe.images import TrainImageArguments
    from hf_sharp.recipe.texts import TextArguments
    from hf_sharp.training_args import SharpTrainingArguments

    return {
        item.name for group in (TrainImageArguments, TextArguments, SharpTrainingArguments) for item in fields(group)
    }


def _paths_from_here(record: Mapping[str, Any], name: str, value: Any) -> Any:
    if name == "tokenizer_name":
        return value and from_here(record, value)
    if name == "split_lists":
        parts = (item.partition("=") for item in value or ())
        return [f"{split}={from_here(record, file)}" for split, _, file in parts] or None
    return value
