import evaluate
import numpy as np

from hf_sharp.metrics import METRIC_FILE, LongTailMetric, long_tail_report

COUNTS = [300, 50, 7]
RNG = np.random.default_rng(0)
PREDICTIONS, REFERENCES = RNG.integers(0, 3, 90), RNG.integers(0, 3, 90)


def test_loaded_from_its_file_and_imported_it_is_the_report():
    expected = long_tail_report(PREDICTIONS, REFERENCES, COUNTS)
    for metric in (evaluate.load(METRIC_FILE), LongTailMetric()):
        assert metric.compute(predictions=PREDICTIONS, references=REFERENCES, class_counts=COUNTS) == expected


def test_batches_and_options():
    metric = LongTailMetric()
    for start in range(0, 90, 32):
        batch = slice(start, start + 32)
        metric.add_batch(predictions=PREDICTIONS[batch], references=REFERENCES[batch])
    report = metric.compute(class_counts=COUNTS, class_names=["a", "b", "c"], rare_threshold=60)
    assert report == long_tail_report(PREDICTIONS, REFERENCES, COUNTS, class_names=["a", "b", "c"], rare_threshold=60)
    assert report["few_classes"] == 2
