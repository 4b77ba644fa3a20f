"""The model card: the results of a run for visitors of the Hub, from the template model_cards/template.md.

Names of classes, datasets and models are untrusted. They are escaped before they reach the template, which Jinja
renders once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.registry.words import quantity
from hf_sharp.reports import card_evaluation as evaluation
from hf_sharp.reports import card_training as training
from hf_sharp.reports.card_changes import limits_of, notice, sections
from hf_sharp.reports.card_metadata import Subject, card_metadata, hub_id, local_name
from hf_sharp.reports.card_training import method_of
from hf_sharp.reports.figures import is_finite_number
from hf_sharp.reports.markdown import escaped, one_line
from hf_sharp.reports.results import RESULTS, TASKS, read_results, results_of, task_of
from hf_sharp.training_args import PLAIN_METHOD

PICTURE = "recall_by_count.png"
_DATA = ("class_counts", "per_class_support")  # the entries that describe the training and the evaluated data
_NAMED = 50  # the most classes to name in the Python code that opens an adapter
_SPLITS = ("test", "validation", "evaluation")  # possible splits of a report; evaluation: a Trainer's eval_dataset


def build_card(
    results: Mapping[str, Any],
    *,
    model_name: str,
    pipeline_tag: str | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    licence: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Iterable[str] = (),
    class_names: Sequence[str] | None = None,
    picture: str | None = PICTURE,
    pictures: Sequence[str] = (),
    plain: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    opened: str | None = None,
    custom_code: bool = False,
    library_name: str | None = None,
) -> ModelCard:
    """Build the card of a trained model; all its figures come from the results.

    Args:
        results: the content of `all_results.json`: `report`, `options`, `training`, `machine` and `versions`, and
            optionally `method`, `described`, `model`, `radius`, `tta`, `command` and `local`. A report may lack
            figures; `split` names its split, if it is not the test split. `changes` lists changes of the model after
            training, as `hf_sharp.reports.card_changes` describes them. Also optional is `over_seeds`: `seeds` (two or
            more), `metrics` (metric to one value per seed) and possibly `plain` (the same for plain training). These
            become further columns: mean ± standard deviation, and the paired gain over plain training with its 95 %
            interval.
        model_name: the model's name.
        pipeline_tag: the task, such as image-classification. Default: the task in the results; without one, the card
            does not say how to use the model.
        base_model: the pretrained model, a name on the Hub or a folder. Default: the base in the results, or the option
            `model_name_or_path`.
        dataset: a name on the Hub, or a folder, of which the last component is shown. Default: the option `dataset`.
        licence: a licence identifier of the Hub; any other name becomes `other` with this name.
        language: ISO 639 codes of two or three letters, or code, multilingual.
        tags: additional tags.
        class_names: K names. Default: the names in the results; without names, classes are numbers.
        picture: the file name of the plot of recall against class count, beside the card; None for no plot.
        pictures: the file names of further plots of the evaluation, beside the card.
        plain: the results of plain training on the same data, for comparison.
        repo_id: the name on the Hub that `pipeline` opens.
        opened: the name that `pipeline` opens if there is no `repo_id`. Default: `model_name`.
        custom_code: whether the model comes with its own code, which a user has to trust.
        library_name: the library that loads the model. Default: transformers, or peft for an adapter.

    Returns:
        The card; `card.save(folder / "README.md")` writes it.

    Raises:
        ValueError: the Hub does not accept the language, or there is not one name per class.
    """
    report, options, model = results["report"], results["options"], results.get("model", {})
    changes = results.get("changes", ())
    split = results.get("split", "test")
    split = split if split in _SPLITS else "evaluation"
    opened = one_line(repo_id or opened or model_name) or "model"
    subject = Subject(
        name=one_line(model_name) or "model",
        task=pipeline_tag or model.get("task"),
        library=library_name or model.get("library", "transformers"),
        base_model=_local_as_path(base_model or model.get("base") or options.get("model_name_or_path"), results),
        dataset=_local_as_path(options.get("dataset") if dataset is None else dataset, results),
        options=options,
        method=results.get("method") or method_of(options),
        frequencies=_frequencies(report, class_names or model.get("class_names")),
    )
    card = ModelCard.from_template(
        card_metadata(subject, report if split != "validation" else {}, licence, language, tags),
        template_path=str(template_file()),
        name=escaped(subject.name),
        notice=notice(changes, report, split),
        summary=_summary(subject),
        sections=sections(changes, opened),
        **usage(subject.task, opened, repo_id, custom_code),
        adapter=subject.library == "peft",
        base=json.dumps(hub_id(subject.base_model) or "path/to/base_model"),
        labels=_labels(subject.frequencies),
        **_figures(results, subject, split, plain, picture, pictures),
        **training.training_section(results, plain, subject.method),
    )
    return ModelCard(str(card))  # parsed again, as a reader of the file will do


def _figures(
    results: Mapping[str, Any],
    subject: Subject,
    split: str,
    plain: Mapping[str, Any] | None,
    picture: str | None,
    pictures: Sequence[str],
) -> dict[str, Any]:
    # The template's values that depend on the report.
    report, over_seeds = results["report"], results.get("over_seeds")
    return {
        "limitations": evaluation.limitations(
            report,
            subject.frequencies,
            balanced=limits_of(results.get("changes", ()), training.treats_classes_alike(subject.method)),
            seed=results["options"].get("seed", training.DEFAULTS["seed"]),
            seeds=len(over_seeds["seeds"]) if over_seeds else 0,
            split=split,
        ),
        "tta": evaluation.test_time_augmentation(results.get("tta")),
        **evaluation.evaluation_section(
            report, plain and plain["report"], subject.frequencies, picture, pictures, over_seeds, split
        ),
    }


def template_file() -> Path:
    """Return the template's path: in the package if it was installed from a wheel, else in the repository."""
    packaged = Path(__file__).parents[1] / "model_card_template.md"
    return packaged if packaged.is_file() else Path(__file__).resolve().parents[2] / "model_cards" / "template.md"


