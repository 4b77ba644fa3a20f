"""Turns logits into the columns of a prediction: label, probability, top k, abstention, set and expected cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sharp.data.costs import read_costs
from hf_sharp.model.confidence import prediction_sets, rare_classes
from hf_sharp.model.costs import expected_costs
from hf_sharp.recipe.decisions import Decisions
from hf_sharp.registry.limits import check_number

SAVED = "saved"
_CALIBRATE = "Run hf-sharp calibrate first, and name the model that it saves."


class Chooser:
    """Decides the label of each row, and makes the cells to write.

    Args:
        decisions: the decision rules saved with the model.
        top_k: how many of the most likely classes to list.
        abstain: the probability below which no label is given, as text; `saved` for the saved thresholds; None to
            always give a label.
        coverage: the coverage of the prediction sets; None for no sets.
        pool_rare: whether classes with too few calibration examples share one limit.

    Raises:
        ValueError: an option is out of range, or needs something that was not saved with the model.
    """

    def __init__(
        self,
        decisions: Decisions,
        top_k: int = 0,
        abstain: str | None = None,
        coverage: float | None = None,
        pool_rare: bool = False,
    ) -> None:
        self.decisions, self.top_k, self.coverage, self.pool_rare = decisions, top_k, coverage, pool_rare
        check_number("--top_k", top_k, least=0, most=len(decisions.classes), whole=True)
        check_number("--coverage", coverage, above=0, below=1, share=True, optional=True)
        if coverage is not None and decisions.scores is None:
            raise ValueError(f"--coverage needs calibration scores, which the model does not have. {_CALIBRATE}")
        if pool_rare and coverage is None:
            raise ValueError("--pool_rare has no effect without --coverage. Add one, or remove the other.")
        self._costs = None if decisions.costs is None else read_costs(decisions.costs, decisions.classes)
        self._thresholds = None if abstain is None else self._limits(abstain)

    def _limits(self, abstain: str) -> np.ndarray:
        if abstain == SAVED:
            if self.decisions.thresholds is None:
                raise ValueError(f"--abstain {SAVED} needs thresholds, which the model does not have. {_CALIBRATE}")
            if self.decisions.by_cost:
                raise ValueError(
                    f"--abstain {SAVED}: the saved thresholds are for the most likely class, but labels are those of "
                    "least expected cost. Give --abstain a number."
                )
            return np.array([np.inf if limit is None else limit for limit in self.decisions.thresholds])
        try:
            limit = float(abstain)
        except ValueError as error:
            raise ValueError(f"--abstain {abstain!r} is neither a number nor {SAVED!r}.") from error
        check_number("--abstain", limit, above=0, most=1, share=True)
        return np.full(len(self.decisions.classes), limit)

    @property
    def rare(self) -> list[str]:
        """The classes that have too few calibration examples, and so are in every set unless they are pooled."""
        if self.coverage is None:
            return []
        return [self.decisions.classes[c] for c in rare_classes(self.decisions.scores or [], self.coverage)]

    @property
    def columns(self) -> dict[str, str]:
        """The columns to write: name to kind (text, number, flag or texts)."""
        columns = {"label": "text", "probability": "number"}
        if self._thresholds is not None:
            columns["abstained"] = "flag"
        if self._costs is not None:
            columns["expected_cost"] = "number"
        if self.coverage is not None:
            columns["set"] = "texts"
        for rank in range(1, self.top_k + 1):
            columns |= {f"label_{rank}": "text", f"probability_{rank}": "number"}
        return columns

    def choose(self, logits: Tensor) -> list[dict[str, Any]]:
        """Decide the labels of rows.

        Args:
            logits: (N, K).

        Returns:
            N mappings from column to value.
        """
        names, rows = self.decisions.classes, torch.arange(len(logits))
        probabilities, decided = self.decisions.decide(logits)
        sure = probabilities[rows, decided]
        cells: list[dict[str, Any]] = [
            {"label": names[c], "probability": p} for c, p in zip(decided.tolist(), sure.tolist(), strict=True)
        ]
        if self._thresholds is not None:
            below = sure.numpy() < self._thresholds[decided.numpy()]
            for cell, no_label in zip(cells, below.tolist(), strict=True):
                cell |= {"abstained": no_label, "label": None if no_label else cell["label"]}
        if self._costs is not None:
            costs = expected_costs(probabilities, self._costs)[rows, decided]
            for cell, cost in zip(cells, costs.tolist(), strict=True):
                cell["expected_cost"] = cost
        if self.coverage is not None:
            scores = self.decisions.scores or []
            sets = prediction_sets(probabilities.numpy(), scores, self.coverage, pool_rare=self.pool_rare)
            order = probabilities.argsort(1, descending=True).tolist()
            for cell, inside, ranked in zip(cells, sets, order, strict=True):
                cell["set"] = [names[c] for c in ranked if inside[c]]
        best = probabilities.topk(self.top_k)
        for cell, values, indices in zip(cells, best.values.tolist(), best.indices.tolist(), strict=True):
            for rank, (value, c) in enumerate(zip(values, indices, strict=True), 1):
                cell |= {f"label_{rank}": names[c], f"probability_{rank}": value}
        return cells
