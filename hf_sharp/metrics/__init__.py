"""The long-tail report."""

from pathlib import Path

from hf_sharp.metrics.long_tail import compute_metrics_for, long_tail_report, numbers_of, report_of_prediction
from hf_sharp.metrics.long_tail_metric import LongTailMetric
from hf_sharp.metrics.table import comparison_table

#: What `evaluate.load` loads the long-tail report from.
METRIC_FILE = str(Path(__file__).with_name("long_tail_metric.py"))

__all__ = [
    "METRIC_FILE",
    "LongTailMetric",
    "comparison_table",
    "compute_metrics_for",
    "long_tail_report",
    "numbers_of",
    "report_of_prediction",
]
