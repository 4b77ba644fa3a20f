"""`hf-sharp adjust --cost`: fold costs into the head if that is exact, else save them as a table beside the model."""

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
from hf_sharp.recipe.changed import save_changed
from hf_sharp.recipe.decisions import DECISIONS, Decisions, class_labels_of, read_decisions
from hf_sharp.recipe.recorded import from_here
from hf_sharp.recipe.saved import LookArguments, load_saved, takes_images
from hf_sharp.reports.card_changes import DECIDED, PREDICTIONS
from hf_sharp.reports.card_training import method_of, treats_classes_alike

logger = logging.getLogger(__name__)

_SHOWN = 10


def adjust_for_costs(
    name: str, costs: str, output: Path, record: Mapping[str, Any], data: LookArguments, head: str | None = None
) -> None:
    """Save a model that predicts the class of least expected cost, and print how it does so.

    Args:
        name: the model's folder or Hub name.
        costs: the costs of mistakes, as `read_costs` takes them.
        output: the new folder to save the model in.
        record: what the training recorded.
        data: the arguments that name the tokenizer.
        head: the name of the layer that computes the logits, if it is not found automatically.

    Raises:
        ValueError: the costs cannot be read, or the model was adjusted before.
    """
    if data.tokenizer_name is None and (tokenizer := record.get("options", {}).get("tokenizer_name")):
        data.tokenizer_name = from_here(record, tokenizer)
    model, processor = load_saved(name, takes_images(name, data.trust_remote_code), data)
    classes = class_labels_of(model.config)
    check_unadjusted(model)
    matrix, decisions = read_costs(costs, classes, "--cost"), read_decisions(name, model.config)
    warn_of_balanced_model(record)
    try:
        if decisions.temperature != 1:
            raise ValueError("the temperature is not in the head")
        model = fold_costs(model, matrix, head=head)
        # The probabilities change, so that the saved thresholds and calibration scores no longer hold.
        decisions = replace(decisions, cost_matrix=None, precision=None, thresholds=None, scores=None)
        effect = PREDICTIONS
        how = "the costs are in the head: any pipeline() predicts the class of least expected cost"
    except ValueError as error:
        decisions = replace(decisions, cost_matrix=matrix.tolist())
        effect = DECIDED
        how = f"{_reason(error)}: hf-sharp predict and evaluate apply the table in {DECISIONS}"
    change = {"command": "adjust --cost", "effect": effect, "folded": effect == PREDICTIONS} | _highest(matrix, classes)
    save_changed(name, model, processor, output, change, record, decisions)
    console = Console()
    console.print(f"costs    {how}", highlight=False)
    console.print(f"model    {output}", highlight=False, soft_wrap=True)


def costs_of(decisions: Decisions, record: Mapping[str, Any]) -> Any:
    """Return the costs to measure a model by.

    Args:
        decisions: the decision rules saved with the model.
        record: what the training recorded.

    Returns:
        The costs that the model's predictions follow; else those of the training; None if there are none.
    """
    return decisions.costs or record.get("data", {}).get("cost_matrix")


def _reason(error: ValueError) -> str:
    return str(error).split(", so no bias")[0].split(". ")[0]


def warn_of_balanced_model(record: Mapping[str, Any]) -> None:
    """Warn if the model was trained to treat all classes alike: expected costs then assume equally common classes."""
    if record and treats_classes_alike(method_of(record["options"])):
        logger.warning(
            "The model was trained to make up for the class counts: its probabilities, and so the least cost, suit "
            "data in which all classes are about equally common."
        )


def _highest(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    # The costs for the card, the highest first: per true class, or per pair if they depend on the predicted class.
    per_class, number = class_costs(matrix), len(classes)
    if per_class is not None:
        order = np.argsort(-per_class, kind="stable")
        found = [{"true": classes[c], "predicted": None, "cost": float(per_class[c])} for c in order]
    else:
        pairs = (divmod(int(i), number) for i in np.argsort(-matrix, axis=None, kind="stable"))
        found = [{"true": classes[c], "predicted": classes[j], "cost": float(matrix[c, j])} for c, j in pairs if c != j]
    return {"costs": found[:_SHOWN], "further": len(found[_SHOWN:])}
