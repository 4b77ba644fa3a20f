"""What the recipes share: a config file and flags in, runs side by side, and out comes one table.

A recipe says how its data and model become a trainer; everything around that is here, once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml
from accelerate import PartialState
from rich.console import Console
from transformers import HfArgumentParser, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from hf_sharp.metrics import comparison_table, long_tail_report
from hf_sharp.plots import plot_recall_by_count
from hf_sharp.trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)

RESULTS = "all_results.json"
# What may differ between a finished run and one that would be the same.
_INCIDENTAL = {"output_dir", "resume_from_checkpoint", "overwrite_output_dir", "compare_with", "disable_tqdm"}
_METHOD_FIELDS = {item.name for item in fields(SharpTrainingArguments)} - {
    *(item.name for item in fields(TrainingArguments)),
    *("label_column", "rare_threshold", "common_threshold"),
}


@dataclass
class DataArguments:
    """Which data, and how long its tail is made."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "'digits', a name on the Hub, a folder (images by class, CSV / JSON / Parquet, IDX, or saved with "
            "save_to_disk), or one CSV / JSON / Parquet file."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    test_split: str = field(default="test", metadata={"help": "The split that the final report is about."})
    test_fraction: float | None = field(
        default=None, metadata={"help": "Hold out this share of every class as the test split, where there is none."}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "The split to evaluate on while training. Never the test split."}
    )
    class_names: list[str] | None = field(default=None, metadata={"help": "Names of the classes, where data has none."})
    imbalance_factor: float | None = field(
        default=None, metadata={"help": "Make the training split long-tailed: largest over smallest class count."}
    )
    imbalance_profile: str = field(default="exponential", metadata={"help": "Shape of the tail: exponential or step."})
    imbalance_seed: int = field(default=0, metadata={"help": "Seed of the choice of examples for the tail."})


@dataclass
class ModelArguments:
    """Which model: pretrained by name or folder, or from scratch by its config."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A model on the Hub, or a folder."})
    model_config: str | dict | None = field(
        default=None, metadata={"help": "From scratch: the model's config with its model_type, as YAML mapping or JSON."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.model_config, str):
            self.model_config = json.loads(self.model_config)
        if (self.model_name_or_path is None) == (self.model_config is None):
            raise ValueError("say which model: either model_name_or_path (pretrained) or model_config (from scratch).")
        if isinstance(self.model_config, dict) and "model_type" not in self.model_config:
            raise ValueError(f"model_config needs a model_type, such as vit or bert; it has {list(self.model_config)}.")


@dataclass
class RunArguments:
    """Which runs, and what may be written over."""

    compare_with: list[str] | None = field(
        default=None,
        metadata={
            "help": "Runs to put beside this one, with the same data, model and seed: 'baseline' (no sharpness, "
            "cross-entropy), or a YAML file of the options that differ."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write over results that are there already."})


# ---- a config file and flags ------------------------------------------------------------------------------------


class RecipeParser:
    """Reads `--config file.yaml` for defaults and flags that override it.

    Args:
        argument_classes: dataclasses of arguments; one of them is `SharpTrainingArguments`.
        argv: the command line without the program's name; None: that of this process.

    Raises:
        ValueError: a config file that is missing, not YAML, or not a mapping; an unknown key or flag (the nearest
            valid name is given).
    """

    def __init__(self, argument_classes: Sequence[type], argv: Sequence[str] | None = None) -> None:
        self.argument_classes = tuple(argument_classes)
        self._parser = HfArgumentParser(self.argument_classes, allow_abbrev=False)
        self._parser.add_argument("--config", help="A YAML file of defaults; flags override it.")
        for action in self._parser._actions:
            action.default = argparse.SUPPRESS  # so that what was given can be told from what was not
        self._actions = {action.dest: action for action in reversed(self._parser._actions) if action.dest != "help"}
        given, unknown = self._parser.parse_known_args(argv)
        flags = vars(given)
        self._check_names([word.lstrip("-").split("=")[0] for word in unknown if word.startswith("--")], "flag")
        if unknown:
            raise ValueError(f"unexpected words on the command line: {' '.join(unknown)}")
        config = flags.pop("config", None)
        self.values: dict[str, Any] = (self.read(config) if config else {}) | flags

    def read(self, file: str) -> dict[str, Any]:
        """Read a YAML file of options, and check its keys."""
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"the config file {file!r} does not exist.")
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"the config file {file!r} is not YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"the config file {file!r} must be a mapping of options; it is {type(loaded).__name__}.")
        self._check_names(loaded, f"key in {file}")
        return {key: self._typed(key, value) for key, value in loaded.items()}

    def build(self, **overrides: Any) -> tuple[Any, ...]:
        """Make the argument dataclasses of what was given, with some values replaced (None: the default)."""
        values = {key: value for key, value in (self.values | overrides).items() if value is not None}
        return tuple(self._parser.parse_dict(values))

    def _typed(self, key: str, value: Any) -> Any:
        # YAML reads 1e-3 as text; the flag's type makes a number of it, as on the command line.
        convert = self._actions[key].type
        if not isinstance(value, str) or not callable(convert):
            return value
        try:
            return convert(value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{key}: {value!r} is not what is expected: {error}") from error

    def _check_names(self, names: Any, what: str) -> None:
        for name in names:
            if name not in self._actions:
                near = difflib.get_close_matches(str(name), self._actions, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else "--help lists the options."
                raise ValueError(f"unknown {what}: {name!r}. {hint}")


# ---- runs side by side ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training run: its name, its options, and everything that was asked for, for the record."""

    name: str
    args: SharpTrainingArguments
    options: dict[str, Any]


