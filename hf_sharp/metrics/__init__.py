"""The long-tail report."""

from hf_sharp.metrics.long_tail import long_tail_metrics, long_tail_report
from hf_sharp.metrics.table import comparison_table

__all__ = ["comparison_table", "long_tail_metrics", "long_tail_report"]
