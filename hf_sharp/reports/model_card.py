"""The model card: what `all_results.json` says, for a visitor of the Hub. Its template is model_cards/template.md.

What comes from outside (names of classes, datasets and models, options) is data: `one_line` makes it one printable line
for the metadata, which huggingface_hub writes as YAML, and `escaped` and `code` make it Markdown. The template gets
text that is ready, and Jinja renders it once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.losses.registry import LOSSES, build_loss, loss_options
from hf_sharp.reports.citations import CITATIONS, SHARPNESS
from hf_sharp.reports.markdown import code, escaped, one_line
from hf_sharp.reports.results import RESULTS, read_results
from hf_sharp.training_args import PLAIN_METHOD, SharpTrainingArguments

PICTURE = "recall_by_count.png"
# The Hub takes these, and for any other licence `other` with a name: hf.co/docs/hub/repositories-licenses.
# fmt: off
LICENCES = frozenset(
    {
        "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
        "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5",
        "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
        "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
        "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0",
        "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql", "ofl-1.1",
        "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "llama2", "gemma", "unknown", "other",
    }
)
# fmt: on
_TASKS = {"ForImageClassification": "image-classification", "ForSequenceClassification": "text-classification"}
_FOLDED_ABOVE = 20  # classes
_FEW_TEST_EXAMPLES = 20
_DEFAULTS: dict[str, Any] = {
    item.name: item.default_factory() if callable(item.default_factory) else item.default
    for item in dataclasses.fields(SharpTrainingArguments)
    if not (item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING)
}
_HELP = {item.name: str(item.metadata.get("help", "")) for item in dataclasses.fields(SharpTrainingArguments)}


def method_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Name every option of sharpness, loss and sampler that was in effect, with its value, the defaults too.

    Args:
        options: a run's options, as `all_results.json` has them.

    Returns:
        Option to value.

    Example:
        >>> method_of({"sharpness": "none", "loss": "vs", "loss_gamma": 0.1})
        {'sharpness': 'none', 'loss': 'vs', ..., 'sampler': 'instance', 'loss_gamma': 0.1, 'loss_tau': 1.0}
    """
    args = object.__new__(SharpTrainingArguments)  # as data: TrainingArguments' own __init__ sets up devices
    vars(args).update({name: options.get(name, value) for name, value in _DEFAULTS.items()})
    method = args.method
    if args.needs_head and args.head is not None:
        method["head"] = args.head
    if args.reweight_after is not None and args.loss_beta is None:
        method["loss_beta"] = build_loss("class_balanced", [2, 1]).options["loss_beta"]
    return method | _built_loss(method).options


def _built_loss(method: Mapping[str, Any]) -> Any:
    given = {name: method[name] for name in loss_options(method["loss"])}
    return build_loss(method["loss"], [2, 1], feature_dim=1, **given)


