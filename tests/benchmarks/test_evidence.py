import copy
import doctest
import importlib
import json
import math

import datasets
import numpy as np
import pytest
import tasks
import torch
from study import driver, training
from study.claims import best_row, draw_overview, frequent, lets_line, overview, price
from study.data import Examples, collate, keep_used_tokens
from study.figures import figures, paired
from study.plan import READS_TEST, STAGES, Search, make_plan, stops
from study.report import draw, make_table
from study.results import adjusted_after_training, choose_strength, collect
from study.rows import ADJUSTED, LEFT_OUT, PLAIN, ROWS, is_available
from study.runs import FINAL_SEEDS, TUNING_SEEDS, make_run
from tasks import division

# ---- the split rules -----------------------------------------------------------------------------------------------


def test_the_test_set_is_balanced_and_no_group_is_on_two_sides():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [200, 60, 20])
    groups = rng.integers(0, 90, len(labels))  # groups of about three, many of them across classes
    for seed in range(5):
        sides = division.divide(labels, groups, seed, test_per_class=5, validation_per_class=4)
        _train, validation, test = sides
        assert np.bincount(labels[test]).tolist() == [5, 5, 5]
        assert all(1 <= count <= 4 for count in np.bincount(labels[validation]))
        found = [set(groups[side]) for side in sides]
        assert not (found[0] & found[1])
        assert not (found[0] & found[2])
        assert not (found[1] & found[2])


def test_a_large_series_is_not_taken_for_the_test_set_while_there_are_single_files():
    groups = [0] * 20 + list(range(1, 11))
    train, _, test = division.divide([0] * 30, groups, 3, test_per_class=6, validation_per_class=1)
    assert min(test) >= 20
    assert set(range(20)) <= set(train)


