"""The results of a run: `all_results.json`, from which its model card is made."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.state import PartialState

from hf_sharp.data.local_paths import shortened, shortened_command
from hf_sharp.losses import LOSSES
from hf_sharp.registry import Registry
from hf_sharp.sharpness.methods import METHODS

RESULTS = "all_results.json"
# The options with local paths, and the folder that relative ones belong to. Pushes leave this file out, because of the
# "_" in its name.
_LOCAL = "_local.json"
_ONLY_LOCAL = "trained_in"
_WITHOUT_PATHS = ("options", "local", "model", "data", "adapter", "method")
_FIGURES = ("train_runtime", "train_steps_per_second", "train_loss")
_TRAINING_OPTIONS = (
    *("seed", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "bf16", "fp16"),
)


class Task(NamedTuple):
    """A classification task of transformers: its wording in a card, and the code that opens a model for it."""

    article: str
    kind: str
    model_class: str
    processor: str
    processor_class: str
    example: str


TASKS = {
    "image-classification": Task(
        "An", "image", "AutoModelForImageClassification", "image_processor", "AutoImageProcessor", '"picture.png"'
    ),
    "text-classification": Task(
        "A",
        "text",
        "AutoModelForSequenceClassification",
        "tokenizer",
        "AutoTokenizer",
        '"A text to classify.", truncation=True',
    ),
    "audio-classification": Task(
        "An", "audio", "AutoModelForAudioClassification", "feature_extractor", "AutoFeatureExtractor", '"sound.wav"'
    ),
}


def task_of(architecture: str) -> str | None:
    """Return the name of the pipeline for a model class.

    Args:
        architecture: the name of the model class.

    Returns:
        The pipeline's name; None if the task of the class is not known.

    Example:
        >>> task_of("BertForSequenceClassification")
        'text-classification'
    """
    endings = {task: record.model_class.removeprefix("AutoModel") for task, record in TASKS.items()}
    return next((task for task, ending in endings.items() if architecture.endswith(ending)), None)


def read_results(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the `all_results.json` of a run.

    Args:
        folder: the folder of the run.

    Returns:
        The results.

    Raises:
        ValueError: there is no such file, or it has no report (`Trainer.save_metrics` writes a file of that name, too).
    """
    file = Path(folder) / RESULTS
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not isinstance(results, dict) or "options" not in results or "class_counts" not in results.get("report", {}):
        raise ValueError(
            f"{str(file)!r} does not exist or has no long-tail report. The recipes write it after training; name the "
            "folder of a run that has finished."
        )
    return results