def plan_runs(parser: RecipeParser) -> list[Run]:
    """Make the list of runs: those to compare with first, then the one that was asked for.

    Args:
        parser: what was asked for.

    Returns:
        The runs. With several, each has a folder of its own in `output_dir`.

    Raises:
        ValueError: two runs of one name, or output that would be written over.
    """
    main = next(arguments for arguments in parser.build() if isinstance(arguments, SharpTrainingArguments))
    compare_with = parser.values.get("compare_with") or []
    changes: dict[str, dict[str, Any]] = {}
    for other in compare_with:
        if other == "baseline":
            plain = dict.fromkeys(_METHOD_FIELDS & set(parser.values)) | {"sharpness": "none", "loss": "cross_entropy"}
            changes["baseline"] = plain
        else:
            changes[Path(other).stem] = parser.read(other)
    name = main.loss if main.sharpness == "none" else f"{main.sharpness}+{main.loss}"
    if name in changes or len(changes) != len(compare_with):
        raise ValueError(f"two of the runs to compare have one name: {[*map(str, compare_with), name]}.")
    runs = []
    for run, change in (changes | {name: {}}).items():
        folder = os.path.join(main.output_dir, run) if changes else main.output_dir
        built = parser.build(**change, output_dir=folder)
        args = next(arguments for arguments in built if isinstance(arguments, SharpTrainingArguments))
        options = {k: v for k, v in (parser.values | change).items() if v is not None and k not in _INCIDENTAL}
        runs.append(Run(run, args, options))
    _check_output(runs, bool(parser.values.get("overwrite_output_dir")))
    return runs


