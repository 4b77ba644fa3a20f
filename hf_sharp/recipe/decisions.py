"""Decision rules applied to a model's probabilities, saved beside the model in `decisions.json`.

A temperature or costs that are folded into the head are not saved here, because every `pipeline()` applies them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_sharp.data.class_names import shown
from hf_sharp.data.costs import read_costs
from hf_sharp.model.costs import expected_costs
from hf_sharp.model.records import RECORD
from hf_sharp.recipe.recorded import file_beside
from hf_sharp.reports.results import write_whole

DECISIONS = "decisions.json"


_IN_CONFIG = ("class_costs", "correct_costs")


@dataclass(frozen=True)
class Decisions:
    """The decision rules of a model; None or 1 where nothing was chosen.

    Args:
        classes: K class names, in the order of the model's classes.
        temperature: T, which divides the logits; 1 if it is folded into the head.
        cost_matrix: (K, K) costs, for predictions of least expected cost.
        precision: the precision that the thresholds were chosen for.
        thresholds: K confidences from which to accept a prediction; None to accept no prediction of this class.
        scores: K lists of calibration scores, for prediction sets.
        class_costs: (K,) what a mistake on each class costs beyond a correct prediction, folded into the head; not
            saved here, but in the config.
        correct_costs: (K,) the costs of correct predictions, with `class_costs`; None if they cost nothing.
    """

    classes: list[str]
    temperature: float = 1.0
    cost_matrix: list[list[float]] | None = None
    precision: float | None = None
    thresholds: list[float | None] | None = None
    scores: list[list[float]] | None = None
    class_costs: list[float] | None = None
    correct_costs: list[float] | None = None

    @property
    def by_cost(self) -> bool:
        """Whether labels are the classes of least expected cost instead of the most likely classes."""
        return self.cost_matrix is not None or self.class_costs is not None

    @property
    def costs(self) -> Any:
        """The costs of mistakes, in a form that `read_costs` takes; None if all mistakes cost the same."""
        if self.class_costs is None or self.correct_costs is None:
            return self.cost_matrix or self.class_costs
        mistakes = np.array(self.class_costs)[:, None] * (1 - np.eye(len(self.classes)))
        return (mistakes + np.array(self.correct_costs)[:, None]).tolist()

    @property
    def holds_something(self) -> bool:
        """Whether there is any decision rule besides taking the most likely class."""
        return self.temperature != 1 or any((self.cost_matrix, self.thresholds, self.scores))

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute probabilities (N, K) in float64 and the decided classes (N,) from logits (N, K).

        Costs that are folded into the head are divided out, so that the results are probabilities again.
        """
        logits = logits.double()
        if self.class_costs is not None:
            plain = logits - torch.tensor(self.class_costs, dtype=torch.float64).log()
            return (plain / self.temperature).softmax(1), logits.argmax(1)
        probabilities = (logits / self.temperature).softmax(1)
        if self.cost_matrix is None:
            return probabilities, probabilities.argmax(1)
        return probabilities, expected_costs(probabilities, self.cost_matrix).argmin(1)

    def save(self, folder: Path) -> None:
        """Write decisions.json into a model's folder, unless there is no decision rule."""
        if self.holds_something:
            chosen = {k: value for k, value in asdict(self).items() if value is not None and k not in _IN_CONFIG}
            write_whole(folder / DECISIONS, json.dumps(chosen, ensure_ascii=False) + "\n")


def class_labels_of(config: Any) -> list[str]:
    """List the class names in a model's config, as `pipeline()` shows them; LABEL_0, ... if it has none."""
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def read_decisions(model: str, config: Any) -> Decisions:
    """Read the decisions saved with a model.

    Args:
        model: a folder, or a name on the Hub.
        config: the model's config, with its classes and the costs folded into its head.

    Returns:
        The decision rules; those of a plain model if none were saved.

    Raises:
        ValueError: the file is damaged, or belongs to other classes.
    """
    file, classes = file_beside(model, DECISIONS), class_labels_of(config)
    recorded = getattr(config, RECORD, None) or {}
    in_head: dict[str, Any] = {name: recorded.get(name) for name in _IN_CONFIG}
    if file is None:
        return Decisions(classes, **in_head)
    advice = "Write it again with hf-sharp calibrate or hf-sharp adjust --cost, or remove it."
    try:
        values = Decisions(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{DECISIONS} of the model {model!r} is damaged: {error}. {advice}") from error
    if values.classes != classes:
        raise ValueError(
            f"{DECISIONS} is for the classes {shown(values.classes)}, but the model {model!r} has {shown(classes)}. "
            f"{advice}"
        )
    wrong = [name for name in ("thresholds", "scores") if len(getattr(values, name) or classes) != len(classes)]
    if wrong or not values.temperature > 0:
        raise ValueError(f"{DECISIONS} of the model {model!r} is damaged: {(wrong or ['temperature'])[0]}. {advice}")
    if values.cost_matrix is not None:
        read_costs(np.asarray(values.cost_matrix), classes, f"{DECISIONS}: cost_matrix")
    return replace(values, **in_head)