def test_what_is_trained_on_is_thinned_after_the_other_sides_were_drawn():
    labels = np.repeat([0, 1], [100, 20])
    options = {"test_per_class": 8, "validation_per_class": 4}
    kept = lambda left: np.maximum(left // 5, 3)  # noqa: E731
    train, validation, test = division.divide(labels, range(120), 1, **options, training_counts=kept)
    assert np.bincount(labels[train]).tolist() == [(100 - 8 - 4) // 5, 3]
    _, same_validation, same_test = division.divide(labels, range(120), 1, **options)
    assert validation.tolist() == same_validation.tolist()
    assert test.tolist() == same_test.tolist()
    assert not set(train) & (set(validation) | set(test))


def test_a_class_that_cannot_fill_its_test_set_is_an_error():
    with pytest.raises(ValueError, match=r"class 1 has 3 examples"):
        division.divide([0] * 10 + [1] * 3, range(13), 0, test_per_class=4, validation_per_class=1)


def test_every_seed_has_its_own_split_and_the_same_seed_the_same():
    def test_rows(seed):
        return division.divide([0] * 50, range(50), seed, test_per_class=5, validation_per_class=5)[2].tolist()

    assert test_rows(1) == test_rows(1) != test_rows(2)


def test_texts_under_two_labels_are_left_out():
    assert division.unambiguous(["A town.", "a town", "RFC 1", "RFC 2", "other"], [0, 1, 2, 2, 0]) == [2, 4]


def test_fashion_mnist_has_the_tail_and_the_original_test_set():
    module = tasks.load("fashion_mnist")
    labels = np.tile(np.arange(10), 700)
    data = datasets.Dataset.from_dict({"label": labels, "is_test": np.arange(7000) >= 6900})
    train, validation, test = module.split(data, 0)
    assert sorted(np.bincount(labels[train]), reverse=True) == list(module.COUNTS)
    assert np.bincount(labels[validation]).tolist() == [30] * 10
    assert test.tolist() == list(range(6900, 7000))
    assert not set(train) & set(validation)
    other = labels[module.split(data, 1)[0]]
    assert np.bincount(labels[train]).tolist() != np.bincount(other).tolist()  # another class is the rare one


@pytest.mark.parametrize("name", ["wordnet", "foldoc", "clipart", "solar_cells", "fashion_mnist"])
def test_a_task_has_the_whole_interface(name):
    module = tasks.load(name)
    assert name == module.NAME
    assert module.KIND in ("text", "image")
    assert callable(module.prepare)
    assert callable(module.split)
    for values in module.RATES.values():
        assert len(values) == 5
        assert list(values) == sorted(values)


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="unknown task 'mnist'"):
        tasks.load("mnist")


def test_lines_of_the_sources_are_read():
    wordnet, foldoc, cells = map(tasks.load, ("wordnet", "foldoc", "solar_cells"))
    assert wordnet.read_line('00021939 06 n 01 artifact 0 000 | a man-made object; "a tool"') == (
        "a man-made object",
        2,
    )
    assert wordnet.read_line("00001740 03 n 01 entity 0 000 | that which is perceived") is None  # noun.Tops
    assert wordnet.read_line("  1 This software and database is being provided | to you") is None
    assert foldoc.read_entry("AB\nA B\n\n   1. (Alpha) <tool, text> One {thing}.\n\n   2. <chat> Two.\n") == (
        "(Alpha) One thing.",
        "tool",
    )
    assert foldoc.read_entry("AB\n\n   No topic.\n") is None
    assert cells.read_line("images/cell0002.png 1.0 mono")[1] == 3
    assert len(wordnet.CLASSES) == 40


# ---- choosing and stopping -----------------------------------------------------------------------------------------


def test_the_grid_is_extended_once_beyond_an_end_that_is_best():
    search = Search(5)
    assert search.wanted({}) == [1, 2, 3]
    assert search.wanted({1: 0.5, 2: 0.4, 3: 0.3}) == [0]
    assert search.wanted({0: 0.9, 1: 0.5, 2: 0.4, 3: 0.3}) == []
    assert search.wanted({1: 0.3, 2: 0.5, 3: 0.4}) == []
    assert Search(3).wanted({0: 0.5}) == [1, 2]
    assert Search.best({1: 0.5, 2: 0.5, 3: 0.4}) == 1


def test_a_row_stops_when_its_best_setting_is_behind_by_more_than_two_spreads():
    assert stops({1: [-0.03, -0.03]})  # the spread is at least a point
    assert not stops({1: [-0.015, -0.015]})
    assert not stops({1: [-0.07, -0.01], 2: [-0.2, -0.2]})  # pooled: 0.03
    assert stops({1: [-0.08, -0.06], 2: [-0.2, -0.2]})
    assert not stops({1: [0.02, 0.04], 2: [-0.5, -0.5]})


def finished_by(score, further=None):
    """Let the driver's plan be worked off by made-up scores; gives the final plan and every run, in order."""
    finished, order = {}, []
    while (plan := make_plan("foldoc", finished, further)).wanted:
        for run in plan.wanted:
            assert run.key not in finished
            finished[run.key] = {"validation": {"balanced_accuracy": score(run)}}
            order.append((plan.stage, run))
    return plan, order


def made_up(run):
    options = dict(run.options)
    value = 0.3 + 0.1 * (run.rate == 3e-4) + 0.1 * (run.rate == 3e-3) + 0.01 * run.seed
    value += (
        0.1 * (options["loss"] == "logit_adjusted") + 0.1 * (run.head == "class_mean") - 0.05 * (run.tuning == "full")
    )
    if options["sharpness"] == "sam" and set(options) == {"sharpness", "loss", "rho"}:
        value += 0.02 if options["rho"] == 0.015 else -0.3
    if options["sharpness"] == "imbsam":
        value -= 0.2
    return value


def test_the_plan_follows_the_protocol_from_stage_to_stage():
    plan, order = finished_by(made_up)
    assert plan.stage == "done"
    stages = [stage for stage, _ in order]
    assert stages == sorted(stages, key=STAGES.index)
    assert plan.base == ("lora", "class_mean")
    heads = ("noise", "class_mean")
    assert plan.rates == {
        f"{tuning}/{head}": rate for tuning, rate in (("full", 3e-4), ("lora", 3e-3)) for head in heads
    }
    assert ROWS["SAM"].tries[plan.chosen["SAM"]] == {"rho": 0.015}
    assert plan.stopped == pytest.approx({"ImbSAM": -0.2})
    # The test set belongs to the seeds that chose nothing.
    for stage, run in order:
        assert run.seed in (FINAL_SEEDS if stage in READS_TEST else TUNING_SEEDS)
        assert stage not in READS_TEST or dict(run.options)["sharpness"] != "imbsam"
    # Cross-entropy and weights on the base that people use today, with seeds of their own.
    today = [dict(run.options)["loss"] for stage, run in order if stage in READS_TEST and run.head == "noise"]
    assert today.count("cross_entropy") == today.count("weighted") == 5


def test_a_method_is_tried_with_at_most_three_settings_and_two_seeds():
    _, order = finished_by(made_up)
    for name, row in ROWS.items():
        assert len(row.tries) in (1, 3), name
    of_momentum = [run for stage, run in order if stage == "tune" and dict(run.options).get("ascent") == "momentum"]
    assert len(of_momentum) == 2 * 6, "at τ = 1, and with a tuned τ"


def test_further_rows_can_be_chosen():
    chosen = ["Focal-SAM", "ImbSAM"]
    _, order = finished_by(made_up, chosen)
    further = {run.options for stage, run in order if stage.startswith("further")}
    planned = [row.options | options for name in chosen for row in [ROWS[name]] for options in row.tries]
    assert further == {tuple(sorted(options.items())) for options in planned}


def test_further_rows_wait_for_the_main_ones():
    _, order = finished_by(made_up)
    further = [run for stage, run in order if stage.startswith("further")]
    assert further
    waiting = [row.options | options for row in ROWS.values() if row.further for options in row.tries]
    for run in further:
        assert dict(run.options) in waiting


def test_where_todays_base_is_the_better_one_its_rows_stand_once():
    plan, _order = finished_by(lambda run: 0.5 - 0.1 * (run.head == "class_mean") - 0.1 * (run.tuning == "lora"))
    assert plan.base == ("full", "noise")
    assert "cross-entropy, today's base" not in plan.chosen
    assert "cross-entropy" in plan.chosen
    assert "inverse-frequency weights, today's base" in plan.chosen, "no other row has its options"


def test_rows_wait_for_options_that_are_not_there_yet():
    assert is_available({"sharpness": "sam", "ascent": "momentum"})
    assert not is_available({"no_such_option": 1})
    assert not is_available({"sharpness": "sam", "ascent": "no_such_ascent"})


def test_the_default_radius_is_in_every_grid_of_radii(tmp_path):
    from hf_sharp import SharpTrainingArguments

    grids = [row for row in ROWS.values() if len(row.tries) == 3 and set(row.tries[0]) == {"rho"}]
    assert len(grids) == 6
    for row in grids:
        default = SharpTrainingArguments(tmp_path, use_cpu=True, **row.options).radius
        assert default in [setting["rho"] for setting in row.tries]
        assert list(row.tries) == sorted(row.tries, key=lambda options: options["rho"])


def test_no_row_waits_for_an_option():
    assert make_plan("foldoc", {}).waiting == []


def test_every_setting_that_is_there_is_accepted_by_the_arguments(tmp_path):
    from hf_sharp import SharpTrainingArguments

    for row in ROWS.values():
        for options in row.tries if is_available(row.options) else ():
            SharpTrainingArguments(tmp_path, use_cpu=True, **row.options | options)


# ---- runs are not repeated -----------------------------------------------------------------------------------------


def test_a_runs_name_hangs_on_everything_it_depends_on(monkeypatch):
    run = make_run("foldoc", ("full", "noise"), 1e-4, 0, PLAIN)
    same = make_run("foldoc", ("full", "noise"), 1e-4, 0, dict(reversed(PLAIN.items())))
    assert run.key == same.key
    others = [
        run._replace(seed=1),
        run._replace(rate=2e-4),
        run._replace(head="class_mean"),
        run._replace(tuning="lora"),
        run._replace(task="wordnet"),
        make_run("foldoc", ("full", "noise"), 1e-4, 0, ADJUSTED),
    ]
    assert len({run.key, *(other.key for other in others)}) == 7
    before = run.key
    monkeypatch.setattr(tasks.load("foldoc"), "VERSION", 99)
    assert run.key != before


def test_a_finished_run_is_not_repeated_and_a_failed_one_leaves_its_reason(tmp_path, monkeypatch):
    run = make_run("foldoc", ("full", "noise"), 1e-4, 0, PLAIN)
    calls = []

    def execute(run, epochs):
        calls.append(run)
        return {"validation": {"balanced_accuracy": 0.5}}, {"validation_logits": np.zeros((2, 3))}

    monkeypatch.setattr(driver, "execute", execute)
    for _ in range(2):
        assert driver.work(run, tmp_path) == run.key
    assert len(calls) == 1
    assert driver.read_finished(tmp_path) == {run.key: {"validation": {"balanced_accuracy": 0.5}}}
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".json", ".npz"]

    (tmp_path / f"{run.key}.npz").unlink()  # another machine has it
    (record := tmp_path / f"{run.key}.json").write_text("{}")
    driver.work(run, tmp_path)
    assert (tmp_path / f"{run.key}.npz").exists()
    assert record.read_text() == "{}", "what was chosen from it stays"

    def fail(run, epochs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(driver, "execute", fail)
    other = run._replace(seed=1)
    with pytest.raises(RuntimeError, match="out of luck"):
        driver.work(other, tmp_path)
    assert "out of luck" in (tmp_path / f"{other.key}.error").read_text()
    assert not (tmp_path / f"{other.key}.lock").exists()
    assert other.key not in driver.read_finished(tmp_path)


def test_a_claim_excludes_others_until_it_ends(tmp_path):
    with driver.claim(tmp_path, "a") as first, driver.claim(tmp_path, "a") as second:
        assert (first, second) == (True, False)
        assert driver.is_claimed(tmp_path, "a")
        assert not driver.is_claimed(tmp_path, "b")
    assert not driver.is_claimed(tmp_path, "a")
    (tmp_path / "c.lock").write_text("1")  # left behind by a killed process
    with driver.claim(tmp_path, "c") as ours:
        assert ours


def test_a_run_claimed_by_another_driver_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "execute", None)
    run = make_run("foldoc", ("full", "noise"), 1e-4, 0, PLAIN)
    with driver.claim(tmp_path, run.key):
        assert driver.work(run, tmp_path) == run.key
    assert driver.read_finished(tmp_path) == {}


