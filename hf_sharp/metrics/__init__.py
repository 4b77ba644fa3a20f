"""The long-tail report."""

from hf_sharp.metrics.long_tail import compute_metrics_for, long_tail_report, predicted_and_true
from hf_sharp.metrics.table import comparison_table

__all__ = ["comparison_table", "compute_metrics_for", "long_tail_report", "predicted_and_true"]
