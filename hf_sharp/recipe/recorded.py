"""The records of a training beside its model, whose options later commands use as defaults."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError, RepositoryNotFoundError

from hf_sharp.data.local_names import refuse_no_model
from hf_sharp.reports.results import RESULTS, options_of, write_results

logger = logging.getLogger(__name__)

# Options of the model that hold for any data; all others are taken over for the same data only.
_OF_MODEL = {"max_length", "tokenizer_name", "picture_range", "cost_matrix"}
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
    *("threshold", "bootstrap", "new_split", "new_config"),
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
    return results | {"options": options_of(model, results)}


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
        write_results(folder, {name: record[name] for name in ("options", "data") if name in record})


def set_flags(argv: Sequence[str]) -> set[str]:
    """List the options that a command line sets."""
    return {word.lstrip("-").split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}


def take_over(record: Mapping[str, Any], groups: Sequence[Any], argv: Sequence[str], dataset: str) -> None:
    """Set the options that a command line does not set to those of the training.

    Options that are taken over are logged; a flag that contradicts the training gives a warning.

    Args:
        record: what `recorded` returned.
        groups: dataclass instances of options; they are changed in place.
        argv: the command line.
        dataset: the data that the command looks at.
    """
    if not record:
        return
    options, flags = record["options"] | record.get("data", {}), set_flags(argv)
    same = _same(str(options.get("dataset", "digits")), dataset)
    taken, contradicted, trainings = {}, {}, _options_of_trainings()
    for group in groups:
        for item in fields(group):
            name = item.name
            if (
                name in _NOT_TAKEN
                or name not in trainings
                or not (same or name in _OF_MODEL)
                or (name not in options and name not in flags)
            ):
                continue
            trained, value = options.get(name, item.default), getattr(group, name)
            if trained == value:
                continue
            if flags & {name, *(alias.lstrip("-") for alias in item.metadata.get("aliases", ()))}:
                if name != "cost_matrix":  # it does not change the training
                    contradicted[name] = f"{name} {value} (trained with {trained})"
            else:
                setattr(group, name, trained)
                taken[name] = name if name == "cost_matrix" else f"{name} {trained}"
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


def _same(recorded_name: str, dataset: str) -> bool:
    return recorded_name == dataset or Path(recorded_name).resolve() == Path(dataset).resolve()
