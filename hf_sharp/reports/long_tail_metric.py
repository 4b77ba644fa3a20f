"""The long-tail report as an `evaluate.Metric`, to import, or to load with `evaluate.load(METRIC_FILE)`."""

from pathlib import Path

import datasets
import evaluate

from hf_sharp.reports.long_tail_report import long_tail_report

#: The path that `evaluate.load` loads the long-tail report from.
METRIC_FILE = str(Path(__file__))

_DESCRIPTION = """\
How well a classifier recognizes classes that are frequent in training, and rare ones: accuracy, balanced accuracy,
mean recall of the many, medium and few classes, worst class, macro F1, means of the recalls, calibration error, and
recall and precision of every class.
"""
_INPUTS = """
Args:
    predictions: predicted class indices, (N,).
    references: true class indices, (N,).
    class_counts: the training examples of each class, (K,), or a `hf_sharp.ClassFrequencies`.
    **options: further arguments of `hf_sharp.metrics.long_tail_report` (probabilities, cost_matrix, class_names, ...).
Returns:
    The report, a dict.
"""


class LongTailMetric(evaluate.Metric):
    """`hf_sharp.metrics.long_tail_report` as a metric of `evaluate`: add batches, then compute.

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
