"""The plots of one evaluation: confusions, precision and recall per class, and calibration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hf_sharp.reports.calibration import most_likely
from hf_sharp.reports.long_tail_report import frequencies_of, outputs_and_labels
from hf_sharp.reports.plots import plot_confusion_matrix, plot_precision_recall, plot_reliability

PICTURES = {
    "confusion_matrix.png": "How often each class is predicted for examples of each class",
    "precision_recall.png": "Precision and recall of each class",
    "reliability.png": "Accuracy of the predictions against their confidence",
}


def draw_evaluation(
    folder: Path,
    report: Mapping[str, Any],
    predictions: np.ndarray,
    references: np.ndarray,
    probabilities: np.ndarray | None = None,
    title: str = "",
) -> list[str]:
    """Save the plots of an evaluation in a folder.

    Args:
        folder: the folder.
        report: the result of `long_tail_report`.
        predictions: (N,) predicted class indices.
        references: (N,) true class indices.
        probabilities: (N, K), or (N,) those of the predicted classes; None for no reliability diagram.
        title: the title of the plots.

    Returns:
        The names of the files.
    """
    confusion, precision_recall, reliability = PICTURES
    plot_confusion_matrix(predictions, references, frequencies_of(report), folder / confusion, title)
    plot_precision_recall(report, folder / precision_recall, title)
    if probabilities is None:
        return [confusion, precision_recall]
    plot_reliability(probabilities, references, folder / reliability, title, predictions=predictions)
    return list(PICTURES)


def draw_prediction(folder: Path, report: Mapping[str, Any], prediction: Any) -> list[str]:
    """Save the plots for the output of `Trainer.predict` in a folder.

    Args:
        folder: the folder.
        report: the result of `report_of_prediction` for this output.
        prediction: the output of `Trainer.predict`.

    Returns:
        The names of the files.
    """
    outputs, labels = outputs_and_labels(prediction)
    predictions, confidence = (outputs, None) if outputs.ndim == 1 else most_likely(outputs)
    return draw_evaluation(folder, report, predictions, labels, confidence)
