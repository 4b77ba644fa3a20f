"""Keeps the long-tail report of the current weights for the model card."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.reports.long_tail_report import numbers_of, outputs_and_labels, report_of_prediction


class ReportKeeper(TrainerCallback):
    """Computes the metrics of an evaluation, and keeps the full report until the weights change.

    Args:
        frequencies: the class frequencies of the training set.
        cost_matrix: as for `long_tail_report`.
    """

    def __init__(self, frequencies: ClassFrequencies, cost_matrix: Any = None) -> None:
        self.frequencies, self.cost_matrix = frequencies, cost_matrix
        self.report: dict[str, Any] | None = None
        self._computed: dict[str, Any] | None = None  # the report of the latest evaluation or prediction
        self._of_step: dict[int, dict[str, Any]] = {}

    def compute_metrics(self, prediction: Any) -> dict[str, float]:
        """Compute the numbers of the report, and keep all of it; return nothing if every label is -100."""
        if not len(outputs_and_labels(prediction)[1]):
            return {}
        self._computed = report_of_prediction(prediction, self.frequencies, self.cost_matrix)
        return numbers_of(self._computed)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the report and its step; a dataset without labels has no report."""
        self.report, self._computed = self._computed, None
        if self.report is not None and args.load_best_model_at_end:
            # Whether this step is the best is decided after this call.
            best = {step: report for step, report in self._of_step.items() if step == state.best_global_step}
            self._of_step = best | {state.global_step: self.report}

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Drop the report of a prediction, because its examples are not the evaluation set."""
        self._computed = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the report: the weights are about to change."""
        self.report = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the report of the best weights, if they were loaded at the end."""
        if args.load_best_model_at_end and state.best_global_step:
            self.report = self._of_step.get(state.best_global_step)
        self._of_step.clear()
