"""The long-tail report: public names."""

from hf_sharp.reports.long_tail_metric import METRIC_FILE, LongTailMetric
from hf_sharp.reports.long_tail_report import compute_metrics_for, long_tail_report, numbers_of, report_of_prediction
from hf_sharp.reports.table import comparison_table

__all__ = [
    "METRIC_FILE",
    "LongTailMetric",
    "comparison_table",
    "compute_metrics_for",
    "long_tail_report",
    "numbers_of",
    "report_of_prediction",
]
