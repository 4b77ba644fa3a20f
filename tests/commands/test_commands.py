"""The commands as a user types them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import datasets
import numpy as np
import pytest
import yaml
from scipy import stats
from sklearn.metrics import balanced_accuracy_score
from transformers import pipeline

from hf_sharp import ClassFrequencies, SharpTrainingArguments, cli
from hf_sharp.commands.compare import METRICS, compare, comparison, verdict
from hf_sharp.commands.counts import counts_table, suggestions
from hf_sharp.commands.train import accelerate_config
from hf_sharp.recipe import __main__ as recipe
from hf_sharp.reports.evaluation_pictures import PICTURES
from hf_sharp.reports.figures import cost_per_example
from hf_sharp.reports.pairs import paired
from tests.recipes.conftest import QUICK, TINY_VIT, image_folder  # noqa: F401

COMMAND = str(Path(sys.executable).parent / "hf-sharp")


def test_counts(capsys, tmp_path):
    picture = tmp_path / "counts.png"
    assert cli.main(["counts", "digits", "--imbalance_factor", "50", "--picture", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert "342 examples, 10 classes: many 1, medium 4, few 5" in " ".join(shown.split())
    assert "logit_adjusted" in shown
    assert "hf-sharp tune" in " ".join(shown.split())
    assert picture.stat().st_size > 10_000
    assert cli.main(["counts", "digits", "--train_split", "dev"]).startswith("error: there is no split 'dev'")
    assert cli.main(["counts", "digits", "--label_column", "y"]).startswith("error: there is no label column 'y'")


def test_counts_are_those_of_training_on_joined_splits_without_repeats(capsys, tmp_path):
    rows = {"id": [*range(30)], "label": ["a"] * 20 + ["b"] * 10}
    splits = {"train": datasets.Dataset.from_dict(rows)}
    splits["test"] = splits["train"].select(range(15, 30))
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    joined = ["counts", str(tmp_path / "data"), "--train_split", "train+test"]
    for flags, number in ((joined, "45 examples"), ([*joined, "--unique_column", "id"], "30 examples")):
        assert cli.main(flags) == 0
        assert number in " ".join(capsys.readouterr().out.split())


def test_counts_leave_out_rows_without_a_label_as_trainings_do(capsys, tmp_path):
    (file := tmp_path / "mails.csv").write_text("text,label\na,x\nb,\nc,y\nd,x\n")
    assert "--skip_broken" in cli.main(["counts", str(file)])
    assert cli.main(["counts", str(file), "--skip_broken", "true"]) == 0
    assert "3 examples, 2 classes" in " ".join(capsys.readouterr().out.split())


def test_counts_of_many_classes_and_of_names_with_markup():
    names = ("[bold red]x[/bold red]", *map(str, range(1, 1000)))
    frequencies = ClassFrequencies.from_counts([2000 - i for i in range(1000)], names=names)
    table = counts_table(frequencies, "[link]t")
    assert len(table.rows) == 31
    assert table.columns[0]._cells[0] == r"\[bold red]x\[/bold red]"


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([50, 50, 49], "cross_entropy; also try --sharpness sam --ascent momentum"),
        ([500, 100, 50], "logit_adjusted"),
        ([5000, 100, 5], "1 of the classes has fewer than 20 examples: also try --sharpness imbsam --rho 0.15"),
        ([5000, 100, 0], "1 class has no examples"),
        ([5000, 400, 100], "a second pass for sharpness"),
    ],
)
def test_suggestions(counts, said):
    assert said in " ".join(suggestions(ClassFrequencies.from_counts(counts)))


def test_suggestions_name_options_that_exist():
    text = " ".join(suggestions(ClassFrequencies.from_counts([5000, 100, 5])))
    suggested = re.findall(r"--sharpness \S+ --\w+ [^,\s]+", text)
    assert len(suggested) == 2
    for flags in map(str.split, suggested):
        SharpTrainingArguments("out", use_cpu=True, **dict(zip((f[2:] for f in flags[::2]), flags[1::2], strict=True)))


@pytest.fixture
def config(image_folder, tmp_path):  # noqa: F811
    file = tmp_path / "run.yaml"
    options = {"dataset": image_folder, "model_config": json.loads(TINY_VIT), "learning_rate": 1e-2}
    options |= {"max_steps": 6, "report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    file.write_text(yaml.safe_dump(options | {"output_dir": str(tmp_path / "out"), "per_device_train_batch_size": 8}))
    return file


def test_train_evaluate_adjust(config, image_folder, tmp_path, capsys):  # noqa: F811
    trained = subprocess.run(
        [
            COMMAND,
            "train",
            str(config),
            "--loss",
            "logit_adjusted",
            "--sharpness",
            "none",
            "--cost_matrix",
            '{"emu": {"cat": 5}}',
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["options"]["loss"] == "logit_adjusted"

    card = (tmp_path / "out" / "README.md").read_text()
    assert f"a prediction costs {cost_per_example(results['report'])} on average" in card
    for picture in PICTURES:
        assert f"]({picture})" in card
        assert (tmp_path / "out" / picture).stat().st_size > 10_000

    words = ["evaluate", str(tmp_path / "out"), image_folder, "--per_class", "2", "--output", str(tmp_path / "report")]
    given = cli.main(words)
    assert given == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    for metric, value in results["report"].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert report[metric] == pytest.approx(value), metric
    shown = capsys.readouterr().out
    assert "balanced accuracy" in shown
    assert "the 2 rarest of 3 classes" in shown
    assert all((tmp_path / "report" / picture).stat().st_size > 10_000 for picture in PICTURES)
    classify = pipeline("image-classification", str(tmp_path / "out"))
    test = datasets.load_dataset("imagefolder", data_dir=image_folder)["test"]
    names = test.features["label"].names
    guessed = [names.index(classify(row["image"])[0]["label"]) for row in test]
    assert report["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(test["label"], guessed))

    assert cli.main(["evaluate", str(tmp_path / "out"), "digits"]).startswith(
        f"error: '{tmp_path / 'out'}' has 3 classes, but the data has 10"
    )


@pytest.mark.parametrize("rows", ["none", "0", "-3", "outputs/model"])
def test_a_wrong_number_of_classes_to_show_is_named(rows, tmp_path):
    said = cli.main(["evaluate", str(tmp_path), "digits", "--per_class", rows])
    assert said.startswith(f"error: --per_class takes a number of classes, or 'all'; got {rows!r}.")


def test_an_error_of_the_training_is_shown_and_is_the_status(config):
    done = subprocess.run(
        [COMMAND, "train", str(config), "--sharpness", "smart"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "error: unknown sharpness 'smart'" in done.stderr
    assert "Traceback" not in done.stderr, "the launcher's own trouble is of no help"


def train_here(config, flags, accelerate):
    """What a launched process runs, without the seconds that it takes to start."""
    with mock.patch.object(sys, "argv", ["hf_sharp.recipe", "--config", config, *flags]):
        recipe.main()


def test_compare_is_paired_resumable_and_speaks(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_sharp.commands.compare.launch", train_here)
    other = tmp_path / "sharp.yaml"
    other.write_text(config.read_text() + "sharpness: focal_sam\n")
    plain = tmp_path / "plain.yaml"
    plain.write_text(config.read_text() + "sharpness: none\n")
    argv = ["compare", str(plain), str(other), "--seeds", "2", "--output", str(tmp_path / "c"), *QUICK]
    assert cli.main(argv) == 0
    summary = json.loads((tmp_path / "c" / "comparison.json").read_text())
    values = {
        name: [
            json.loads((tmp_path / "c" / name / f"seed_{seed}" / "all_results.json").read_text())["report"]["accuracy"]
            for seed in (0, 1)
        ]
        for name in ("plain", "sharp")
    }
    row = summary["metrics"]["accuracy"]
    assert row["difference"] == pytest.approx(np.mean(values["sharp"]) - np.mean(values["plain"]))
    assert summary["cost"] == pytest.approx(summary["passes"][1] / summary["passes"][0])
    assert 2 < summary["cost"] < 3.5, "Focal-SAM's passes, whatever the time was"
    shown = " ".join(capsys.readouterr().out.split())
    assert summary["verdict"] in shown
    assert "passes over the data" in shown
    written = (tmp_path / "c" / "plain" / "seed_0" / "all_results.json").stat().st_mtime_ns
    assert cli.main(argv) == 0, "what is there is not trained again"
    assert (tmp_path / "c" / "plain" / "seed_0" / "all_results.json").stat().st_mtime_ns == written
    assert (tmp_path / "c" / "recall_by_count.png").is_file()
    assert "had other options (learning_rate: " in cli.main([*argv, "--learning_rate", "0.5"])
    overwrite = [*argv, "--seeds", "1", "--learning_rate", "0.5", "--overwrite_output_dir"]
    assert cli.main(overwrite) == 0, "what the error advises"
    for name in ("plain", "sharp"):
        results = json.loads((tmp_path / "c" / name / "seed_0" / "all_results.json").read_text())
        assert results["options"]["learning_rate"] == 0.5
    written = (tmp_path / "c" / "plain" / "seed_0" / "all_results.json").stat().st_mtime_ns
    trained = mock.Mock(side_effect=train_here)
    with mock.patch("hf_sharp.commands.compare.launch", trained):
        assert "had other options (learning_rate: " in cli.main([*argv, "--learning_rate", "0.5", "--seeds", "3"])
    assert not trained.called, "the options of all finished runs are compared before any training"
    assert cli.main(overwrite) == 0
    assert (tmp_path / "c" / "plain" / "seed_0" / "all_results.json").stat().st_mtime_ns > written, "again"
    assert cli.main([*argv, "--overwrite_output_dir"]) == 0
    plain.write_text(plain.read_text() + "weight_decay: 0.1\n")
    assert "weight_decay: None then, 0.1 now" in cli.main(argv)
    plain.write_text(plain.read_text().replace("sharpness: none\n", "").replace("weight_decay: 0.1\n", ""))
    assert "sharpness: 'none' then, None now" in cli.main(argv), "also an option that was removed"
    nowhere = [*argv[:2], "nowhere.yaml", "--output", str(tmp_path / "d")]
    assert "'nowhere.yaml' does not exist" in cli.main(nowhere)
    assert not (tmp_path / "d").exists(), "the second config is read before the first one trains"


def test_paired_intervals_are_students():
    rng = np.random.default_rng(0)
    first = rng.normal(size=6)
    second = first + 0.3 + 0.1 * rng.normal(size=6)
    row = paired(first.tolist(), second.tolist())
    low, high = stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (row["difference"] - row["interval"], row["difference"] + row["interval"]) == pytest.approx((low, high))
    assert paired([0.5], [0.6])["interval"] is None


@pytest.mark.parametrize(
    ("difference", "interval", "said"),
    [
        (
            0.021,
            0.006,
            "b is ahead by 2.1 ± 0.6 points of balanced accuracy; few classes +5.3 ± 1.9 for b; b costs 2.0",
        ),
        (-0.021, 0.006, "a is ahead by 2.1 ± 0.6 points"),
        (0.004, 0.006, "no difference beyond chance: b is +0.4 ± 0.6 points"),
        (0.004, None, "b is ahead by 0.4 points of balanced accuracy, but one seed cannot tell from chance"),
    ],
)
def test_the_verdict_in_words(difference, interval, said):
    few = {"difference": 0.053, "interval": 0.019}
    metrics = {"balanced accuracy": {"difference": difference, "interval": interval}, "few classes": few}
    assert verdict(("a", "b"), metrics, 2.0).startswith(said)


def test_runs_of_other_data_are_not_compared():
    result = {"report": {"class_counts": [3, 2], "per_class_support": [1, 1]}}
    other = {"report": {"class_counts": [3, 1], "per_class_support": [1, 1]}}
    with pytest.raises(ValueError, match="class counts of the two differ"):
        compare(("a", "b"), {"a": [result], "b": [other]})


def run_of(seconds, passes=None, **options):
    counts = {"class_counts": [3, 2], "per_class_support": [1, 1]}
    report = counts | dict.fromkeys(METRICS.values(), 0.5)
    training = {"train_runtime": seconds} | ({} if passes is None else {"passes": passes, "epochs": 3.0})
    return {"report": report, "training": training, "options": options, "machine": "a box"}


def test_the_cost_is_in_passes_and_no_ratio_of_seconds():
    summary = compare(("a", "b"), {"a": [run_of(5.0, 1.0)], "b": [run_of(30.0, 2.0)]})
    assert (summary["cost"], summary["passes"], summary["seconds"]) == (2.0, [3.0, 6.0], [5.0, 30.0])
    assert summary["verdict"].endswith("; b costs 2.0 times a, in passes.")
    table = comparison(("a", "b"), summary)
    cells = [list(column.cells)[-2:] for column in table.columns]
    assert cells == [["passes over the data (plain)", "training time"], ["3", "5 s"], ["6", "30 s"], ["", ""]]


def test_results_without_passes_are_compared_without_a_cost():
    summary = compare(("a", "b"), {"a": [run_of(5.0)], "b": [run_of(30.0, 2.0)]})
    assert (summary["cost"], summary["passes"]) == (None, [None, 6.0])
    assert "costs" not in summary["verdict"]
    assert list(comparison(("a", "b"), summary).columns[0].cells)[-1] == "training time"
    summary = compare(("a", "b"), {"a": [run_of(5.0, 1.0, peft="lora")], "b": [run_of(30.0, 2.0)]})
    assert summary["cost"] is None, "passes through adapters cost less"


def test_accelerate_configs_are_found_by_name(tmp_path):
    assert accelerate_config("ddp").name == "ddp.yaml"
    file = tmp_path / "mine.yaml"
    file.write_text("")
    assert accelerate_config(str(file)) == file
    with pytest.raises(ValueError, match="expected a file, or one of ddp, fsdp2, multi_node, single_gpu"):
        accelerate_config("tpu")