@pytest.fixture
def random_images(monkeypatch):
    """Replaces the data of every task; records whether the test set was asked for."""
    asked = []

    def read(module, seed, with_test):
        asked.append(with_test)
        rng = np.random.default_rng(seed)
        images = [torch.from_numpy(rng.integers(0, 255, (28, 28, 1), np.uint8)) for _ in range(24)]
        names = ("train", "validation", "test") if with_test else ("train", "validation")
        return {name: Examples(images, np.arange(24) % 3) for name in names}

    monkeypatch.setattr(training, "read_data", read)
    return asked


def test_a_tuning_run_never_loads_the_test_set(random_images):
    run = make_run("fashion_mnist", ("scratch", "noise"), 1e-3, 0, {"sharpness": "sam", "loss": "logit_adjusted"})
    record, arrays = training.execute(run, epochs=1)
    assert random_images == [False]
    assert "test" not in record
    assert "test_logits" not in arrays
    assert (record["passes_forward"], record["passes_backward"]) == (2, 2)
    assert arrays["validation_logits"].shape == (24, 3)
    record, arrays = training.execute(run._replace(seed=10), epochs=1)
    assert random_images == [False, True]
    assert figures(arrays["test_logits"], arrays["test_labels"], arrays["class_counts"]) == record["test"]
    with pytest.raises(ValueError, match="seed 5 is neither"):
        training.execute(run._replace(seed=5))