def build_card(
    results: Mapping[str, Any],
    *,
    model_name: str,
    pipeline_tag: str = "image-classification",
    base_model: str | None = None,
    dataset: str | None = None,
    licence: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Iterable[str] = (),
    class_names: Sequence[str] | None = None,
    picture: str | None = PICTURE,
    plain: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    library_name: str = "transformers",
) -> ModelCard:
    """Build the card of a trained model from its results. Every figure is one of the results' own, as it is there.

    Args:
        results: what one `all_results.json` holds: `report`, `training`, `options`, `machine`, `versions`, and maybe
            `radius`, `command` and `local` (see `local_names`); a report may lack what was not measured.
        model_name: the model's name.
        pipeline_tag: image-classification or text-classification.
        base_model: the pretrained model, a name on the Hub or a folder. Default: the options' `model_name_or_path`.
        dataset: a name on the Hub, or a folder, whose last part is shown. Default: the options' `dataset`.
        licence: an identifier of the Hub's; others become `other` with this name.
        language: ISO 639 codes of two or three letters, or code, multilingual.
        tags: more of them.
        class_names: K names; without them classes are numbers.
        picture: file name of the picture of recall against count, beside the card; None: there is none.
        plain: the results of plain training on the same data, for comparison.
        repo_id: what `pipeline` opens. Default: `model_name`.
        library_name: what loads the model.

    Returns:
        The card; `card.save(folder / "README.md")` writes it.

    Raises:
        ValueError: a language that the Hub does not take, or class names that are not one per class.
    """
    report, options = results["report"], results["options"]
    dataset = _placed(options.get("dataset") if dataset is None else dataset, results)
    base_model = _placed(options.get("model_name_or_path") if base_model is None else base_model, results)
    counts = [int(count) for count in report["class_counts"]]
    if class_names is not None and len(class_names) != len(counts):
        raise ValueError(f"got {len(class_names)} class names for {len(counts)} classes.")
    names = [str(i) for i in range(len(counts))] if class_names is None else list(class_names)
    thresholds = {name: int(report.get(name, _DEFAULTS[name])) for name in ("rare_threshold", "common_threshold")}
    frequencies = ClassFrequencies.from_counts(counts, **thresholds)
    method = method_of(options)
    name = one_line(model_name) or "model"
    hub_licence, licence_name = _licence(licence)
    data = ModelCardData(
        license=hub_licence,
        license_name=licence_name,
        language=_languages(language),
        base_model=_hub_id(base_model),
        datasets=[hub_name] if (hub_name := _hub_id(dataset)) else None,
        library_name=library_name,
        pipeline_tag=pipeline_tag,
        metrics=["accuracy"],
        tags=_tags(method, tags),
        model_name=name,
        eval_results=_eval_results(report, options, dataset, pipeline_tag, frequencies) or None,
    )
    if not data.eval_results:
        data.pop("model_name")
        data.pop("metrics")
    card = ModelCard.from_template(
        data,
        template_path=str(template_file()),
        name=escaped(name),
        summary=_summary(pipeline_tag, base_model, dataset, options, frequencies),
        results=_results_table(report, plain, frequencies),
        calibration=_percent(report.get("calibration_error")),
        rare=frequencies.rare_threshold,
        common=frequencies.common_threshold,
        picture=quote(picture) if picture and "per_class_recall" in report else None,
        classes=_class_table(report, names, frequencies),
        folded=len(counts) > _FOLDED_ABOVE,
        confusions=_confusions(report),
        limitations=_limitations(report, method, names, frequencies, options),
        example="picture.png" if pipeline_tag == "image-classification" else "A text to classify.",
        task=json.dumps(pipeline_tag),
        opened=json.dumps(one_line(repo_id or name), ensure_ascii=False),
        sharpness=SHARPNESS[method["sharpness"]],
        loss=_about_loss(method),
        method=[(option, _value(value), _about(option)) for option, value in method.items()],
        training=_training(results, plain),
        options=json.dumps(_without_secrets(options), indent=2, ensure_ascii=False),
        command=code(results["command"], 2000) if results.get("command") else None,
        citations=_citations(method),
    )
    return ModelCard(str(card))  # as a reader of the file will see it


def template_file() -> Path:
    """Find the template: in the package when installed from a wheel, in model_cards/ in the repository."""
    beside = Path(__file__).parents[1] / "model_card_template.md"
    return beside if beside.is_file() else Path(__file__).resolve().parents[2] / "model_cards" / "template.md"


def write_card(
    folder: str | os.PathLike[str], results: Mapping[str, Any] | None = None, *, draw: bool = True, **options: Any
) -> Path:
    """Write the card of a model's folder, with the picture of recall against count.

    Args:
        folder: has the model's `config.json`, and `all_results.json` unless `results` are given. A folder `baseline`
            beside it is what the model is compared with, where it differs in the method alone.
        results: as for `build_card`.
        draw: draw the picture; without it, one that is there already is shown.
        **options: as for `build_card`.

    Returns:
        The card's path.

    Raises:
        ValueError: there are no results of hf_sharp in the folder, or as `build_card`.
    """
    folder = Path(folder)
    results = read_results(folder) if results is None else results
    config = json.loads(file.read_text(encoding="utf-8")) if (file := folder / "config.json").is_file() else {}
    if id2label := config.get("id2label"):
        options.setdefault("class_names", [label for _, label in sorted(id2label.items(), key=lambda i: int(i[0]))])
    for architecture in config.get("architectures") or ():
        for ending, task in _TASKS.items():
            if architecture.endswith(ending):
                options.setdefault("pipeline_tag", task)
    if "plain" not in options:
        beside = folder.absolute().parent / "baseline"
        found = read_results(beside) if beside != folder.absolute() and (beside / RESULTS).is_file() else None
        options["plain"] = found if found and _same_but_method(found, results) else None
    if draw and "per_class_recall" in results["report"]:
        from hf_sharp.reports.plots import plot_recall_by_count

        runs = {"plain training": options["plain"]["report"]} if options["plain"] else {}
        plot_recall_by_count(runs | {"this model": results["report"]}, folder / PICTURE)
    options.setdefault("picture", PICTURE if (folder / PICTURE).is_file() else None)
    options.setdefault("model_name", folder.absolute().name)
    card = folder / "README.md"
    build_card(results, **options).save(card)
    return card


