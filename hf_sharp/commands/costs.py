"""`hf-sharp adjust --cost`: costs in the head where that is exact, else as a table beside the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hf_sharp.data.costs import read_costs
from hf_sharp.model.costs import class_costs, fold_costs
from hf_sharp.model.posthoc import check_unadjusted
from hf_sharp.recipe.changed import card_with_section, save_changed
from hf_sharp.recipe.decisions import DECISIONS, class_labels_of, read_decisions
from hf_sharp.recipe.saved import LookArguments, load_saved, takes_images
from hf_sharp.reports.card_training import method_of, treats_classes_alike
from hf_sharp.reports.markdown import escaped

logger = logging.getLogger(__name__)

_SHOWN = 10


def adjust_for_costs(
    name: str, costs: str, output: Path, record: Mapping[str, Any], data: LookArguments, head: str | None = None
) -> None:
    """Save a model that predicts the class of least expected cost, and say how.

    Args:
        name: the model's folder or Hub name.
        costs: what mistakes cost, as for `read_costs`.
        output: a new folder.
        record: what the training recorded.
        data: the tokenizer's name.
        head: the name of the layer that computes the logits, if it is not found automatically.

    Raises:
        ValueError: costs that cannot be read, or a model that was adjusted before.
    """
    data.tokenizer_name = data.tokenizer_name or record.get("options", {}).get("tokenizer_name")
    model, processor = load_saved(name, takes_images(name, data.trust_remote_code), data)
    classes = class_labels_of(model.config)
    check_unadjusted(model)
    matrix, decisions = read_costs(costs, classes, "--cost"), read_decisions(name, model.config)
    warn_of_balanced_model(record)
    try:
        model = fold_costs(model, matrix, head=head)
        # The probabilities change, and thresholds and calibration scores with them.
        decisions = replace(decisions, cost_matrix=None, precision=None, thresholds=None, scores=None)
        how = "the costs are in the head: any pipeline() predicts the class of least expected cost"
    except ValueError as error:
        decisions = replace(decisions, cost_matrix=matrix.tolist())
        how = f"{_reason(error)}: hf-sharp predict and evaluate apply the table in {DECISIONS}"
    card = card_with_section(name, "Costs of mistakes", _said(matrix, classes, decisions.cost_matrix is None), "costs")
    save_changed(name, model, processor, output, card, record, decisions)
    console = Console()
    console.print(f"costs    {how}", highlight=False)
    console.print(f"model    {output}", highlight=False, soft_wrap=True)


def _reason(error: ValueError) -> str:
    return str(error).split(", so no bias")[0].split(". ")[0]


def warn_of_balanced_model(record: Mapping[str, Any]) -> None:
    """Warn that costs are weighed with the probabilities of a model that was trained to treat all classes alike."""
    if record and treats_classes_alike(method_of(record["options"])):
        logger.warning(
            "The model was trained to treat all classes alike: its probabilities, and so the least cost, are those of "
            "data in which all classes are equally common."
        )


def _said(matrix: np.ndarray, classes: Sequence[str], folded: bool) -> str:
    per_class = class_costs(matrix)
    if per_class is not None:
        order = np.argsort(-per_class, kind="stable")[:_SHOWN]
        rows = [f"| {escaped(classes[c])} | {per_class[c]:g} |" for c in order]
        rest = f"\n\n{len(classes) - _SHOWN} further classes cost no more." if len(classes) > _SHOWN else ""
        table = "\n".join(["| true class | a mistake costs |", "|---|---:|", *rows]) + rest
    else:
        pairs = [divmod(int(i), len(classes)) for i in np.argsort(-matrix, axis=None, kind="stable")[:_SHOWN]]
        rows = [f"| {escaped(classes[c])} | {escaped(classes[j])} | {matrix[c, j]:g} |" for c, j in pairs if c != j]
        table = "\n".join(["| true class | predicted class | costs |", "|---|---|---:|", *rows])
        table += f"\n\nThese are the highest; `{DECISIONS}` has all."
    how = (
        "Mistakes have different costs, which `hf-sharp adjust` folded into the head: the class with the highest score "
        "is the one of least expected cost, and the scores are no probabilities."
        if folded
        else f"Mistakes have different costs. `hf-sharp predict` chooses the class of least expected cost by the table "
        f"in `{DECISIONS}`; a plain `pipeline()` still chooses the most likely class."
    )
    return f"{how} Figures above are those of the model before.\n\n{table}"
