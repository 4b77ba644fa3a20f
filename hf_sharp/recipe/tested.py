"""`hf-sharp evaluate --card`: write test figures into the results and the card of a saved model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.changed import rewrite_card
from hf_sharp.recipe.decisions import Decisions
from hf_sharp.recipe.recorded import is_trained_on
from hf_sharp.reports.card_changes import OF_OTHER_PREDICTIONS, check_same_model
from hf_sharp.reports.evaluation_pictures import draw_evaluation
from hf_sharp.reports.model_card import config_of
from hf_sharp.reports.results import read_results, with_local, write_results

_OF_THE_TEST = ("dataset", "dataset_config", "test_split")  # options that the metadata of a card contain


def check_card(model: str, split: str, tta: str, data: Any) -> dict[str, Any]:
    """Check, before a model is evaluated, that the figures may be written into its card.

    Args:
        model: the model's folder.
        split: the split to evaluate.
        tta: the name of the test-time augmentation.
        data: the options of the data.

    Returns:
        The results saved with the model.

    Raises:
        ValueError: there are no results, or they belong to another model; or the figures would not be those of
            `pipeline()` on the test data of the training.
    """
    if not Path(model).is_dir():
        raise ValueError(
            f"--card writes into the folder of the model, and {model!r} is none. Download the model first."
        )
    if split != "test":
        raise ValueError(f"a card has the figures of the test data, not of {split!r}. Remove --split or --card.")
    if tta != "none":
        raise ValueError(f"a card has the figures of one view of each picture, not of {tta!r}: add --tta none.")
    results = with_local(model, read_results(model))
    check_same_model(config_of(Path(model)), results)
    for name in _OF_THE_TEST:
        trained, given = results["options"].get(name, getattr(type(data), name)), getattr(data, name)
        if not (is_trained_on(results, given) if name == "dataset" else trained == given):
            raise ValueError(
                f"the card would say that the figures are of {name} {trained!r}, but they are of {given!r}. Remove "
                "--card, or evaluate on the data of the training."
            )
    return results


def check_figures(results: Mapping[str, Any], decisions: Decisions, counts: np.ndarray) -> None:
    """Check, before a model is run, that its figures will be those of `pipeline()` after the recorded training.

    Args:
        results: the results, as `check_card` returns them.
        decisions: the decision rules saved with the model.
        counts: (K,) the training examples of each class in the data.

    Raises:
        ValueError: costs are saved beside the model, or the class counts are not those of the training.
    """
    if counts.tolist() != results["report"]["class_counts"]:
        raise ValueError(
            "the class counts of this data are not those of the training, so no card was written. Set the options "
            "of the data as in the training, or remove --card."
        )
    if decisions.cost_matrix is not None:
        raise ValueError(
            "a card has the figures of pipeline(), which does not use the costs saved beside the model. Use --card "
            "with the model without the costs, and add them afterwards: hf-sharp adjust --cost."
        )


def write_tested(
    folder: Path,
    results: Mapping[str, Any],
    report: Mapping[str, Any],
    predictions: np.ndarray,
    references: np.ndarray,
    probabilities: np.ndarray | None,
) -> Path:
    """Write test figures into a model's results, and rewrite its card and plots.

    Args:
        folder: the model's folder.
        results: the results, as `check_card` returns them.
        report: the long-tail report of the model on the test data.
        predictions: (N,) predicted class indices.
        references: (N,) true class indices.
        probabilities: (N, K); None if those of `pipeline()` differ, so that their calibration was not measured.

    Returns:
        The path of the card.

    Raises:
        ValueError: the folder is not writable.
    """
    with stage(f"the figures cannot be saved in {str(folder)!r}"):
        kept = {name: item for name, item in results.items() if name not in OF_OTHER_PREDICTIONS}
        if probabilities is None:
            report = {name: item for name, item in report.items() if name != "calibration_error"}
        pictures = draw_evaluation(folder, report, predictions, references, probabilities)
        write_results(folder, kept | {"report": report, "pictures": pictures})
        return rewrite_card(folder)
