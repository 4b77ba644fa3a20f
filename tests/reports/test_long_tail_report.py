import tracemalloc
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score
from transformers import EvalPrediction

from hf_sharp import ClassFrequencies
from hf_sharp.metrics import comparison_table, compute_metrics_for, long_tail_report, report_of_prediction
from hf_sharp.reports import calibration
from hf_sharp.reports.card_evaluation import class_table
from hf_sharp.reports.plots import plot_geometry, plot_precision_recall, plot_recall_by_count
from hf_sharp.reports.table import per_class_table


@given(st.data())
@settings(deadline=None)
def test_agrees_with_scikit_learn_also_with_absent_classes(data):
    k = data.draw(st.integers(2, 6))
    n = data.draw(st.integers(1, 40))
    references = data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    predictions = data.draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    counts = data.draw(st.lists(st.integers(1, 300), min_size=k, max_size=k))
    report = long_tail_report(predictions, references, counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        balanced = balanced_accuracy_score(references, predictions)
        recalls = recall_score(references, predictions, labels=range(k), average=None, zero_division=np.nan)
        precisions = precision_score(references, predictions, labels=range(k), average=None, zero_division=np.nan)
        macro_f1 = f1_score(references, predictions, average="macro", zero_division=0)
    assert report["macro_f1"] == pytest.approx(macro_f1)
    present = recalls[~np.isnan(recalls)]
    assert report["g_mean"] == pytest.approx(np.prod(present) ** (1 / len(present)))
    assert report["harmonic_mean"] == pytest.approx(len(present) / np.sum(1 / np.maximum(present, 1e-3)))
    for mine, theirs, recall in zip(report["per_class_precision"], precisions, recalls, strict=True):
        assert (mine is None) == bool(np.isnan(theirs + recall)), "no figure of a class without examples"
        assert mine is None or mine == pytest.approx(theirs)
    assert report["accuracy"] == pytest.approx(np.mean(np.array(predictions) == references))
    assert report["balanced_accuracy"] == pytest.approx(balanced)
    assert report["worst_class_recall"] == pytest.approx(np.nanmin(recalls))
    for mine, theirs in zip(report["per_class_recall"], recalls, strict=True):
        assert (mine is None) == np.isnan(theirs)
        assert mine is None or mine == pytest.approx(theirs)
    for group, mask in (
        ("many", np.array(counts) > 100),
        ("few", np.array(counts) < 20),
        ("medium", (np.array(counts) >= 20) & (np.array(counts) <= 100)),
    ):
        inside = recalls[mask & ~np.isnan(recalls)]
        assert report[f"{group}_classes"] == mask.sum()
        assert report[f"{group}_accuracy"] == (pytest.approx(inside.mean()) if len(inside) else None)


def test_the_thresholds_are_those_of_the_frequencies():
    frequencies = ClassFrequencies.from_counts([50, 5], rare_threshold=10, common_threshold=40, names=("a", "b"))
    report = long_tail_report([0, 0], [0, 1], frequencies)
    assert (report["many_accuracy"], report["few_accuracy"], report["worst_class"]) == (1.0, 0.0, "b")
    assert (report["rare_threshold"], report["common_threshold"]) == (10, 40)


def test_what_a_tracker_gets_is_numbers_only():
    prediction = EvalPrediction(np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), np.array([0, 1, -100]))
    metrics = compute_metrics_for(ClassFrequencies.from_counts([50, 5]))(prediction)
    assert metrics["accuracy"] == 1.0, "a label of -100 does not count"
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert "many_accuracy" not in metrics
    assert metrics["few_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([0, 1], [0], r"two vectors of one length.*\(2,\) and \(1,\)"),
        ([[0.1, 0.9]], [0], "two vectors of one length"),
        ([0, 5], [0, 1], "prediction 1 is 5; expected a class index from 0 to 1"),
        ([0, 1], [0, -100], "reference 1 is -100"),
        ([], [], "no examples"),
        ([0.5, 1], [0, 1], "class indices, got predictions of float64 such as 0.5"),
        ([0, 1], ["a", "b"], "class indices, got references of <U1 such as a"),
    ],
)
def test_bad_input(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        long_tail_report(predictions, references, [30, 3])


def test_the_table_shows_every_figure_and_marks_the_best():
    counts, references = [300, 50, 5], [0, 0, 1, 1, 2, 2]
    runs = {
        "plain": long_tail_report([0, 0, 1, 0, 0, 0], references, counts, class_names=["a", "b", "c"]),
        "sharp": long_tail_report([0, 0, 1, 0, 2, 0], references, counts, class_names=["a", "b", "c"]),
    }
    console = Console(record=True, width=120)
    console.print(comparison_table(runs))
    lines = console.export_text().splitlines()
    few = next(line for line in lines if line.strip("│ ").startswith("few"))
    assert "1 class)" in few
    assert "0.0" in few
    assert "50.0" in few
    assert any("(c) 0.0" in line and "(b) 50.0" in line for line in lines)


def test_the_table_shows_what_a_step_costs_where_every_run_recorded_it():
    report = long_tail_report([0, 0, 1], [0, 1, 1], [200, 5])
    table = comparison_table({"a": report, "b": report}, passes={"a": 1.0, "b": 2.125})
    assert [list(column.cells)[-1] for column in table.columns] == ["cost of a step (plain = 1)", "1.00", "2.12"]
    for passes in (None, {"a": 1.0, "b": None}):
        table = comparison_table({"a": report, "b": report}, passes=passes)
        assert list(table.columns[0].cells)[-1] == "worst class"
    many = comparison_table(dict.fromkeys("abcd", report), passes=dict.fromkeys("abcd", 1.5))
    assert list(many.columns[-1].cells) == ["1.50"] * 4


def test_the_table_counts_the_classes_that_a_mean_includes():
    report = long_tail_report([0, 0, 1], [0, 1, 1], [200, 5, 4, 70])
    assert report["few_classes"] == 2
    groups = ["many (n > 100, 1 class)", "medium (20 ≤ n ≤ 100, 0 of 1 class)", "few (n < 20, 1 of 2 classes)"]
    assert list(comparison_table({"a": report}).columns[0].cells)[2:5] == groups
    assert comparison_table(dict.fromkeys("abcd", report)).caption == "\n".join(groups)


def test_the_table_of_many_runs_has_a_row_for_each():
    report = long_tail_report([0, 0, 1, 0, 2, 0], [0, 0, 1, 1, 2, 2], [300, 50, 5])
    console = Console(record=True, width=80)
    console.print(comparison_table(dict.fromkeys(("one", "two", "three", "four"), report)))
    text = console.export_text()
    (row,) = [line for line in text.splitlines() if "three" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "three",
        "66.7",
        "66.7",
        "100.0",
        "50.0",
        "50.0",
        "50.0",
    ]
    assert "few (n < 20, 1 class)" in text


def test_confusions_are_the_ten_most_frequent_by_name():
    references, predictions = [0] * 5 + [1] * 4 + [2] * 3, [1] * 5 + [0] * 2 + [1] * 2 + [0] + [2] * 2
    report = long_tail_report(predictions, references, [30, 20, 10], class_names=["a", "b", "c"])
    assert report["confusions"] == [
        {"true": "a", "predicted": "b", "count": 5},
        {"true": "b", "predicted": "a", "count": 2},
        {"true": "c", "predicted": "a", "count": 1},
    ]
    rng = np.random.default_rng(0)
    many = long_tail_report(rng.integers(0, 9, 900), rng.integers(0, 9, 900), [10] * 9)["confusions"]
    assert len(many) == 10
    assert [pair["count"] for pair in many] == sorted((pair["count"] for pair in many), reverse=True)


def test_calibration_error_against_a_loop_over_bins():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 500)
    probabilities[0] = [1, 0, 0, 0]
    predictions, references = probabilities.argmax(1), rng.integers(0, 4, 500)
    expected = 0.0
    for low in range(15):
        confidence = probabilities.max(1)
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            accuracy = np.mean(predictions[inside] == references[inside])
            expected += inside.mean() * abs(accuracy - confidence[inside].mean())
    report = long_tail_report(predictions, references, [9] * 4, probabilities)
    assert report["calibration_error"] == pytest.approx(expected)
    assert long_tail_report(predictions, references, [9] * 4, probabilities.max(1)) == report
    assert "calibration_error" not in long_tail_report(predictions, references, [9] * 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_most_likely_class_and_its_probability(dtype, monkeypatch):
    monkeypatch.setattr(calibration, "_AT_ONCE", 40)  # slices of five rows, the last one shorter
    logits = (20 * np.random.default_rng(0).standard_normal((23, 8))).astype(dtype)
    expected = softmax(logits.astype(np.float64), axis=1)
    classes, confidence = calibration.most_likely(logits)
    assert classes.tolist() == expected.argmax(1).tolist()
    np.testing.assert_allclose(confidence, expected.max(1), rtol=1e-12)
    for wrong in (np.nan, np.inf, -np.inf):
        logits[11, 3] = wrong
        classes, confidence = calibration.most_likely(logits)
        assert confidence is None
        assert np.delete(classes, 11).tolist() == np.delete(expected.argmax(1), 11).tolist()


def test_the_report_of_many_classes_takes_little_memory():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((2000, 8000), np.float32), rng.integers(0, 8000, 2000)
    prediction = EvalPrediction(logits, labels)
    frequencies = ClassFrequencies.from_counts([9] * 8000)
    tracemalloc.start()
    report = report_of_prediction(prediction, frequencies)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report["calibration_error"] > 0
    assert peak < 0.2 * logits.nbytes  # slices, and no copy


def test_expected_cost():
    cost = [[0, 1], [10, 0]]
    assert long_tail_report([0, 1, 0, 0], [0, 0, 1, 1], [9, 9], cost_matrix=cost)["expected_cost"] == 21 / 4
    with pytest.raises(ValueError, match=r"cost_matrix must be \(2, 2\)"):
        long_tail_report([0], [0], [9, 9], cost_matrix=[[0, 1]])


def test_probabilities_that_are_none():
    with pytest.raises(ValueError, match=r"probabilities of example 1 sum to 5, the smallest is 2: are they logits\?"):
        long_tail_report([0, 1], [0, 1], [9, 9], [[0.5, 0.5], [2.0, 3.0]])
    with pytest.raises(ValueError, match=r"example 0 sum to 1, the smallest is -1: are they logits\?"):
        long_tail_report([0, 1], [0, 1], [9, 9], [[2.0, -1.0], [0.5, 0.5]])
    with pytest.raises(ValueError, match=r"must be of shape \(2, 2\) or \(2,\); got \(2, 3\)"):
        long_tail_report([0, 1], [0, 1], [9, 9], np.ones((2, 3)) / 3)
    with pytest.raises(ValueError, match=r"probability of example 1 is 3; expected one from 0 to 1"):
        long_tail_report([0, 1], [0, 1], [9, 9], [0.5, 3.0])


def test_a_million_predictions_over_a_thousand_classes_in_a_second():
    from time import process_time

    rng = np.random.default_rng(0)
    predictions, references = rng.integers(0, 1000, 10**6), rng.integers(0, 1000, 10**6)
    seconds = []
    for _ in range(3):
        start = process_time()
        long_tail_report(predictions, references, np.ones(1000, int))
        seconds.append(process_time() - start)
    assert min(seconds) < 2.0


def test_what_a_model_that_has_diverged_gives_is_counted(caplog):
    logits = np.array([[np.nan, 1, 2], [0, 1, np.inf], [0, 3, 1]])
    metrics = compute_metrics_for(ClassFrequencies.from_counts([3, 2, 1]))(EvalPrediction(logits, np.array([0, 2, 1])))
    assert metrics["accuracy"] == 1.0  # NaN is argmax's first
    assert "calibration_error" not in metrics
    assert "not all finite" in caplog.text


def test_eight_thousand_classes_take_no_matrix_of_them():
    rng, classes = np.random.default_rng(0), 8142
    references, predictions = rng.integers(0, classes, (2, 3 * classes))
    tracemalloc.start()
    long_tail_report(predictions, references, np.arange(1, classes + 1))
    assert tracemalloc.get_traced_memory()[1] < 50e6  # the matrix alone has 530 MB
    tracemalloc.stop()


def test_names_are_text_in_the_tables():
    report = long_tail_report([0, 1], [0, 1], [200, 3])
    runs = {"sam[red]": report, "a[/b]": report}
    for names in (runs, runs | {"three": report, "four": report}):
        console = Console(record=True, width=200)
        console.print(comparison_table(names))
        shown = console.export_text()
        assert "sam[red]" in shown
        assert "a[/b]" in shown


def test_a_dollar_in_a_name_is_one_in_the_pictures(tmp_path):
    report = long_tail_report([0, 1], [0, 1], [200, 3], class_names=["$0", "x^$_{$"])
    plot_recall_by_count({"a$_{x$": report, "$5-$9": report}, tmp_path / "recall.png")
    plot_geometry((np.eye(2), np.eye(2)), [200, 3], tmp_path / "geometry.png", names=["$0", "x^$_{$"])
    assert (tmp_path / "recall.png").stat().st_size > 5000


def test_the_table_of_classes_shows_the_rarest_first():
    counts = [300, 5, 50, 4, *[200] * 9]
    references = np.repeat(np.arange(13), 4)
    predictions = np.where(references == 3, 0, references)
    names = ["[red]", "b", "c", "d", *map(str, range(9))]
    report = long_tail_report(predictions, references, counts, class_names=names)
    console = Console(record=True, width=80)
    console.print(per_class_table(report))
    lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows[0] == ["d", "4", "few", "4", "0", "–"]
    assert rows[1] == ["b", "5", "few", "4", "100", "100"]
    assert rows[2] == ["c", "50", "medium", "4", "100", "100"]
    assert len(rows) == 10
    assert "the 10 rarest of 13 classes" in lines[-1]
    console.print(per_class_table(report, rows=None))
    assert "[red]" in (text := console.export_text())
    assert "rarest" not in text
    with pytest.raises(ValueError, match="rows must be an integer >= 1"):
        per_class_table(report, rows=0)


def test_a_class_without_examples_has_no_precision_wherever_it_is_shown(tmp_path):
    """Its predictions are all wrong, but whether they would be on data with such examples is unknown."""
    names = ["a", "b", "c"]
    report = long_tail_report([0, 1, 2, 2, 1], [0, 1, 0, 1, 1], [200, 50, 5], class_names=names)
    assert report["per_class_predicted"][2] == 2
    assert (report["per_class_recall"][2], report["per_class_precision"][2]) == (None, None)
    assert report["macro_f1"] == pytest.approx(np.mean([2 / 3, 0.8, 0])), "scikit-learn's, in which it counts"
    console = Console(record=True, width=80)
    console.print(per_class_table(report))
    row = next(line for line in console.export_text().splitlines() if line.startswith("│ c"))
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["c", "5", "few", "0", "–", "–"]
    frequencies = ClassFrequencies.from_counts([200, 50, 5], names=tuple(names))
    assert class_table(report, frequencies)[-1] == ["c", "5", "few", "0", "–", "–"]
    plot_precision_recall(report, tmp_path / "picture.png")


def test_the_report_has_the_names_that_the_classes_have():
    assert long_tail_report([0], [0], [9, 3], class_names=["a", "b"])["class_names"] == ["a", "b"]
    assert "class_names" not in long_tail_report([0], [0], [9, 3])


@pytest.mark.parametrize("logits", [np.zeros((2, 3)), np.zeros((2, 5, 2)), np.zeros(())])
def test_logits_of_other_classes_are_refused(logits):
    with pytest.raises(ValueError, match=r"expected logits \(N, 2\), one for each class; got"):
        report_of_prediction(EvalPrediction(logits, np.array([0, 1])), ClassFrequencies.from_counts([50, 5]))


@pytest.mark.parametrize(
    "show",
    [
        *(per_class_table, comparison_table),
        *(partial(plot, file="x.png") for plot in (plot_precision_recall, plot_recall_by_count)),
    ],
)
@pytest.mark.parametrize("report", [{"accuracy": 0.5}, {}])
def test_tables_and_pictures_say_what_they_take(show, report):
    with pytest.raises(ValueError, match="expected the result of long_tail_report, with all its figures; got"):
        show(report)