def write_card(
    folder: str | os.PathLike[str], results: Mapping[str, Any] | None = None, *, draw: bool = True, **options: Any
) -> Path:
    """Write the card of the model in a folder, with the plot of recall against class count.

    Args:
        folder: the folder with the model's `config.json` and, unless `results` are passed, `all_results.json`. The
            model is compared with the run in the folder `baseline` beside it, if they differ only in the method.
        results: as for `build_card`.
        draw: whether to draw the plot; if not, the card shows an existing one.
        **options: as for `build_card`.

    Returns:
        The path of the card.

    Raises:
        ValueError: the folder has no results of hf_sharp; or as for `build_card`.
    """
    folder = Path(folder)
    results = read_results(folder) if results is None else results
    options = read_config(folder) | options
    if "plain" not in options:
        options["plain"] = _plain_run(folder.absolute(), results)
    if draw and "per_class_recall" in results["report"]:
        from hf_sharp.reports.plots import plot_recall_by_count

        runs = {"plain training": options["plain"]["report"]} if options["plain"] else {}
        plot_recall_by_count(
            runs | {"this model": results["report"]},
            folder / PICTURE,
            methods={"this model": results["options"].get("sharpness", training.DEFAULTS["sharpness"])},
            names=options.get("class_names") or results.get("model", {}).get("class_names"),
        )
    options.setdefault("picture", PICTURE if (folder / PICTURE).is_file() else None)
    options.setdefault("pictures", [name for name in results.get("pictures", ()) if (folder / str(name)).is_file()])
    options.setdefault("model_name", _model_name(folder.absolute(), results, options.get("repo_id")))
    options.setdefault("opened", shown_folder(folder.absolute()))
    card = folder / "README.md"
    build_card(results, **options).save(card)
    return card


def write_trainer_card(trainer: Any, results: Mapping[str, Any] | None = None, **given: Any) -> Path:
    """Write the card of a trainer's model.

    Args:
        trainer: a `SharpTrainer`.
        results: as for `build_card`. Default: the results of the trainer, with the report of its last evaluation.
        **given: as for `build_card`; None for the default. Of a list of tasks or datasets, the first is used.

    Returns:
        The path of the card.
    """
    for name in ("pipeline_tag", "dataset"):
        if isinstance(given[name], list):
            given[name] = next(iter(given[name]), None)
    if results is None:
        results = results_of(trainer, getattr(getattr(trainer, "report_keeper", None), "report", None))
    options = {name: value for name, value in given.items() if value}
    return write_card(str(trainer.args.output_dir), results, repo_id=trainer.hub_model_id, **options)


def _model_name(folder: Path, results: Mapping[str, Any], repo_id: str | None) -> str:
    if repo_id:
        return repo_id.rpartition("/")[2]
    options = {part: results["options"].get(part, training.DEFAULTS[part]) for part in ("sharpness", "loss", "seed")}
    # The folder may be one of several runs in a folder, a run of hf-sharp compare, or a model of hf-sharp tune.
    of_runs = {options["loss"], f"{options['sharpness']}+{options['loss']}", f"seed_{options['seed']}"}
    of_runs |= {"model"} if (folder.parent / "tuning.json").is_file() else set()
    is_run = folder.name in of_runs and not results.get("changes")
    return (folder.parent.name if is_run else "") or folder.name


def shown_folder(folder: Path) -> str:
    """Return a folder's path relative to the working folder; outside it, only the last component."""
    here = Path.cwd()
    return folder.relative_to(here).as_posix() if folder.is_relative_to(here) and folder != here else folder.name