def test_the_head_starts_from_class_means(random_images):
    run = make_run("fashion_mnist", ("scratch", "class_mean"), 0.0, 0, PLAIN)
    assert training.execute(run, epochs=1)[0]["train_accuracy"] > 0.6
    assert training.execute(run._replace(head="noise"), epochs=1)[0]["train_accuracy"] < 0.5


@pytest.mark.parametrize("row", ["LETS", "LETS as published"])
def test_lets_learns_the_radius_on_examples_held_out_of_every_class(random_images, row):
    train = Examples([torch.zeros(1)] * 24, np.arange(24) % 3)
    remaining, held_out = training.hold_out(train, 0.25, seed=0)
    assert np.bincount(remaining.labels).tolist() == [6, 6, 6]
    assert np.bincount(held_out.labels).tolist() == [2, 2, 2]
    run = make_run("fashion_mnist", ("scratch", "noise"), 1e-3, 0, ROWS[row].options)
    assert training.execute(run, epochs=1)[0]["passes_backward"] > 1.5


def test_a_trial_covers_every_base_and_no_test_set(random_images, tmp_path):
    (line,) = driver.try_out("fashion_mnist", "SAM", tmp_path, epochs=1)
    assert line.startswith("scratch/noise rate 0.001 seed 0")
    assert "'rho': 0.05" in line
    assert random_images == [False]


