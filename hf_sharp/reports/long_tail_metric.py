"""The long-tail report as an `evaluate.Metric`: imported, or loaded by `evaluate.load` from this file's path."""

from pathlib import Path

import datasets
import evaluate

from hf_sharp.reports.long_tail_report import long_tail_report

#: What `evaluate.load` loads the long-tail report from.
METRIC_FILE = str(Path(__file__))

_DESCRIPTION = """\
What a classifier does on the classes it saw often in training, and on those it saw rarely: accuracy, balanced accuracy,
mean recall of the many, medium and few classes, worst class, macro F1, means of the recalls, calibration error, and
recall and precision of every class.
"""
_INPUTS = """
Args:
    predictions: predicted class indices, (N,).
    references: true class indices, (N,).
    class_counts: the training examples of each class, (K,), or a `hf_sharp.ClassFrequencies`.
    **options: what else `hf_sharp.metrics.long_tail_report` takes (probabilities, cost_matrix, class_names, ...).
Returns:
    The report, a dict.
"""


class LongTailMetric(evaluate.Metric):
    """`hf_sharp.metrics.long_tail_report` with `evaluate`'s manners: batches are added, then computed.

    Example:
        >>> metric = LongTailMetric()
        >>> metric.add_batch(predictions=[0, 0], references=[0, 1])
        >>> metric.add_batch(predictions=[1], references=[1])
        >>> report = metric.compute(class_counts=[200, 5])
        >>> report["many_accuracy"], report["few_accuracy"]
        (1.0, 0.5)
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
            reference_urls=["https://arxiv.org/abs/1904.05160"],
        )

    def _compute(self, predictions, references, class_counts, **options):
        return long_tail_report(predictions, references, class_counts, **options)
