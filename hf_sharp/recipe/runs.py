"""Runs to compare: each is trained, evaluated and saved, and all are shown in one table and one plot."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from transformers import set_seed

from hf_sharp.data.local_paths import shown_command
from hf_sharp.recipe.adapters import check_merging, merge_adapters
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.planned import Run, resumes
from hf_sharp.reports.evaluation_pictures import draw_prediction
from hf_sharp.reports.long_tail_report import check_finite, mean_prediction, numbers_of, report_of_prediction
from hf_sharp.reports.model_card import PICTURE, write_card
from hf_sharp.reports.plots import plot_radius, plot_recall_by_count
from hf_sharp.reports.results import (
    RESULTS,
    cost_of,
    local_names,
    machine_class,
    records_of,
    shared_results,
    versions,
    write_results,
)
from hf_sharp.reports.table import comparison_table
from hf_sharp.reports.tracking import finish_runs, send_picture, takes_pictures
from hf_sharp.trainer.checkpoint_files import check_same_method, whole_checkpoint
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)


class TestData(NamedTuple):
    """The data of the final report.

    Attributes:
        split: the test split.
        tta: the name of the test-time augmentation.
        views: the split in each of its views.
    """

    split: datasets.Dataset
    tta: str = "none"
    views: Sequence[datasets.Dataset] = ()


def run_side_by_side(
    runs: Sequence[Run],
    make_trainer: Callable[[SharpTrainingArguments], SharpTrainer],
    test: TestData,
    title: str,
    output_dir: str,
    data: Mapping[str, Any] | None = None,
    merge: bool = True,
) -> dict[str, dict[str, Any]]:
    """Train, evaluate and save every run; show all of them in one table and one plot.

    Every trainer is created once before the first training, so that a mistake in a later run is found at once. When
    resuming, finished runs are not trained again.

    Args:
        runs: the runs.
        make_trainer: takes training arguments and returns a trainer with a new model.
        test: the data of the reports; read after training, once, and once more for each view.
        title: the title of table and plot.
        output_dir: the folder for the plot.
        data: what was found out about the data, recorded with the results.
        merge: whether adapters are merged into the saved model.

    Returns:
        Run name to its results: `report`, `training`, `options`, `command`, `machine`, `versions`, `data` if there is
        anything to record, `tta` if there are views, and `radius` over the steps if it is learned.
    """
    state = PartialState()
    if len(runs) > 1:
        check_runs(runs, make_trainer, merge)
        for run in runs:
            run.clear()
    results: dict[str, dict[str, Any]] = {}
    for run in runs:
        file = run.folder / RESULTS
        # The main process tells the other processes, which may be on machines that do not have the file.
        is_read = state.is_main_process and resumes(run.args) and file.exists()
        finished = json.loads(file.read_text(encoding="utf-8")) if is_read else None
        (finished,) = broadcast_object_list([finished])
        if state.is_main_process:
            what = f"is finished: its results are in {file}" if finished else f"({len(results) + 1} of {len(runs)})"
            logger.warning("%s %s", run.name, what)
        results[run.name] = finished or _train_and_evaluate(run, make_trainer, test, data or {}, merge)
        gc.collect()  # trainers are in reference cycles with their models
    if state.is_main_process:
        picture = Path(output_dir) / "recall_by_count.png"
        reports = {name: result["report"] for name, result in results.items()}
        plot_recall_by_count(reports, picture, title)
        console = Console()
        passes = {name: result["training"].get("passes") for name, result in results.items()}
        console.print(comparison_table(reports, title, passes))
        console.print(f"picture  {picture}", soft_wrap=True)  # a path to copy must not be wrapped
        if radii := {name: result["radius"] for name, result in results.items() if result.get("radius")}:
            picture = picture.with_name("radius.png")
            plot_radius(radii, picture, title)
            console.print(f"picture  {picture}", soft_wrap=True)
        for run in runs:
            console.print(f"model    {run.args.output_dir}  ({run.name})", highlight=False, soft_wrap=True)
    return results


def check_runs(
    runs: Sequence[Run], make_trainer: Callable[[SharpTrainingArguments], SharpTrainer], merge: bool = True
) -> None:
    """Create the trainer of every unfinished run, with model, loss, method and head, without training.

    Args:
        runs: the runs.
        make_trainer: as for `run_side_by_side`.
        merge: whether adapters are to be merged into the saved model.

    Raises:
        ValueError: the options of a run do not fit, or its checkpoint to continue from has a different method.
    """
    for run in runs:
        if run.overwrites or not (run.folder / RESULTS).exists():
            trainer = make_trainer(run.args)
            check_merging(trainer, merge)
            if checkpoint := _checkpoint(run.args):
                check_same_method(checkpoint, trainer.method_state.method)
            del trainer
            gc.collect()


def _train_and_evaluate(
    run: Run,
    make_trainer: Callable[[SharpTrainingArguments], SharpTrainer],
    test: TestData,
    data: Mapping[str, Any],
    merge: bool,
) -> dict[str, Any]:
    args = run.args
    set_seed(args.seed)  # all runs start from the same weights
    trainer = make_trainer(args)
    check_merging(trainer, merge)
    run.clear()
    training = trainer.train(resume_from_checkpoint=_checkpoint(args)).metrics
    adapter = merge_adapters(trainer, merge)  # before the report, which describes the saved model
    # Saved before the test data is read, so that an error there does not lose the model. Pushed with the card.
    trainer.save_model(_internal_call=True)
    if trainer.is_world_process_zero():
        trainer.save_state()
    with stage(f"the model is saved in {str(args.output_dir)!r}, but the test split cannot be evaluated"):
        report, prediction, tta = _tested(trainer, test)
    records = records_of(trainer)
    if trainer.cost_matrix is not None:  # recorded as numbers, because the file may not exist later
        data = {**data, "cost_matrix": trainer.cost_matrix.tolist()}
    result = {
        "report": report,
        "training": {name: training[name] for name in ("train_runtime", "train_steps_per_second", "train_loss")}
        | cost_of(trainer),
        "options": run.options,
        "trained_in": os.getcwd(),
        "local": local_names(run.options, records["model"].get("base")),
        "command": _command(),
        "machine": machine_class(),
        "versions": versions(),
        **records,
        **({"data": dict(data)} if data else {}),
        **tta,
        **adapter,
    }
    if args.learns_rho:
        logged = [entry for entry in trainer.state.log_history if "rho" in entry]
        logged.append({"step": trainer.state.global_step, "rho": float(trainer.rho)})
        result["radius"] = {name: [entry[name] for entry in logged] for name in ("step", "rho")}
    if trainer.is_world_process_zero():
        result["pictures"] = draw_prediction(Path(str(args.output_dir)), report, prediction)
        write_results(str(args.output_dir), result)
        write_card(str(args.output_dir), repo_id=trainer.hub_model_id or args.hub_model_id)
    if args.push_to_hub:
        trainer.push_to_hub(results=shared_results(result))  # for the card, which is rewritten
    _track(trainer, run.name, result)
    return shared_results(result)


def _tested(trainer: SharpTrainer, test: TestData) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    # Returns the report, the predictions, and, with views, the figures of a single view, which pipeline() gives.
    prediction: Any = trainer.predict(test.split)
    check_finite(prediction.predictions, "the test split")
    report = report_of_prediction(prediction, trainer.class_frequencies, trainer.cost_matrix)
    if not test.views:
        return report, prediction, {}
    one_view = {name: report[name] for name in ("accuracy", "balanced_accuracy")}
    prediction = mean_prediction(map(trainer.predict, test.views))
    record = {"name": test.tta, "views": len(test.views), "one_view": one_view}
    report = report_of_prediction(prediction, trainer.class_frequencies, trainer.cost_matrix)
    return report, prediction, {"tta": record}


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
    finish_runs(callbacks)  # so that trackers do not add the next run's figures to this run


def _command() -> str:
    script = os.path.relpath(sys.argv[0])
    if script.startswith(os.pardir):  # outside the working directory: do not reveal the path of the checkout
        script = os.path.join(*Path(script).parts[-2:])
    words = ["python", *(["-m", "hf_sharp.recipe"] if script.endswith("__main__.py") else [script]), *sys.argv[1:]]
    return shown_command(words)


def _checkpoint(args: SharpTrainingArguments) -> str | None:
    asked, folder = resumes(args), str(args.output_dir)
    if asked is True:
        return whole_checkpoint(folder, args.process_index, args.world_size)
    return asked or None