@pytest.mark.parametrize(
    "name",
    [
        *(f"study.{name}" for name in ("figures", "plan")),
        "backbones.convert",
        *(f"tasks.{name}" for name in ("division", "images", "wordnet", "foldoc", "solar_cells")),
    ],
)
def test_the_examples_of_the_docstrings_hold(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted
    assert not found.failed


# ---- figures, head, tables -----------------------------------------------------------------------------------------


def test_figures_of_a_diverged_run_are_figures():
    found = figures(np.full((4, 2), np.nan), np.array([0, 0, 1, 1]), np.array([30, 5]))
    assert found["balanced_accuracy"] == 0.5
    assert found["few_accuracy"] == 0
    assert found["calibration_error"] is None


def test_the_strength_after_training_is_chosen_on_validation_data():
    labels = np.array([0, 1] * 20)
    logits = np.stack([np.full(40, 2.0), np.where(labels == 1, 1.0, -3.0)], axis=1)
    arrays = {"validation_logits": logits, "validation_labels": labels, "class_counts": np.array([90, 10])}
    strength = choose_strength([arrays])
    assert strength == 0.5  # the smallest with τ (log 0.9 − log 0.1) > 1
    adjusted = adjusted_after_training(logits, arrays["class_counts"], strength)
    assert (adjusted.argmax(1) == labels).all()


def made_up_result():
    def seeds(shift):
        return {
            str(seed): {
                "balanced_accuracy": 0.5 + shift + 0.01 * index,
                "few_accuracy": 0.3 + 2 * shift + 0.01 * index**2 * (shift > 0),
                "rarest_third": 0.2,
                "worst_class_recall": 0.0,
                "macro_f1": 0.5,
                "accuracy": 0.6,
                "calibration_error": None,
                "train_accuracy": 1.0,
                "train_cpu_seconds": 100.0 * (1 + shift),
                "passes_forward": 1 + shift,
                "passes_backward": 1 + 4 * shift,
            }
            for index, seed in enumerate(FINAL_SEEDS)
        }

    rows = {"cross-entropy, today's base": {"seeds": seeds(0.0)}, "logit adjustment": {"seeds": seeds(0.0)}}
    rows["SAM"] = {"seeds": seeds(0.1)}
    return {
        "task": "foldoc",
        "command": "python benchmarks/evidence.py foldoc",
        "machine": "2 CPU cores",
        "versions": {"torch": "2.0"},
        "final_seeds": list(FINAL_SEEDS),
        "classes": 3,
        "class_counts": [50, 20, 4],
        "few_classes": 1,
        "sizes": {"train": 74, "validation": 9},
        "base": ["lora", "class_mean"],
        "chosen": {"SAM": {"rho": 0.02}},
        "stopped": {"ImbSAM": -0.2},
        "rows": rows,
    }


def test_the_table_shows_paired_differences_and_what_stopped():
    table = make_table(made_up_result())
    (sam,) = [line for line in table.splitlines() if line.startswith("| SAM (rho 0.02)")]
    assert "62.0 ± 1.6" in sam
    assert "**+10.0** (+10.0 … +10.0)" in sam
    assert "| 1.30 |" in sam, "a backward pass counts twice"
    assert "| ImbSAM | stopped: -20.0 on validation data |" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert widths == {10}


def test_further_rows_are_judged_once_all_are_finished():
    result, name = made_up_result(), "Focal-SAM"
    for other in (name, *LEFT_OUT):
        result["rows"][other] = result["rows"]["SAM"]
    result["validation"] = {"SAM": {"0": 0.5}, name: {"0": 0.6}, **{key: {"0": 0.7} for key in LEFT_OUT}}
    assert best_row(result | {"stage": "further_tune"}) == "SAM"
    assert best_row(result | {"stage": "done"}) == name


def test_the_overview_takes_the_best_row_by_validation_not_by_test():
    result = made_up_result()
    rows = result["rows"]
    rows["inverse-frequency weights, today's base"] = rows["cross-entropy, today's base"]
    rows["LETS"] = rows["SAM"]
    result["validation"] = {"SAM": {"0": 0.5, "1": 0.4}, "logit adjustment, tuned τ": {"0": 0.6}, "base": {"0": 0.9}}
    assert best_row(result) == "logit adjustment"  # it is behind SAM on the test set
    result["validation"]["SAM"]["1"] = 0.7
    assert best_row(result) == "SAM"
    (line,) = overview([result]).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:5] == ["FOLDOC", "52.0 / 30.0", "52.0 / 30.0", "SAM (rho 0.02)", "62.0 / 56.0"]
    assert cells[5] == "**+10.0** (+10.0 … +10.0)"
    assert cells[9] == "1.30"
    assert lets_line(result) == "FOLDOC: against SAM at its best radius (62.0 ± 1.6), LETS +0.0 points"
    del rows["cross-entropy, today's base"]
    assert len(overview([result]).splitlines()) == 2


