"""What a training recorded beside its model, taken over by the commands that look at the model later."""

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

# Options of the model, whatever the data; all others are taken over for the same data only.
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
# A held-out share that differs from the training's puts training examples into it.
_OF_SPLITS = {"test_fraction", "validation_fraction", "train_split", "test_split", "validation_split"}
_OF_SPLITS |= {"group_column", "unique_column"}


def recorded(model: str) -> dict[str, Any]:
    """Read what the training of a model recorded in its folder.

    Args:
        model: a folder, or a name on the Hub.

    Returns:
        The content of `all_results.json`; empty where there is none, or another program wrote it.

    Raises:
        ValueError: the file is damaged, or there is no such model here.
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
        The file, downloaded if need be; None where there is none. A warning says so where the Hub cannot be asked.
    """
    if Path(model).exists():
        return file if (file := Path(model) / name).is_file() else None
    try:
        return Path(hf_hub_download(model, name))
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, HFValidationError):  # no such file or model
        return None
    except OSError as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        logger.warning("%s of the model %r cannot be looked up, and is taken for absent: %s", name, model, reason)
        return None


def keep_record(record: Mapping[str, Any], folder: Path) -> None:
    """Write what the training recorded of inputs and data beside a changed model, without the report of the old one.

    Args:
        record: what `recorded` returned; nothing is written if it is empty.
        folder: the changed model's.
    """
    if record:
        write_results(folder, {name: record[name] for name in ("options", "data") if name in record})


def set_flags(argv: Sequence[str]) -> set[str]:
    """List the options that a command line sets."""
    return {word.lstrip("-").split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}


def take_over(record: Mapping[str, Any], groups: Sequence[Any], argv: Sequence[str], dataset: str) -> None:
    """Set the options of a command that its command line does not set to those of the training.

    What is taken over is logged; a flag that contradicts the training is a warning.

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
                if name != "cost_matrix":  # which changes no training
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
    """List what a training can be told; a command has further options of its own."""
    from hf_sharp.recipe.images import TrainImageArguments
    from hf_sharp.recipe.texts import TextArguments
    from hf_sharp.training_args import SharpTrainingArguments

    return {
        item.name for group in (TrainImageArguments, TextArguments, SharpTrainingArguments) for item in fields(group)
    }


def _same(recorded_name: str, dataset: str) -> bool:
    return recorded_name == dataset or Path(recorded_name).resolve() == Path(dataset).resolve()
