"""Runs to compare: each is trained, evaluated and saved, and all are shown in one table and one picture."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import TrainingArguments, set_seed

from hf_sharp.losses import LOSSES
from hf_sharp.recipe.adapters import check_merging, merge_adapters
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.reports.long_tail_report import numbers_of, report_of_prediction
from hf_sharp.reports.model_card import PICTURE, write_card
from hf_sharp.reports.plots import plot_radius, plot_recall_by_count
from hf_sharp.reports.results import RESULTS, local_names, machine_class, records_of, versions
from hf_sharp.reports.table import comparison_table
from hf_sharp.reports.tracking import finish_runs, send_picture, takes_pictures
from hf_sharp.sharpness import METHODS
from hf_sharp.trainer.checkpoint_files import whole_checkpoint
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments, unused_options

logger = logging.getLogger(__name__)

# Options that may differ between a finished run and the same run now.
_INCIDENTAL = {"output_dir", "resume_from_checkpoint", "overwrite_output_dir", "compare_with", "disable_tqdm"}
_INCIDENTAL |= {"hub_token", "push_to_hub", "check_data"}
_METHOD_FIELDS = {item.name for item in fields(SharpTrainingArguments)} - {
    *(item.name for item in fields(TrainingArguments)),
    *("label_column", "rare_threshold", "common_threshold"),
}


@dataclass(frozen=True)
class Run:
    """One training run: its name, its training arguments, and all options that were set, for the record."""

    name: str
    args: SharpTrainingArguments
    options: dict[str, Any]


def plan_runs(parser: RecipeParser) -> list[Run]:
    """List the runs: those to compare with first, then the main one.

    Args:
        parser: the options.

    Returns:
        The runs. If there are several, each has its own folder in `output_dir`.

    Raises:
        ValueError: two runs with the same name, or results that would be overwritten.
    """
    main = next(arguments for arguments in parser.build() if isinstance(arguments, SharpTrainingArguments))
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
        # Without a name, trackers would show the test after training as a separate run.
        name_of_all = main.run_name or str(main.output_dir)
        args.run_name = os.path.join(name_of_all, run) if changes else name_of_all
        options = {k: v for k, v in (parser.values | change).items() if v is not None and k not in _INCIDENTAL}
        runs.append(Run(run, args, options))
    if len(runs) > 1 and _resume(main) not in (False, True):
        raise ValueError(
            f"resume_from_checkpoint={main.resume_from_checkpoint!r} is the checkpoint of one run, and there "
            f"are {len(runs)} runs. Set it to true: each run continues from the last checkpoint in its own folder."
        )
    _check_output(runs, str(main.output_dir), bool(parser.values.get("overwrite_output_dir")))
    return runs


def without_effect(values: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, None]:
    """List the options of a config that have no effect once some of them change, such as rho without sharpness.

    Args:
        values: the options of the config.
        change: those that differ.

    Returns:
        Option to None, which `RecipeParser.build` takes for the default.
    """
    if not change:
        return {}
    asked = {name: value for name, value in {**values, **change}.items() if value is not None}
    chosen = {item.name: asked.get(item.name, item.default) for item in fields(SharpTrainingArguments)}
    if chosen["sharpness"] not in METHODS or chosen["loss"] not in LOSSES:
        return {}  # refused elsewhere
    return dict.fromkeys((unused_options(chosen).keys() & values.keys()) - change.keys())


def _differences(options: dict[str, Any], where: str) -> dict[str, Any]:
    trained = {item.name for item in fields(SharpTrainingArguments)} - {"output_dir", "resume_from_checkpoint"}
    others = sorted(set(options) - trained)
    if others:
        raise ValueError(
            f"{where} may only hold the training options that differ; it also has {', '.join(others)}. Data, model and "
            "output folder are the same for all compared runs."
        )
    return options


def _check_output(runs: Sequence[Run], output_dir: str, overwrite: bool) -> None:
    planned = {Path(str(run.args.output_dir)) for run in runs}
    beside = [path for path in Path(output_dir).glob("*") if path not in planned] if len(runs) > 1 else []
    if beside and not overwrite and not _resume(runs[0].args):
        raise ValueError(_not_empty(Path(output_dir)))
    for run in runs:
        folder = Path(str(run.args.output_dir))
        above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise ValueError(
                f"the output folder {str(folder)!r} cannot be created: {str(above)!r} is no folder to write to."
            )
        if overwrite:
            run.args.resume_from_checkpoint = None
            continue
        if not folder.is_dir() or not any(folder.iterdir()):
            continue
        if not _resume(run.args):
            raise ValueError(_not_empty(folder))
        if (folder / RESULTS).exists():
            check_finished(folder, run.options)
    state = PartialState()
    state.wait_for_everyone()  # before a faster process creates the folders that a slower one checks
    if overwrite and state.is_main_process:
        for run in runs:  # so that a later run does not take these for its own
            Path(str(run.args.output_dir), RESULTS).unlink(missing_ok=True)
            for checkpoint in Path(str(run.args.output_dir)).glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
    state.wait_for_everyone()


def check_finished(folder: Path, options: Mapping[str, Any], whole: bool = True) -> None:
    """Raise a ValueError if the finished run in a folder had other options than the ones now.

    Args:
        folder: the run's folder.
        options: options by name; those that cannot change the result are ignored.
        whole: whether these are all options, including those that the recipe adds itself.
    """
    done = json.loads((folder / RESULTS).read_text())["options"]
    asked = {name: value for name, value in options.items() if value is not None and name not in _INCIDENTAL}
    names = done.keys() | asked.keys() if whole else asked.keys()
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


def run_side_by_side(
    runs: Sequence[Run],
    make_trainer: Callable[[SharpTrainingArguments], SharpTrainer],
    test_dataset: datasets.Dataset,
    title: str,
    output_dir: str,
    data: Mapping[str, Any] | None = None,
    merge: bool = True,
) -> dict[str, dict[str, Any]]:
    """Train, evaluate and save every run; show all of them in one table and one picture.

    Every trainer is made once before the first training, so that a mistake in a later run is found at once. When
    resuming, finished runs are not trained again.

    Args:
        runs: the runs.
        make_trainer: takes training arguments and makes a trainer with a fresh model.
        test_dataset: the data of the reports; read once, after training.
        title: title of table and picture.
        output_dir: the folder for the picture.
        data: what was found out about the data, recorded with the results.
        merge: whether adapters are merged into the saved model.

    Returns:
        Run name to its results: `report`, `training`, `options`, `command`, `machine`, `versions`, `data` if there is
        anything to record, and `radius` over the steps if it is learned.
    """
    state = PartialState()
    for run in runs if len(runs) > 1 else ():
        if not (Path(str(run.args.output_dir)) / RESULTS).exists():
            make_trainer(run.args)
    results: dict[str, dict[str, Any]] = {}
    for run in runs:
        file = Path(str(run.args.output_dir)) / RESULTS
        # The main process tells the others, which may not see the file on another machine.
        finished = (
            json.loads(file.read_text()) if state.is_main_process and _resume(run.args) and file.exists() else None
        )
        (finished,) = broadcast_object_list([finished])
        if state.is_main_process:
            what = f"is finished: its results are in {file}" if finished else f"({len(results) + 1} of {len(runs)})"
            logger.warning("%s %s", run.name, what)
        results[run.name] = finished or _train_and_evaluate(run, make_trainer, test_dataset, data or {}, merge)
    if state.is_main_process:
        picture = Path(output_dir) / "recall_by_count.png"
        reports = {name: result["report"] for name, result in results.items()}
        plot_recall_by_count(reports, picture, title)
        console = Console()
        console.print(comparison_table(reports, title))
        console.print(f"picture  {picture}", soft_wrap=True)  # a path to copy must not be wrapped
        if radii := {name: result["radius"] for name, result in results.items() if result.get("radius")}:
            picture = picture.with_name("radius.png")
            plot_radius(radii, picture, title)
            console.print(f"picture  {picture}", soft_wrap=True)
        for run in runs:
            console.print(f"model    {run.args.output_dir}  ({run.name})", highlight=False, soft_wrap=True)
    return results


def _train_and_evaluate(
    run: Run,
    make_trainer: Callable[[SharpTrainingArguments], SharpTrainer],
    test_dataset: datasets.Dataset,
    data: Mapping[str, Any],
    merge: bool,
) -> dict[str, Any]:
    args = run.args
    set_seed(args.seed)  # all runs start from the same weights
    trainer = make_trainer(args)
    check_merging(trainer, merge)
    training = trainer.train(resume_from_checkpoint=_checkpoint(args)).metrics
    adapter = merge_adapters(trainer, merge)  # before the report, which is about the saved model
    trainer.save_model()  # before the test data is read: what fails there must not lose the model
    if trainer.is_world_process_zero():
        trainer.save_state()
    with stage(f"the model is saved in {str(args.output_dir)!r}, but the test split cannot be evaluated"):
        report = report_of_prediction(trainer.predict(test_dataset), trainer.class_frequencies)
    result = {
        "report": report,
        "training": {name: training[name] for name in ("train_runtime", "train_steps_per_second", "train_loss")},
        "options": run.options,
        "local": local_names(run.options),
        "command": _command(),
        "machine": machine_class(),
        "versions": versions(),
        **records_of(trainer),
        **({"data": dict(data)} if data else {}),
        **adapter,
    }
    if args.learns_rho:
        logged = [entry for entry in trainer.state.log_history if "rho" in entry]
        logged.append({"step": trainer.state.global_step, "rho": float(trainer.rho)})
        result["radius"] = {name: [entry[name] for entry in logged] for name in ("step", "rho")}
    if trainer.is_world_process_zero():
        file = Path(str(args.output_dir), RESULTS)
        unfinished = file.with_suffix(".part")  # the results appear complete or not at all
        unfinished.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(file)
        write_card(str(args.output_dir), repo_id=args.hub_model_id)
    _track(trainer, run.name, result)
    return result


def _track(trainer: SharpTrainer, name: str, result: Mapping[str, Any]) -> None:
    callbacks, step, folder = trainer.callback_handler.callbacks, trainer.state.global_step, trainer.args.output_dir
    if not trainer.args.report_to:
        return
    trainer.log({f"test_{metric}": value for metric, value in numbers_of(result["report"]).items()})
    if trainer.is_world_process_zero():
        send_picture(callbacks, "test/recall_by_count", Path(str(folder), PICTURE), step)
        if result.get("radius") and any(map(takes_pictures, callbacks)):
            plot_radius({name: result["radius"]}, picture := Path(str(folder), "radius.png"))
            send_picture(callbacks, "train/radius", picture, step)
    finish_runs(callbacks)  # so that the next run's figures are not added to this one's


def _command() -> str:
    script = os.path.relpath(sys.argv[0])
    if script.startswith(os.pardir):  # outside: leave out where the checkout lies
        script = os.path.join(*Path(script).parts[-2:])
    words = ["python", *(["-m", "hf_sharp.recipe"] if script.endswith("__main__.py") else [script]), *sys.argv[1:]]
    secret = [i + 1 for i, word in enumerate(words) if word == "--hub_token"]
    return shlex.join(
        "…" if i in secret else re.sub(r"^--hub_token=.*", "--hub_token=…", w) for i, w in enumerate(words)
    )


def _resume(args: SharpTrainingArguments) -> bool | str:
    asked = args.resume_from_checkpoint  # a truth value, its name, or a folder
    return {"none": False, "false": False, "": False, "true": True}.get(str(asked).lower(), str(asked))


def _checkpoint(args: SharpTrainingArguments) -> str | None:
    asked, folder = _resume(args), str(args.output_dir)
    if asked is True:
        return whole_checkpoint(folder, args.process_index, args.world_size)
    return asked or None