def test_the_recall_of_frequent_classes_follows_from_that_of_all_and_of_the_rare():
    recall, counts = np.array([0.9, 0.7, 0.2, 0.0, 0.3]), np.array([100, 20, 19, 5, 5])
    rare = counts < 20
    run = {"balanced_accuracy": recall.mean(), "few_accuracy": recall[rare].mean()}
    result = {"classes": 5, "few_classes": int(rare.sum()), "rows": {"row": {"seeds": {"10": run}}}}
    assert frequent(result, "row")["10"]["frequent"] == pytest.approx(recall[~rare].mean())


def test_the_price_compares_every_remedy_with_cross_entropy():
    result = made_up_result()
    rows, plain = result["rows"], "cross-entropy, today's base"
    rows |= {"inverse-frequency weights, today's base": rows[plain], f"{plain}, adjusted after training": rows["SAM"]}
    result["validation"] = {"SAM": {"0": 0.5}}
    (line,) = price([result]).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    before, after = (np.mean([s["frequent"] for s in frequent(result, name).values()]) for name in (plain, "SAM"))
    assert cells[:3] == ["FOLDOC", f"{100 * before:.1f}", "+0.0 (+0.0 … +0.0)"]
    assert f"{100 * (after - before):+.1f}" in cells[3] == cells[6]


def test_the_interval_is_students():
    found = paired([0.1, 0.2, 0.3], [0.0, 0.0, 0.0])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found["mean"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-6)
    assert math.isnan(paired([0.1], [0.0])["low"])


