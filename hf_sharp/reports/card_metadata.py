"""The YAML block at the top of a model card, which the Hub uses to list, filter and compare models."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.local_paths import without_paths
from hf_sharp.reports.figures import group_labels, is_finite_number
from hf_sharp.reports.markdown import one_line, published
from hf_sharp.training_args import PLAIN_METHOD

# The identifiers that the Hub accepts; any other licence is `other` plus a name: hf.co/docs/hub/repositories-licenses.
# fmt: off
LICENCES = frozenset((
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bigcode-openrail-m", "bigscience-bloom-rail-1.0",
    "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0",
    "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "gemma",
    "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "lppl-1.3c", "mit",
    "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "other", "pddl",
    "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
))
# fmt: on

_DIGITS = 4  # the decimals of a share, because the Hub shows the value without rounding


@dataclass(frozen=True)
class Subject:
    """The model that a card describes.

    Attributes:
        name: the model's name.
        task: the pipeline's name; None if unknown.
        library: the library that loads the model.
        base_model: the pretrained model, a name on the Hub or a folder.
        dataset: a name on the Hub or a folder.
        options: the run's options.
        method: the options of sharpness, loss and sampler that are in effect.
        frequencies: the class frequencies of the training set.
    """

    name: str
    task: str | None
    library: str
    base_model: str | None
    dataset: str | None
    options: Mapping[str, Any]
    method: Mapping[str, Any]
    frequencies: ClassFrequencies


def card_metadata(
    subject: Subject,
    report: Mapping[str, Any],
    licence: str | None = None,
    language: str | Sequence[str] | None = None,
    tags: Iterable[str] = (),
) -> ModelCardData:
    """Collect the metadata of a card. Every string is one printable line, so that huggingface_hub can write it as YAML.

    Args:
        subject: the model.
        report: the long-tail report.
        licence: a licence identifier of the Hub, or any other name.
        language: ISO 639 codes.
        tags: the user's tags.

    Returns:
        The metadata, without empty entries, which the Hub rejects.

    Raises:
        ValueError: the Hub does not accept the language.
    """
    hub_licence, licence_name = _licence(licence)
    dataset_id = hub_id(subject.dataset)
    data = ModelCardData(
        license=hub_licence,
        license_name=licence_name,
        language=_languages(language),
        base_model=hub_id(subject.base_model),
        datasets=[dataset_id] if dataset_id else None,
        library_name=subject.library,
        pipeline_tag=subject.task,
        metrics=["accuracy"],
        tags=_tags(subject.method, tags),
        model_name=subject.name,
        eval_results=_eval_results(subject, report) or None,
    )
    if not data.eval_results:
        data.pop("model_name")
        data.pop("metrics")
    return data


def hub_id(name: str | None) -> str | None:
    """Return a name that can be a repository on the Hub; None for a local folder and anything else."""
    if name is None or name == "digits" or os.path.exists(name):  # digits: scikit-learn's data set
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def local_name(name: str) -> str:
    """Return the last component of a path, because the rest should not be published."""
    return Path(without_paths(name)).name or name


def _licence(licence: str | None) -> tuple[str | None, str | None]:
    if licence is None:
        return None, None
    identifier = one_line(licence).lower()
    if identifier in LICENCES:
        return identifier, None
    return "other", re.sub(r"[^a-z0-9.]+", "-", identifier).strip("-.") or "unnamed"


def _languages(language: str | Sequence[str] | None) -> list[str] | None:
    codes = [language] if isinstance(language, str) else list(language or ())
    for code in codes:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", code):
            raise ValueError(
                f"the Hub does not accept language {code!r}; expected an ISO 639 code of two or three lowercase "
                "letters, such as en, or code, or multilingual."
            )
    return codes or None


def _tags(method: Mapping[str, Any], tags: Iterable[str]) -> list[str]:
    method_tags = ["hf-sharp", "long-tail", "class-imbalance"]
    if method["sharpness"] != "none":
        method_tags += ["sharpness-aware-minimization", method["sharpness"]]
    method_tags += [method["loss"]] if method["loss"] != PLAIN_METHOD["loss"] else []
    user_tags = [tags] if isinstance(tags, str) else tags
    return [tag for tag in (*method_tags, *map(one_line, user_tags)) if tag]


def _eval_results(subject: Subject, report: Mapping[str, Any]) -> list[EvalResult]:
    labels = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy"}
    labels |= {
        f"{group}_accuracy": f"Mean recall, {label}"
        for group, label in group_labels(subject.frequencies, report).items()
    }
    options, dataset_id = subject.options, hub_id(subject.dataset)
    dataset_name = one_line(dataset_id or local_name(subject.dataset or "")) or "unknown"
    return [
        EvalResult(
            task_type=subject.task or "other",
            dataset_type=dataset_id or re.sub(r"[^A-Za-z0-9]+", "-", dataset_name).strip("-") or "unknown",
            dataset_name=dataset_name,
            dataset_config=one_line(published(options.get("dataset_config") or "")) or None,
            dataset_split=(one_line(published(options.get("test_split", "test"))) or None)
            if "dataset" in options
            else None,
            metric_type=metric,
            metric_name=label,
            metric_value=round(float(report[metric]), _DIGITS),
        )
        for metric, label in labels.items()
        if is_finite_number(report.get(metric))  # a group without classes has no result
    ]