def _check_output(runs: Sequence[Run], overwrite: bool) -> None:
    for run in runs:
        folder = Path(run.args.output_dir)
        if overwrite or not folder.is_dir() or not any(folder.iterdir()):
            continue
        if not run.args.resume_from_checkpoint:
            raise ValueError(
                f"the output folder {str(folder)!r} is not empty. Choose another output_dir, or continue with "
                "--resume_from_checkpoint true, or write over it with --overwrite_output_dir."
            )
        if (folder / RESULTS).exists():
            done = json.loads((folder / RESULTS).read_text())["options"]
            differ = sorted(k for k in done.keys() | run.options.keys() if done.get(k) != run.options.get(k))
            if differ:
                shown = ", ".join(f"{k}: {done.get(k)!r} then, {run.options.get(k)!r} now" for k in differ)
                raise ValueError(
                    f"the finished run in {str(folder)!r} had other options ({shown}). Choose another output_dir, or "
                    "write over it with --overwrite_output_dir."
                )
    PartialState().wait_for_everyone()  # before a faster process makes the folders that a slower one looks for


def run_side_by_side(
    runs: Sequence[Run],
    make_trainer: Callable[[SharpTrainingArguments], SharpTrainer],
    test_dataset: datasets.Dataset,
    title: str,
    output_dir: str,
) -> dict[str, dict[str, Any]]:
    """Train, evaluate and save every run; show them in one table and one picture.

    A run whose results are there already is not trained again when resuming.

    Args:
        runs: what to run.
        make_trainer: makes a trainer, with a fresh model, of arguments.
        test_dataset: what the reports are about; read once, after training.
        title: of table and picture.
        output_dir: where the picture and the comparison go.

    Returns:
        Run name to its results: `report`, `training`, `options`, `command`, `machine`, `versions`.
    """
    results = {}
    for run in runs:
        file = Path(run.args.output_dir) / RESULTS
        if run.args.resume_from_checkpoint and file.exists():
            logger.warning("%s is finished: its results are read from %s.", run.name, file)
            results[run.name] = json.loads(file.read_text())
        else:
            logger.warning("Training %s (%d of %d).", run.name, len(results) + 1, len(runs))
            results[run.name] = _train_and_evaluate(run, make_trainer, test_dataset)
    if PartialState().is_main_process:
        picture = Path(output_dir) / "recall_by_count.png"
        reports = {name: result["report"] for name, result in results.items()}
        plot_recall_by_count(reports, picture, title)
        console = Console()
        console.print(comparison_table(reports, title))
        console.print(f"picture  {picture}")
        for run in runs:
            console.print(f"model    {run.args.output_dir}  ({run.name})", highlight=False)
    return results


def _train_and_evaluate(
    run: Run, make_trainer: Callable[[SharpTrainingArguments], SharpTrainer], test_dataset: datasets.Dataset
) -> dict[str, Any]:
    args = run.args
    set_seed(args.seed)  # every run starts from the same weights
    trainer = make_trainer(args)
    training = trainer.train(resume_from_checkpoint=_checkpoint(args)).metrics
    predictions = trainer.predict(test_dataset)
    logits = predictions.predictions[0] if isinstance(predictions.predictions, tuple) else predictions.predictions
    report = long_tail_report(logits.argmax(-1), predictions.label_ids, trainer.class_frequencies)
    trainer.save_model()
    result = {
        "report": report,
        "training": {name: training[name] for name in ("train_runtime", "train_steps_per_second", "train_loss")},
        "options": run.options,
        "command": f"accelerate launch {shlex.join([os.path.relpath(sys.argv[0]), *sys.argv[1:]])}",
        "machine": machine_class(),
        "versions": {name: version(name) for name in ("hf-sharp", "torch", "transformers", "datasets", "accelerate")},
    }
    if trainer.is_world_process_zero():
        trainer.save_state()
        Path(args.output_dir, RESULTS).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _checkpoint(args: SharpTrainingArguments) -> str | None:
    asked = args.resume_from_checkpoint
    if str(asked).lower() in ("none", "false", ""):
        return None
    if str(asked).lower() == "true":
        return get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
    return str(asked)


def machine_class() -> str:
    """Say what a figure was measured on: "2 CPU cores, x86_64", or the GPUs' names."""
    if torch.cuda.is_available():
        return f"{PartialState().num_processes} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"