def read_config(folder: Path) -> dict[str, Any]:
    """Read the options of `build_card` that follow from a model's `config.json`: name to value."""
    config = config_of(folder)
    options: dict[str, Any] = {"custom_code": "auto_map" in config}
    if id2label := config.get("id2label"):
        options["class_names"] = [label for _, label in sorted(id2label.items(), key=lambda item: int(item[0]))]
    for architecture in config.get("architectures") or ():
        options["pipeline_tag"] = task_of(architecture)
    return options


def config_of(folder: Path) -> dict[str, Any]:
    """Read a model's `config.json`; empty if there is none, as for adapters."""
    file = folder / "config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _plain_run(folder: Path, results: Mapping[str, Any]) -> dict[str, Any] | None:
    baseline = folder.parent / "baseline"
    if baseline == folder or not (baseline / RESULTS).is_file():
        return None
    plain = read_results(baseline)
    return plain if _same_but_method(plain, results) else None


def _same_but_method(plain: Mapping[str, Any], results: Mapping[str, Any]) -> bool:
    method = {*PLAIN_METHOD, "head", *method_of(plain["options"]), *method_of(results["options"])}
    names = plain["options"].keys() | results["options"].keys()
    different = {name for name in names if plain["options"].get(name) != results["options"].get(name)}
    ours, theirs = ((run.get("split"), *map(run["report"].get, _DATA)) for run in (results, plain))
    return different <= method and ours == theirs


def _local_as_path(name: str | None, results: Mapping[str, Any]) -> str | None:
    # A folder on the training machine may look like a name on the Hub; "./" marks it as a path on any machine.
    return os.path.join(os.curdir, name) if name and name in results.get("local", ()) else name


def _frequencies(report: Mapping[str, Any], class_names: Sequence[str] | None) -> ClassFrequencies:
    counts = [int(count) for count in report["class_counts"]]
    if class_names is not None and len(class_names) != len(counts):
        raise ValueError(f"got {len(class_names)} class names for {len(counts)} classes.")
    limits = ("rare_threshold", "common_threshold")
    thresholds = {limit: int(report.get(limit, training.DEFAULTS[limit])) for limit in limits}
    names = None if class_names is None else tuple(class_names)
    return ClassFrequencies.from_counts(counts, names=names, **thresholds)


def _labels(frequencies: ClassFrequencies) -> str:
    # The argument that gives the base model of an adapter its classes; if there are many, only their number.
    if frequencies.names is None or frequencies.num_classes > _NAMED:
        return f"num_labels={frequencies.num_classes}"
    return f"id2label=dict(enumerate({json.dumps([*map(one_line, frequencies.names)], ensure_ascii=False)}))"


def usage(task: str | None, opened: str, repo_id: str | None = None, custom_code: bool = False) -> dict[str, Any]:
    """Collect the template's values on how to use a model: variable in the template to value."""
    return {
        "usage": TASKS.get(task or ""),
        "task": json.dumps(task),
        "opened": json.dumps(opened, ensure_ascii=False),
        "published": repo_id is not None,
        "custom_code": custom_code,
    }


def _from_scratch(config: Any) -> str:
    # `config` is a mapping, JSON, or the path of a file that may not exist here; None if a script made the model.
    if isinstance(config, str):
        with suppress(ValueError):
            config = json.loads(config)
    model_type = config.get("model_type") if isinstance(config, Mapping) else None
    kind = f" ({escaped(model_type)})" if model_type else ""
    return f" from scratch{kind}" if config else ""


def _summary(subject: Subject) -> str:
    counts, task, dataset = subject.frequencies.counts, subject.task, subject.dataset
    what = f"{TASKS[task].article} {TASKS[task].kind} classifier" if task in TASKS else "A classifier"
    if subject.base_model:
        start = f"fine-tuned from {_linked(subject.base_model, '')}"
    else:
        start = f"trained{_from_scratch(subject.options.get('model_config'))}"
    data = f" on {_linked(dataset, 'datasets/')}" if dataset else ""
    factor = subject.options.get("imbalance_factor")
    if dataset and is_finite_number(factor):
        data += f", subsampled to be long-tailed (imbalance factor {factor:g})"
    return (
        f"{what} for {quantity(len(counts), 'class', 'classes')}, {start}{data} with `hf_sharp`. The training set has "
        f"{quantity(int(counts.sum()), 'example', 'examples')}: {int(counts.max()):,} of the most frequent class, "
        f"{int(counts.min()):,} of the rarest."
    )


def _linked(name: str, kind: str) -> str:
    if hub_id(name):
        return f"[{escaped(name)}](https://huggingface.co/{kind}{name})"
    return escaped(local_name(name))
