"""The long-tail report."""

from hf_sharp.metrics.long_tail import compute_metrics_for, long_tail_report, report_of_prediction
from hf_sharp.metrics.table import comparison_table

__all__ = ["comparison_table", "compute_metrics_for", "long_tail_report", "report_of_prediction"]