def _same_but_method(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    method = {*PLAIN_METHOD, "head"}
    method |= {name for run in (one, other) for name in method_of(run["options"])}
    differ = {
        k for k in one["options"].keys() | other["options"].keys() if one["options"].get(k) != other["options"].get(k)
    }
    return differ <= method and one["report"]["class_counts"] == other["report"]["class_counts"]


def _placed(name: str | None, results: Mapping[str, Any]) -> str | None:
    return os.path.join(os.curdir, name) if name and name in results.get("local", ()) else name  # no name on the Hub


def _hub_id(name: str | None) -> str | None:
    if name is None or name == "digits" or os.path.exists(name):  # scikit-learn's, or a folder of this machine
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _shown(name: str) -> str:
    return escaped(name if _hub_id(name) else Path(name).name or name)


def _licence(licence: str | None) -> tuple[str | None, str | None]:
    if licence is None:
        return None, None
    wanted = one_line(licence).lower()
    if wanted in LICENCES:
        return wanted, None
    return "other", re.sub(r"[^a-z0-9.]+", "-", wanted).strip("-.") or "unnamed"


def _languages(language: str | Sequence[str] | None) -> list[str] | None:
    codes = [language] if isinstance(language, str) else list(language or ())
    for given in codes:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", given):
            raise ValueError(
                f"language {given!r} is not what the Hub takes: an ISO 639 code of two or three small letters, such as "
                "en, or code, or multilingual."
            )
    return codes or None


def _tags(method: Mapping[str, Any], tags: Iterable[str]) -> list[str]:
    ours = ["hf-sharp", "long-tail", "class-imbalance"]
    if method["sharpness"] != "none":
        ours += ["sharpness-aware-minimization", method["sharpness"]]
    ours += [method["loss"]] if method["loss"] != PLAIN_METHOD["loss"] else []
    given = [tags] if isinstance(tags, str) else tags
    return [tag for tag in (*ours, *map(one_line, given)) if tag]


def _eval_results(
    report: Mapping[str, Any], options: Mapping[str, Any], dataset: str | None, task: str, frequencies: ClassFrequencies
) -> list[EvalResult]:
    labels = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy"}
    labels |= {f"{group}_accuracy": f"Mean recall, {_group(group, frequencies)}" for group in frequencies.groups}
    shown = one_line(Path(dataset).name if dataset and not _hub_id(dataset) else dataset or "") or "unknown"
    return [
        EvalResult(
            task_type=task,
            dataset_type=_hub_id(dataset) or re.sub(r"[^A-Za-z0-9]+", "-", shown).strip("-") or "unknown",
            dataset_name=shown,
            dataset_config=one_line(options.get("dataset_config") or "") or None,
            dataset_split=(one_line(options.get("test_split", "test")) or None) if "dataset" in options else None,
            metric_type=metric,
            metric_name=label,
            metric_value=float(report[metric]),
        )
        for metric, label in labels.items()
        if _is_number(report.get(metric))  # a group without classes has no result
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _percent(value: Any) -> str | None:
    return f"{100 * value:.1f}" if _is_number(value) else None


def _group(name: str, frequencies: ClassFrequencies) -> str:
    rare, common = frequencies.rare_threshold, frequencies.common_threshold
    size = len(frequencies.groups[name])
    limits = {"many": f"n > {common}", "medium": f"{rare} ≤ n ≤ {common}", "few": f"n < {rare}"}[name]
    return f"{name} ({limits}, {_number_of(size, 'class', 'classes')})"


def _number_of(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _summary(
    task: str, base: str | None, dataset: str | None, options: Mapping[str, Any], frequencies: ClassFrequencies
) -> str:
    counts = frequencies.counts
    article, what = ("An", "image") if task.startswith("image") else ("A", "text")
    scratch = options.get("model_config") or {}
    kind = scratch.get("model_type", "") if isinstance(scratch, Mapping) else ""
    if base:
        start = f"fine-tuned from {_linked(base, '')}"
    else:
        start = f"trained from scratch ({escaped(kind)})" if kind else "trained"
    data = f" on {_linked(dataset, 'datasets/')}" if dataset else ""
    tail = options.get("imbalance_factor")
    data += f", made long-tailed (factor {tail:g})" if dataset and _is_number(tail) else ""
    seen = _number_of(int(counts.sum()), "example", "examples")
    return (
        f"{article} {what} classifier of {_number_of(len(counts), 'class', 'classes')}, {start}{data}, with "
        f"`hf_sharp`. Its training set has {seen}: {int(counts.max()):,} of the most frequent class, "
        f"{int(counts.min()):,} of the rarest."
    )


def _linked(name: str, kind: str) -> str:
    return f"[{_shown(name)}](https://huggingface.co/{kind}{name})" if _hub_id(name) else _shown(name)


def _results_table(
    report: Mapping[str, Any], plain: Mapping[str, Any] | None, frequencies: ClassFrequencies
) -> list[list[str]]:
    rows = {"accuracy": "accuracy", "balanced accuracy": "balanced_accuracy"}
    rows |= {_group(group, frequencies): f"{group}_accuracy" for group in frequencies.groups}
    rows |= {"worst class": "worst_class_recall", "macro F1": "macro_f1"}
    reports = [report, plain["report"]] if plain else [report]
    table = []
    for label, metric in rows.items():
        cells = [_percent(one.get(metric)) or "–" for one in reports]
        if metric == "worst_class_recall":
            cells = [
                f"{cell} ({escaped(one['worst_class'])})" if cell != "–" else cell
                for cell, one in zip(cells, reports, strict=True)
            ]
        if any(metric in one for one in reports):
            table.append([label, *cells])
    return [["in %", "this model", *(["plain training"] if plain else [])], *table] if table else []


def _class_table(report: Mapping[str, Any], names: Sequence[str], frequencies: ClassFrequencies) -> list[list[str]]:
    group_of = {int(i): group for group, classes in frequencies.groups.items() for i in classes}
    columns = {
        "per_class_support": "test examples",
        "per_class_recall": "recall in %",
        "per_class_precision": "precision in %",
    }
    there = [column for column in columns if column in report]
    table = [["class", "training examples", "group", *(columns[column] for column in there)]]
    for i in sorted(group_of, key=lambda i: (-frequencies.counts[i], i)):
        cells = [
            f"{report[column][i]:,}" if column == "per_class_support" else _percent(report[column][i]) or "–"
            for column in there
        ]
        table.append([escaped(names[i]), f"{frequencies.counts[i]:,}", group_of[i], *cells])
    return table


def _confusions(report: Mapping[str, Any]) -> list[list[str]]:
    return [[escaped(c["true"]), escaped(c["predicted"]), f"{c['count']:,}"] for c in report.get("confusions", ())[:5]]


def _limitations(
    report: Mapping[str, Any],
    method: Mapping[str, Any],
    names: Sequence[str],
    frequencies: ClassFrequencies,
    options: Mapping[str, Any],
) -> list[str]:
    recall = report.get("per_class_recall", [])
    support = report.get("per_class_support", [])
    low = sorted((value, i) for i, value in enumerate(recall) if value is not None and value < 0.5)
    listed = (
        ("Not in the training data", [i for i, count in enumerate(frequencies.counts) if count == 0]),
        ("Not in the test data, so that the recall is unknown", [i for i, v in enumerate(recall) if v is None]),
        (
            f"Fewer than {_FEW_TEST_EXAMPLES} test examples, so that the recall is a rough estimate",
            [i for i, number in enumerate(support) if 0 < number < _FEW_TEST_EXAMPLES],
        ),
    )
    found = []
    if low:
        shown = ", ".join(f"{escaped(names[i])} ({_percent(value)} %)" for value, i in low)
        which = _number_of(len(low), "class is", "classes are")
        found.append(f"{which} recognised less than half of the time (recall below 50 %): {shown}.")
    for what, classes in listed:
        if classes:
            every = len(classes) == len(names)
            found.append(f"{what}: {'every class' if every else ', '.join(escaped(names[i]) for i in classes)}.")
    many, few = (report.get(name) for name in ("many_accuracy", "few_accuracy"))
    if many is not None and few is not None and few < many:
        found.append(f"Rare classes fare worse than frequent ones: {_percent(few)} % against {_percent(many)} %.")
    loss = _built_loss(method)
    adjusts = any(part is not None for part in (loss.weight, loss.offset, loss.class_scale, loss.label_scale))
    if adjusts or method["sampler"] != "instance" or method["reweight_after"] is not None:
        found.append(
            "It was trained to treat all classes alike: on data whose classes are as unequal as those of its training "
            "data it predicts rare classes too often, and its probabilities favour them."
        )
    if "accuracy" not in report:
        found.append("These weights were not evaluated.")
    seed = options.get("seed", _DEFAULTS["seed"])
    found.append(f"One training run (seed {code(seed)}): how much the figures change with the seed was not measured.")
    return found


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return code(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 2000)


def _about(option: str) -> str:
    first = _HELP[option].split(" One of:")[0]
    return escaped(first)


def _about_loss(method: Mapping[str, Any]) -> str:
    if method["loss"] == PLAIN_METHOD["loss"]:
        return "Cross-entropy."
    return escaped(str(LOSSES[method["loss"]].__doc__).splitlines()[0])


def _training(results: Mapping[str, Any], plain: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    training, radius = results.get("training", {}), results.get("radius")
    rows = [("seed", code(results["options"].get("seed", _DEFAULTS["seed"])))]
    if "train_runtime" in training:
        rows.append(("training time", f"{training['train_runtime']:,.1f} s"))
    speeds = [run.get("training", {}).get("train_steps_per_second") for run in (results, plain or {})]
    if _is_number(speeds[0]):
        rows.append(("optimizer steps per second", f"{speeds[0]:g}"))
    if all(_is_number(speed) and speed > 0 for speed in speeds) and plain["machine"] == results["machine"]:  # type: ignore[index]
        cost = f"{speeds[1] / speeds[0]:.2f} times ({speeds[1]:g} steps per second) in these two runs, on one machine"
        rows.append(("a step's time against plain training", cost))
    if _is_number(training.get("train_loss")):
        rows.append(("mean training loss", f"{training['train_loss']:.4f}"))
    if radius and radius.get("rho"):
        rows.append(("radius ρ, learned", f"from {radius['rho'][0]:.3g} to {radius['rho'][-1]:.3g}"))
    if results.get("machine"):
        rows.append(("hardware", escaped(results["machine"])))
    versions = results.get("versions", {}).items()
    return [*rows, *([("versions", ", ".join(f"{escaped(k)} {escaped(v)}" for k, v in versions))] if versions else [])]


def _without_secrets(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        kept = {one_line(k): _without_secrets(v, str(k)) for k, v in value.items()}
        return {k: v for k, v in kept.items() if not k.endswith("token")}
    if isinstance(value, (list, tuple)):
        return [_without_secrets(item) for item in value]
    return one_line(value) if isinstance(value, str) else value


def _citations(method: Mapping[str, Any]) -> list[str]:
    keys = [method["sharpness"]]
    if method["sharpness"] in ("imbsam", "focal_sam"):  # both are SAM, by class
        keys.insert(0, "sam")
    keys += ["adaptive"] if method.get("adaptive") else []
    keys += ["learned"] if method.get("rho_schedule") == "learned" else []
    keys += ["sharpness_every"] if method.get("sharpness_every", 1) > 1 else []
    keys += ["momentum"] if method.get("ascent") == "momentum" else []
    keys.append(method["loss"])
    keys += (
        ["class_balanced", "ldam"] if method["reweight_after"] is not None else []
    )  # the weights, and deferring them
    keys += ["sampler"] if method["sampler"] != "instance" else []
    lines = []
    for key in dict.fromkeys(keys):
        if key in CITATIONS:
            authors, title, where = CITATIONS[key]
            arxiv = re.fullmatch(r"\d{4}\.\d{5}", where)
            lines.append(
                f"{authors}, *{title}*, " + (f"[arXiv {where}](https://arxiv.org/abs/{where})" if arxiv else where)
            )
    return lines
