"""Lists the runs that a command asks for, and checks whether their folders are free or finished."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from transformers import TrainingArguments

from hf_sharp.losses import LOSSES
from hf_sharp.recipe.boundary import check_writable
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.reports.results import RESULTS, with_local
from hf_sharp.sharpness import METHODS
from hf_sharp.training_args import SharpTrainingArguments, unused_options

logger = logging.getLogger(__name__)

# Options that may differ between a finished run and the same run now.
INCIDENTAL = {"output_dir", "resume_from_checkpoint", "overwrite_output_dir", "compare_with", "disable_tqdm"}
INCIDENTAL |= {"hub_token", "push_to_hub", "check_data", "check_only"}
_OF_RECIPES = {"dataloader_pin_memory", "logging_steps", "remove_unused_columns"}  # set by a recipe, if not by the user
_METHOD_FIELDS = {item.name for item in fields(SharpTrainingArguments)} - {
    *(item.name for item in fields(TrainingArguments)),
    *("label_column", "rare_threshold", "common_threshold"),
}


@dataclass(frozen=True)
class Run:
    """One training run: its name, its training arguments, and all options that were set, to be recorded.

    `overwrites` tells whether the folder may contain an earlier run, which is removed when this run begins to train.
    """

    name: str
    args: SharpTrainingArguments
    options: dict[str, Any]
    overwrites: bool = False

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(str(self.args.output_dir))

    def clear(self) -> None:
        """Remove the results and checkpoints that this run overwrites, so that they cannot be taken for its own."""
        state = PartialState()
        if self.overwrites and state.is_main_process:
            (self.folder / RESULTS).unlink(missing_ok=True)
            for checkpoint in self.folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
        state.wait_for_everyone()


def plan_runs(parser: RecipeParser) -> list[Run]:
    """List the runs: those to compare with first, then the main one.

    Args:
        parser: the options.

    Returns:
        The runs. If there are several, each has its own folder in `output_dir`.

    Raises:
        ValueError: two runs have the same name, or results would be overwritten.
    """
    main = next(arguments for arguments in parser.build() if isinstance(arguments, SharpTrainingArguments))
    overwrite = bool(parser.values.get("overwrite_output_dir"))
    compare_with = [other for other in parser.values.get("compare_with") or [] if other != "none"]
    changes: dict[str, dict[str, Any]] = {}
    for other in compare_with:
        if other == "baseline":
            plain = dict.fromkeys(_METHOD_FIELDS & set(parser.values)) | {"sharpness": "none", "loss": "cross_entropy"}
            changes["baseline"] = plain
        elif "=" in other:
            changes[other] = _differences(parser.read_inline(other), repr(other))
        else:
            changes[Path(other).stem] = _differences(parser.read(other), other)
    name = main.loss if main.sharpness == "none" else f"{main.sharpness}+{main.loss}"
    if name in changes or len(changes) != len(compare_with):
        raise ValueError(f"two of the runs to compare have the same name: {[*map(str, compare_with), name]}.")
    runs = []
    for run, change in (changes | {name: {}}).items():
        change |= without_effect(parser.values, change)
        folder = os.path.join(str(main.output_dir), run) if changes else str(main.output_dir)
        built = parser.build(**change, output_dir=folder)
        args = next(arguments for arguments in built if isinstance(arguments, SharpTrainingArguments))
        # Without a name, trackers would show the test results after training as a separate run.
        name_of_all = main.run_name or str(main.output_dir)
        args.run_name = os.path.join(name_of_all, run) if changes else name_of_all
        if run != name:  # a repository holds one model, that of the main run
            args.push_to_hub, args.hub_model_id = False, None
        elif args.push_to_hub and args.hub_model_id is None:
            args.hub_model_id = Path(str(main.output_dir)).name
        options = {k: v for k, v in (parser.values | change).items() if v is not None and k not in INCIDENTAL}
        runs.append(Run(run, args, options, overwrite))
    if len(runs) > 1 and resumes(main) not in (False, True):
        raise ValueError(
            f"resume_from_checkpoint={main.resume_from_checkpoint!r} is the checkpoint of one run, but there "
            f"are {len(runs)} runs. Set it to true: each run continues from the last checkpoint in its own folder."
        )
    _check_output(runs, str(main.output_dir), overwrite)
    return runs


def without_effect(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, None]:
    """List the options of a config that have no effect once some of them change, such as rho without sharpness.

    Args:
        values: the options of the config.
        change: the options that change, with their new values.

    Returns:
        These options, mapped to None, which `RecipeParser.build` replaces by the default.
    """
    if not change:
        return {}
    asked = {name: value for name, value in {**values, **change}.items() if value is not None}
    chosen = {item.name: asked.get(item.name, item.default) for item in fields(SharpTrainingArguments)}
    if chosen["sharpness"] not in METHODS or chosen["loss"] not in LOSSES:
        return {}  # an unknown value is reported elsewhere
    return dict.fromkeys((unused_options(chosen).keys() & values.keys()) - change.keys())


def _differences(options: dict[str, Any], where: str) -> dict[str, Any]:
    trained = {item.name for item in fields(SharpTrainingArguments)} - {"output_dir", "resume_from_checkpoint"}
    others = sorted(set(options) - trained)
    if others:
        raise ValueError(
            f"{where} may only contain training options that differ; it also has {', '.join(others)}. Data, model and "
            "output folder are the same for all compared runs."
        )
    return options


def _check_output(runs: Sequence[Run], output_dir: str, overwrite: bool) -> None:
    planned = {run.folder for run in runs}
    beside = [path for path in Path(output_dir).glob("*") if path not in planned] if len(runs) > 1 else []
    if any(map(_holds_files, beside)) and not overwrite and not resumes(runs[0].args):
        raise ValueError(_not_empty(Path(output_dir)))
    for run in runs:
        folder = run.folder
        check_writable(folder)
        if overwrite:
            run.args.resume_from_checkpoint = None
            continue
        if not _holds_files(folder):
            continue
        if not resumes(run.args):
            raise ValueError(_not_empty(folder))
        if (folder / RESULTS).exists():
            check_finished(folder, run.options)
    PartialState().wait_for_everyone()  # a faster process must not create folders that a slower one still checks


def _holds_files(path: Path) -> bool:
    # Folders without files contain nothing that could be lost.
    return path.is_file() or any(files for _, _, files in os.walk(path))


@contextmanager
def no_folder_left(runs: Sequence[Run]) -> Iterator[None]:
    """Remove the empty folders that trainers create in the block.

    Args:
        runs: the runs.

    Yields:
        Nothing.
    """
    above = {folder for run in runs for folder in (run.folder, *run.folder.parents) if not folder.exists()}
    try:
        yield
    finally:
        for folder in sorted(above, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # missing, or not empty
                folder.rmdir()


def check_finished(folder: Path, options: Mapping[str, Any], whole: bool = True) -> None:
    """Raise a ValueError if the finished run in a folder had different options.

    Args:
        folder: the run's folder.
        options: the current options by name; those that cannot change the result are ignored.
        whole: whether these are all options, including those that the recipe adds itself.
    """
    done = with_local(folder, json.loads((folder / RESULTS).read_text(encoding="utf-8")))["options"]
    asked = {name: value for name, value in options.items() if value is not None and name not in INCIDENTAL}
    names = (done.keys() | asked.keys()) - (set() if whole else _OF_RECIPES)
    differ = sorted(name for name in names if done.get(name) != asked.get(name))
    if differ:
        shown = ", ".join(f"{k}: {done.get(k)!r} then, {asked.get(k)!r} now" for k in differ)
        raise ValueError(
            f"the finished run in {str(folder)!r} had other options ({shown}). Choose another output_dir, or "
            "overwrite it with --overwrite_output_dir."
        )


def _not_empty(folder: Path) -> str:
    return (
        f"the output folder {str(folder)!r} is not empty. Choose another output_dir, or continue with "
        "--resume_from_checkpoint true, or overwrite it with --overwrite_output_dir."
    )


def resumes(args: SharpTrainingArguments) -> bool | str:
    """Read `resume_from_checkpoint`: a boolean, the name of a boolean, or a folder.

    Args:
        args: the training arguments.

    Returns:
        True or False, whether to continue from the last checkpoint; or the checkpoint to continue from.
    """
    asked = args.resume_from_checkpoint
    return {"none": False, "false": False, "": False, "true": True}.get(str(asked).lower(), str(asked))
