"""What is decided after the model's probabilities, saved beside it: `decisions.json`.

A temperature or costs that the head holds are not here: every `pipeline()` applies those.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from hf_sharp.data.class_names import shown
from hf_sharp.data.costs import read_costs
from hf_sharp.model.costs import expected_costs
from hf_sharp.recipe.recorded import file_beside

DECISIONS = "decisions.json"


@dataclass(frozen=True)
class Decisions:
    """What to do with a model's probabilities; None or 1 where nothing was chosen.

    Args:
        classes: K class names, in the order of the model's.
        temperature: T, that divides the logits; 1 where the head holds it.
        cost_matrix: (K, K), for the prediction of least expected cost.
        precision: what the thresholds were chosen for.
        thresholds: (K,) the lowest confidence to accept; None: no prediction of this class is accepted.
        scores: (K,) lists of calibration scores, for prediction sets.
    """

    classes: list[str]
    temperature: float = 1.0
    cost_matrix: list[list[float]] | None = None
    precision: float | None = None
    thresholds: list[float | None] | None = None
    scores: list[list[float]] | None = None

    @property
    def holds_something(self) -> bool:
        """Whether anything differs from taking the most likely class."""
        return self.temperature != 1 or any((self.cost_matrix, self.thresholds, self.scores))

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Compute probabilities (N, K) in float64 and the decided classes (N,) from logits (N, K)."""
        probabilities = (logits.double() / self.temperature).softmax(1)
        if self.cost_matrix is None:
            return probabilities, probabilities.argmax(1)
        return probabilities, expected_costs(probabilities, self.cost_matrix).argmin(1)

    def save(self, folder: Path) -> None:
        """Write decisions.json into a model's folder; nothing if there is nothing to decide."""
        if self.holds_something:
            chosen = {name: value for name, value in asdict(self).items() if value is not None}
            (folder / DECISIONS).write_text(json.dumps(chosen, ensure_ascii=False) + "\n", encoding="utf-8")


def read_decisions(model: str, classes: Sequence[str]) -> Decisions:
    """Read the decisions saved with a model.

    Args:
        model: a folder, or a name on the Hub.
        classes: K names of the model's classes.

    Returns:
        The decisions; those of a plain model where none were saved.

    Raises:
        ValueError: the file is damaged, or for other classes.
    """
    file, classes = file_beside(model, DECISIONS), [str(name) for name in classes]
    if file is None:
        return Decisions(classes)
    advice = "Write it again with hf-sharp calibrate or hf-sharp adjust --cost, or remove it."
    try:
        values = Decisions(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{DECISIONS} of the model {model!r} is damaged: {error}. {advice}") from error
    if values.classes != classes:
        raise ValueError(
            f"{DECISIONS} is for the classes {shown(values.classes)}, and the model {model!r} has {shown(classes)}. "
            f"{advice}"
        )
    wrong = [name for name in ("thresholds", "scores") if len(getattr(values, name) or classes) != len(classes)]
    if wrong or not values.temperature > 0:
        raise ValueError(f"{DECISIONS} of the model {model!r} is damaged: {(wrong or ['temperature'])[0]}. {advice}")
    if values.cost_matrix is not None:
        read_costs(np.asarray(values.cost_matrix), classes, f"{DECISIONS}: cost_matrix")
    return values