def test_the_picture_has_every_run(tmp_path):
    draw(made_up_result(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_what_is_collected_is_json_and_the_table_can_be_made_of_it(tmp_path):
    folder = tmp_path
    labels, counts = np.arange(12) % 3, np.array([50, 20, 4])
    rng = np.random.default_rng(0)

    def leave(run):
        logits = rng.normal(size=(12, 3)) + 3 * np.eye(3)[labels]
        arrays = {"class_counts": counts, "validation_logits": logits, "validation_labels": labels}
        left = {
            "run": run.values(),
            "class_counts": counts.tolist(),
            "sizes": {"train": 74, "validation": 12},
            "train_accuracy": 1.0,
            "train_cpu_seconds": 10.0,
            "passes_forward": 1.0,
            "passes_backward": 1.0,
            "validation": figures(logits, labels, counts),
        }
        if run.seed in FINAL_SEEDS:
            arrays |= {"test_logits": logits, "test_labels": labels}
            left["test"] = figures(logits, labels, counts)
        np.savez(folder / f"{run.key}.npz", **arrays)
        (folder / f"{run.key}.json").write_text(json.dumps(left))

    while (plan := make_plan("foldoc", driver.read_finished(folder))).wanted:
        for run in plan.wanted:
            leave(run)
    result = json.loads(json.dumps(collect("foldoc", folder, "a command")))
    assert result["stage"] == "done"
    assert "cross-entropy, adjusted after training" in result["rows"]
    assert all(len(row["seeds"]) == 5 for row in result["rows"].values())
    assert len(result["runs"]) == len(list(folder.glob("*.json")))
    assert "| logit adjustment |" in make_table(result)

    (file := tmp_path / "evidence.json").write_text(json.dumps(result))
    other = tmp_path / "another machine"
    driver.restore(other, file)
    assert not make_plan("foldoc", driver.read_finished(other)).wanted
    assert json.loads(json.dumps(collect("foldoc", other, "a command", result))) == json.loads(file.read_text())
    assert not driver.missing_logits("foldoc", folder)
    seeds = {run.seed for run in driver.missing_logits("foldoc", other)}
    assert seeds == {*TUNING_SEEDS, *FINAL_SEEDS}

    name = LEFT_OUT[0]
    result["rows"][name], result["validation"][name] = result["rows"]["SAM"], {"0": 0.4}
    assert json.loads(json.dumps(collect("foldoc", other, "a command", result))) == result, "what was left out stays"


def test_tokens_that_occur_nowhere_change_nothing():
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_labels": 3}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**shape, num_attention_heads=2)).eval()
    small = copy.deepcopy(model)
    texts = [torch.tensor([40, 7, 9]), torch.tensor([7, 3])]
    splits = {"train": Examples(list(texts), np.array([0, 1])), "test": Examples([torch.tensor([49])], np.array([2]))}
    small.set_input_embeddings(keep_used_tokens(splits, model.get_input_embeddings()))
    assert len(small.get_input_embeddings().weight) == 6
    assert splits["train"].inputs[0].tolist() == [4, 2, 3]
    for inputs, net in ((texts, model), (splits["train"].inputs, small)):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.0)
        examples = Examples(inputs, splits["train"].labels)
        for _ in range(3):
            loss = net(**collate([examples[0], examples[1]])).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(model.classifier.weight, small.classifier.weight)
    used = torch.tensor([0, 3, 7, 9, 40, 49])
    assert torch.allclose(model.get_input_embeddings().weight[used], small.get_input_embeddings().weight)


def test_the_overview_picture_needs_a_finished_comparison(tmp_path):
    result, file = made_up_result() | {"validation": {"SAM": {"0": 0.5}}}, tmp_path / "overview.png"
    assert not draw_overview([result], file), "there are no class weights to compare with"
    assert not file.exists()
    result["rows"]["inverse-frequency weights, today's base"] = result["rows"]["cross-entropy, today's base"]
    assert draw_overview([result], file)
    assert file.stat().st_size > 10_000
