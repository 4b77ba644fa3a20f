"""Writes the config that a search chose, with a comment on each choice."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_sharp.recipe.search_space import METHOD, RADIUS, TAU
from hf_sharp.registry.words import quantity
from hf_sharp.reports.results import write_whole
from hf_sharp.reports.tuning import FINISHED, best_of, costs_of

# Options that the search set for its own runs, or that need the held-out examples, which the chosen config trains on.
# A validation_split stays: it is not trained on, and hf-sharp calibrate and others take it over.
_LEFT_OUT = {
    *("validation_fraction", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "compare_with", "output_dir", "resume_from_checkpoint"),
    *("overwrite_output_dir", "check_only", "dataloader_pin_memory"),
}


def to_train(options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options of a tuned config that have an effect if it is trained on all training examples.

    Args:
        options: the options of the config; None stands for the default.

    Returns:
        The options without those of validation during training.
    """
    kept = {name: value for name, value in options.items() if value is not None and name not in _LEFT_OUT}
    if kept.get("save_strategy") == "best":
        del kept["save_strategy"]
    if "test_fraction" not in kept:  # nothing is held out any more
        kept.pop("group_column", None)
    return kept


def write_config(
    file: Path,
    options: Mapping[str, Any],
    chosen: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    said: str,
) -> None:
    """Write the chosen config: the options that were searched first, each with a comment, then all others.

    Args:
        file: the YAML file.
        options: all options; None stands for the default.
        chosen: the options that the search chose.
        runs: all runs of the search.
        said: the result of the search in words, for the first lines of the file.
    """
    lines = [f"# {line}" for line in textwrap.wrap(f"Chosen by hf-sharp tune. {said}", 110)]
    for name, value in chosen.items():
        if value is not None:
            lines += ["", *(f"# {line}" for line in textwrap.wrap(_comment(name, runs), 110)), _yaml({name: value})]
    others = {name: value for name, value in to_train(options).items() if name not in chosen}
    lines += [
        "",
        "# As in the config that was tuned. Training uses all examples, also those that were held out.",
        _yaml(others),
    ]
    write_whole(file, "\n".join(lines) + "\n")


def _comment(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    best = best_of(runs)
    if name in ("sharpness", "ascent"):
        costs = costs_of(runs)
        shown = ", ".join(
            f"{method} {100 * run['value']:.1f} ({costs.of[run['number']]:.3g})"
            for method, run in _best_by(METHOD, runs).items()
        )
        what = f"best balanced accuracy in % by method, and in brackets the {costs.what}"
        return f"{name}: {what}: {shown}." if shown else f"{name}: as in the config."
    if name == "loss":
        return "loss: the one whose strength was searched."
    tried = sorted(
        run["options"][name]
        for run in runs
        if run["state"] == FINISHED and run["group"] == best["group"] and run["options"].get(name) is not None
    )
    if isinstance(tried[0], str):
        return f"{name}: tried {', '.join(sorted(set(tried)))}."
    of_method = f" with {best['group']}" if name == RADIUS else ""
    plain = "; 0 is no correction" if name == TAU and best["options"][name] == 0 else ""
    of = quantity(len(tried), "finished run", "finished runs")
    return f"{name}: the best of {of}{of_method}, {tried[0]:g} to {tried[-1]:g}{plain}."


def _best_by(parameter: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    best: dict[str, Mapping[str, Any]] = {}
    finished = [run for run in runs if run["state"] == FINISHED and parameter in run["params"]]
    for run in sorted(finished, key=lambda run: -run["value"]):
        best.setdefault(run["params"][parameter], run)
    return best


def _yaml(options: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True, width=120).rstrip()