def shared_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Copy results for publication: absolute paths in options and command are shortened to their last component.

    Args:
        results: the results of a run.
    """
    shared = {name: shortened(item) if name in _WITHOUT_PATHS else item for name, item in results.items()}
    shared.pop(_ONLY_LOCAL, None)
    return shared | ({"command": shortened_command(shared["command"])} if "command" in shared else {})


def write_results(folder: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write the `all_results.json` of a run, in the form that is published.

    Args:
        folder: the folder of the run. The options as they were set, and `trained_in`, are saved in a second file, which
            is not published.
        results: the results.
    """
    write_json(Path(folder, _LOCAL), {name: results[name] for name in ("options", _ONLY_LOCAL) if name in results})
    write_json(Path(folder, RESULTS), shared_results(results))


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically.

    Args:
        file: the file; its folder exists.
        content: JSON-like data.
    """
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write a text file atomically.

    Args:
        file: the file; its folder exists.
        text: its content.
    """
    unfinished = file.with_suffix(".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)


def with_local(folder: str | os.PathLike[str], results: Mapping[str, Any]) -> dict[str, Any]:
    """Add what is not published to the results of a run, if it was trained on this machine.

    Args:
        folder: the folder of the run.
        results: the content of its `all_results.json`.

    Returns:
        The results, with the `options` as they were set, and with `trained_in`, the working directory of the training,
        which relative paths in the options belong to (older versions did not record it).
    """
    file = Path(folder) / _LOCAL
    return dict(results) | (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def results_of(trainer: Any, report: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Collect the content of `all_results.json` from a trainer.

    Args:
        trainer: a `SharpTrainer`.
        report: the long-tail report of its current weights; None if they were not evaluated.

    Returns:
        The results, for `build_card`.
    """
    args, frequencies = trainer.args, trainer.class_frequencies
    log: dict[str, Any] = next((entry for entry in reversed(trainer.state.log_history) if "train_runtime" in entry), {})
    values = args.to_dict()
    records = records_of(trainer)
    base = {"model_name_or_path": records["model"]["base"]} if "base" in records["model"] else {}
    return {
        "report": report
        or {
            "class_counts": frequencies.counts.tolist(),
            "rare_threshold": frequencies.rare_threshold,
            "common_threshold": frequencies.common_threshold,
        },
        "split": "evaluation",
        "training": {name: log[name] for name in _FIGURES if name in log} | cost_of(trainer),
        "options": records["method"] | {name: values[name] for name in _TRAINING_OPTIONS if name in values} | base,
        **records,
        "machine": machine_class(),
        "versions": versions(),
    }


def cost_of(trainer: Any) -> dict[str, float]:
    """Return the cost of a training, in units that do not depend on the machine.

    Args:
        trainer: a `SharpTrainer`.

    Returns:
        `passes`, those of a step relative to a plain step, and `epochs`; empty before training.
    """
    passes = round(trainer.record.passes, 2)
    return {"passes": passes, "epochs": round(trainer.state.epoch or 0.0, 4)} if passes else {}


def records_of(trainer: Any) -> dict[str, dict[str, Any]]:
    """Describe method and model, for a card that may be made where neither is available.

    Args:
        trainer: a `SharpTrainer`.

    Returns:
        `method` (the options in effect), `described` (a user's own method and loss) and `model`.
    """
    return {
        "method": method_record(trainer.args, trainer.class_loss, trainer.replaced_loss),
        "described": descriptions(trainer.args, trainer.class_loss),
        "model": model_record(trainer.model, trainer.class_frequencies.names),
    }


def method_record(args: Any, class_loss: Any, replaced: str | None = None) -> dict[str, Any]:
    """Collect the options of sharpness, loss and sampler in effect, with the default values that the loss chose.

    Args:
        args: `SharpTrainingArguments`.
        class_loss: the loss, possibly the user's own.
        replaced: the name of what computed the losses in its place.

    Returns:
        Option to value.
    """
    head = {"head": args.head} if args.needs_head and args.head is not None else {}
    loss = type(class_loss)
    name = replaced or vars(loss).get("name") or loss.__name__  # a user's class without a name inherits its base's
    chosen, own = dict(args.method), {} if replaced else class_loss.options
    if replaced or LOSSES.get(args.loss) is not loss:  # replaced by a loss of the user's own
        for option in args.loss_arguments:
            del chosen[option]
    record = {"sharpness": args.sharpness, "loss": name} | chosen | head | own | {"loss": name}
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in record.items()}


def descriptions(args: Any, class_loss: Any) -> dict[str, dict[str, str]]:
    """Describe the user's own method and loss, for cards that are made where they are not registered.

    Args:
        args: `SharpTrainingArguments`.
        class_loss: the loss.

    Returns:
        "sharpness" and "loss" to their `summary` and `formula`, as far as defined; empty if built in.
    """
    records: dict[str, tuple[Registry, Any]] = {
        "sharpness": (METHODS, METHODS[args.sharpness]),
        "loss": (LOSSES, type(class_loss)),
    }
    return {
        part: {name: str(vars(record)[name]) for name in ("summary", "formula") if vars(record).get(name)}
        for part, (registry, record) in records.items()
        if registry.get(name := getattr(record, "name", "")) is not record or name not in registry.builtin
    }


def model_record(model: Any, class_names: Sequence[str] | None = None) -> dict[str, Any]:
    """Describe a model for its card.

    Args:
        model: a transformers model, a PEFT model around one, or any other module.
        class_names: K names from the training set, for a model whose own labels are LABEL_0, LABEL_1, ...

    Returns:
        `library` (transformers or peft), and `task`, `base` and `class_names`, as far as they are known.
    """
    adapters = getattr(model, "peft_config", None)
    network = model.get_base_model() if adapters and hasattr(model, "get_base_model") else model
    config = getattr(network, "config", None)
    base = getattr(config, "_name_or_path", None)
    if adapters:
        base = next(iter(adapters.values())).base_model_name_or_path or base
    id2label = getattr(config, "id2label", None) or {}
    labels = [str(id2label[index]) for index in sorted(id2label)]
    if class_names is not None and labels == [f"LABEL_{i}" for i in range(len(class_names))]:
        labels = list(class_names)
    record = {"task": task_of(type(network).__name__), "base": base, "class_names": labels}
    return {"library": "peft" if adapters else "transformers"} | {name: item for name, item in record.items() if item}


def local_names(options: Mapping[str, Any], base: str | None = None) -> list[str]:
    """Find which of a run's names are local files or folders, for a card that is made on another machine.

    Args:
        options: the options of the run, by name.
        base: the pretrained model, as the trained model names it.

    Returns:
        The dataset, the model and its base, as written in the options, if they are files or folders.
    """
    names = (options.get("dataset"), options.get("model_name_or_path"), base)
    return list(dict.fromkeys(name for name in names if name and os.path.exists(name)))


def machine_class() -> str:
    """Describe the hardware that figures are measured on, such as "2 CPU cores, x86_64", or the GPUs."""
    if torch.cuda.is_available():
        return f"{PartialState().num_processes} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def versions() -> dict[str, str]:
    """List the installed versions that affect results."""
    return {name: version(name) for name in ("hf-sharp", "torch", "transformers", "datasets", "accelerate")}
