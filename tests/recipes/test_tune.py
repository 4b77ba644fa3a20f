"""`hf-sharp tune` on tiny pictures and texts: the choice, determinism, interruptions, the test split left alone."""

import json
import math
import re
import sys

import datasets
import pytest
import yaml
from transformers import pipeline

import hf_sharp
from hf_sharp import cli
from hf_sharp.recipe import search as searching
from hf_sharp.recipe import tune as tuning
from hf_sharp.recipe import tuning_run
from hf_sharp.recipe.boundary import UserError
from hf_sharp.recipe.budget import Budget, read_budget
from hf_sharp.recipe.search_space import EXTRA, SEARCHED, SearchSpace, is_log
from hf_sharp.recipe.texts import train_texts
from hf_sharp.recipe.tuning_run import Runner
from hf_sharp.reports.plots.tuning import pareto_front
from hf_sharp.reports.tuning import best_of, effects, paragraph
from hf_sharp.sharpness.candidates import CANDIDATES
from tests.inputs.commands import command, no_traceback  # noqa: F401
from tests.recipes.conftest import TINY_VIT, bert_folder, image_folder, text_folder, texts  # noqa: F401

optuna = pytest.importorskip("optuna", reason="pip install optuna")


def write(folder, **options):
    file = folder / "run.yaml"
    quick = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "use_cpu": True}
    file.write_text(yaml.safe_dump({**quick, "validation_fraction": 0.34, "output_dir": "unused", **options}))
    return file


@pytest.fixture
def config(image_folder, tmp_path):  # noqa: F811
    return write(tmp_path, dataset=image_folder, model_config=json.loads(TINY_VIT), sharpness="focal_sam", rho=0.3)


def of(result):
    return [(run["params"], run["value"], run["state"]) for run in result["runs"]]


def pretend(self, change, goes_on, correct=False):
    """A run whose accuracy is known: it is best with SAM, a radius of 0.1 and a strength of 0.7."""
    value = 0.8 - 0.1 * (change["loss_tau"] - 0.7) ** 2 + 0.05 * (change["sharpness"] == "sam")
    value -= 0.02 * abs(math.log10(change.get("rho", 1.0) / 0.1))
    figures = {"accuracy": value, "balanced_accuracy": value, "few_accuracy": value / 2}
    report = figures | {"per_class_recall": [value] * 3, "per_class_support": [30] * 3}
    free = {"strength": 0.5, "value": 0.79, "scores": {"0.0": value, "0.5": 0.79}} if correct else None
    passes = (
        1.0 if change.get("ascent") == "momentum" else {"sam": 2.0, "focal_sam": 2.67}.get(change["sharpness"], 1.0)
    )
    return {"state": "finished", "seconds": 1.0, "passes": passes, "report": report, "free": free}


@pytest.fixture
def no_pictures(monkeypatch):
    """They are slow; another test draws them."""
    for picture in ("plot_sensitivity", "plot_pareto"):
        monkeypatch.setattr(searching, picture, lambda *_, **__: None)


@pytest.mark.usefixtures("no_pictures")
def test_one_seed_chooses_the_same_also_after_interruptions(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Runner, "train", pretend)
    whole = hf_sharp.tune(config, "9runs", output_dir=tmp_path / "a")
    groups = [run["group"] for run in whole["runs"]]
    assert groups[:5] == ["none", *CANDIDATES], "every method once, the cheap ones first"
    assert [run["params"]["loss_tau"] for run in whole["runs"][:5]] == [0.0, 0.5, 0.5, 0.5, 0.5]
    assert len({run["value"] for run in whole["runs"]}) == 9
    assert whole["options"]["sharpness"] == "sam"
    assert whole["runs"][whole["best"]]["value"] == max(run["value"] for run in whole["runs"])

    count = []

    def interrupted(self, change, goes_on, correct=False):
        count.append(change)
        if len(count) in (4, 8):
            raise KeyboardInterrupt
        return pretend(self, change, goes_on, correct)

    monkeypatch.setattr(Runner, "train", interrupted)
    words = ["tune", str(config), "--output_dir", str(tmp_path / "b"), "--budget"]
    for _ in range(2):
        assert cli.main([*words, "9runs"]) == 130
        assert "the same command goes on" in capsys.readouterr().err
    assert cli.main([*words, "9runs"]) == 0
    resumed = json.loads((tmp_path / "b" / "tuning.json").read_text())
    assert resumed == whole
    assert len(count) == 11
    assert cli.main([*words, "9runs"]) == 0
    assert len(count) == 11, "the budget is used up"
    with pytest.raises(ValueError, match=r"had other options \(seed: 0 then, 1 now\)"):
        hf_sharp.tune(config, "10runs", output_dir=tmp_path / "b", seed=1)
    other = hf_sharp.tune(config, "6runs", output_dir=tmp_path / "c", seed=1)
    assert of(other)[:5] == of(whole)[:5]
    assert of(other)[5:] != of(whole)[5:6]


@pytest.mark.usefixtures("no_pictures")
def test_no_file_of_a_search_holds_the_access_token(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "train", pretend)
    hf_sharp.tune(config, "2runs", output_dir=tmp_path / "search", flags=["--hub_token", "hf_notforothers"])
    files = [file for file in (tmp_path / "search").rglob("*") if file.is_file()]
    assert len(files) >= 3
    assert not [file for file in files if b"hf_notforothers" in file.read_bytes()]


def test_a_search_of_a_version_that_did_not_count_passes_goes_on(config, tmp_path, monkeypatch, capsys):
    def uncounted(self, change, goes_on, correct=False):
        outcome = pretend(self, change, goes_on, correct)
        return {name: note for name, note in outcome.items() if name != "passes"} | {"seconds": 3.0 if correct else 1.5}

    folder = tmp_path / "search"
    monkeypatch.setattr(Runner, "train", uncounted)
    hf_sharp.tune(config, "4runs", output_dir=folder)
    monkeypatch.setattr(Runner, "train", pretend)
    again = hf_sharp.tune(config, "4runs", output_dir=folder)
    assert [run["passes"] for run in again["runs"]] == [None] * 4
    more = hf_sharp.tune(config, "6runs", output_dir=folder)
    assert [run["passes"] is None for run in more["runs"]] == [True] * 4 + [False] * 2
    comments = (folder / "best.yaml").read_text().replace("\n# ", " ")
    assert re.search(r"the training time \(first run = 1\): .*sam, momentum \d\d\.\d \(0\.5\)", comments)
    assert (folder / "pareto.png").stat().st_size > 10_000
    assert "cost" in capsys.readouterr().out


def test_the_command_ends_with_a_config_pictures_and_a_model(config, tmp_path, capsys, monkeypatch):
    read = []
    prepared = tuning.prepare_training
    monkeypatch.setattr(tuning, "prepare_training", lambda *args, **kw: read.append(prepared(*args, **kw)) or read[-1])
    folder = tmp_path / "search"
    words = ["tune", str(config), "--budget", "3runs", "--output_dir", str(folder), "--retrain"]
    assert cli.main([*words, "--search", "loss_tau", "learning_rate"]) == 0
    assert set(read[0].splits) == {"train", "validation"}, "the search does not have the test split"
    said = capsys.readouterr().out
    assert "of 3 runs" in said.lower()
    for picture in ("sensitivity.png", "pareto.png"):
        assert (folder / picture).stat().st_size > 10_000
    chosen = yaml.safe_load((folder / "best.yaml").read_text())
    result = json.loads((folder / "tuning.json").read_text())
    best = result["runs"][result["best"]]
    assert best["value"] == max(run["value"] for run in result["runs"] if run["value"] is not None)
    assert chosen["sharpness"] == "focal_sam"
    assert chosen["rho"] == 0.3, "what was not searched stays"
    assert chosen["loss"] == "logit_adjusted"
    assert chosen["learning_rate"] == best["options"]["learning_rate"]
    assert "validation_fraction" not in chosen
    assert "# loss_tau: the best of" in (folder / "best.yaml").read_text()
    assert {run["passes"] for run in result["runs"]} == {2.67}
    assert all(run["seconds"] > 0 for run in result["runs"])
    trained = json.loads((folder / "model" / "all_results.json").read_text())
    assert trained["report"]["class_counts"] == [12, 6, 3], "on all training examples"
    pipeline("image-classification", str(folder / "model"))


@pytest.mark.usefixtures("no_pictures")
def test_the_model_follows_the_choice(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Runner, "train", pretend)
    folder = tmp_path / "search"
    words = ["tune", str(config), "--search", "loss_tau", "--output_dir", str(folder), "--retrain", "--budget"]

    def trained():
        file = folder / "model" / "all_results.json"
        return json.loads(file.read_text())["options"]["loss_tau"], file.stat().st_mtime_ns

    assert cli.main([*words, "1runs"]) == 0
    first, _ = trained()
    assert cli.main([*words, "3runs"]) == 0
    second, written = trained()
    assert first != second == yaml.safe_load((folder / "best.yaml").read_text())["loss_tau"]
    assert cli.main([*words, "3runs"]) == 0
    assert trained() == (second, written), "the same choice is not trained again"
    assert cli.main([*words, "3runs", "--overwrite_output_dir"]) == 0
    assert trained()[1] > written
    capsys.readouterr()
    monkeypatch.setattr(tuning, "train_classifier", fail)
    assert cli.main([*words, "4runs"]) == "error: no memory"
    assert "of 4 runs" in capsys.readouterr().out.lower(), "an error of the training does not lose the result"
    with pytest.raises(UserError, match="no memory"):
        hf_sharp.tune(config, "4runs", search=["loss_tau"], output_dir=folder, retrain=True)


def fail(argv, recipe):
    raise UserError("no memory")


@pytest.mark.usefixtures("no_pictures")
def test_the_chosen_config_has_no_options_of_validation(bert_folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(Runner, "train", pretend)
    rows = texts((20, 8, 4)) | {"customer": [str(i // 2) for i in range(32)]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows).to_csv(str(tmp_path / "mails" / f"{split}.csv"))
    options = {"dataset": str(tmp_path / "mails"), "model_name_or_path": bert_folder, "group_column": "customer"}
    options |= {"eval_strategy": "epoch", "save_strategy": "best", "metric_for_best_model": "accuracy", "do_eval": True}
    options |= {"eval_on_start": True, "greater_is_better": True, "check_only": True, "unique_column": "text"}
    config = write(tmp_path, **options)
    hf_sharp.tune(config, "1runs", output_dir=tmp_path / "search")
    best = tmp_path / "search" / "best.yaml"
    assert yaml.safe_load(best.read_text())["unique_column"] == "text", "it has an effect"
    assert train_texts(["--config", str(best), "--output_dir", str(tmp_path / "model"), "--max_steps", "1"])
    write(tmp_path, **options, test_fraction=0.25, test_split="none")
    hf_sharp.tune(config, "1runs", output_dir=tmp_path / "other")
    assert yaml.safe_load((tmp_path / "other" / "best.yaml").read_text())["group_column"] == "customer"


def test_options_that_the_final_training_lacks_are_refused_before_the_search(config, tmp_path):
    flags = ["--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "epoch"]
    with pytest.raises(ValueError, match=r"without evaluations, but .*reduce_lr_on_plateau requires an eval strategy"):
        hf_sharp.tune(config, "1runs", output_dir=tmp_path / "search", flags=flags)
    assert not (tmp_path / "search").exists()


def test_texts(text_folder, bert_folder, tmp_path):  # noqa: F811
    config = write(tmp_path, dataset=str(text_folder / "csv"), model_name_or_path=bert_folder)
    result = hf_sharp.tune(config, "5runs", output_dir=tmp_path / "search", flags=["--max_steps", "3"])
    methods = [run["group"] for run in result["runs"]]
    assert list(dict.fromkeys(methods)) == list(CANDIDATES), "every method once, the cheap ones first"
    assert [run["passes"] for run in result["runs"]][-4:] == [1.0, 1.0, 2.0, 2.67]
    again = hf_sharp.tune(config, "2runs", output_dir=tmp_path / "again", flags=["--max_steps", "3"])
    assert of(again) == of(result)[:2]
    assert [run["report"] for run in again["runs"]] == [run["report"] for run in result["runs"][:2]]
    assert result["options"]["max_steps"] == 3
    assert result["options"]["loss"] == "logit_adjusted"


def test_a_run_that_falls_behind_ends_early(config, tmp_path, monkeypatch):
    figures = iter([0.9] * 18 + [0.1] * 9)
    asked = tuning_run._Asks.on_evaluate

    def staged(self, args, state, control, metrics=None, **more):
        asked(self, args, state, control, {"eval_balanced_accuracy": next(figures)}, **more)

    monkeypatch.setattr(tuning_run._Asks, "on_evaluate", staged)
    result = hf_sharp.tune(
        config, "3runs", output_dir=tmp_path / "search", search=["learning_rate"], flags=["--max_steps", "9"]
    )
    assert [run["state"] for run in result["runs"]] == ["finished", "finished", "ended early"]
    assert len(list(figures)) == 6, "after its third evaluation"
    assert [run["passes"] for run in result["runs"]] == [2.67] * 3, "of a step, also where there were fewer"


@pytest.mark.usefixtures("no_pictures")
def test_started_twice_real_trainings_choose_the_same(config, tmp_path):
    flags = ["--max_steps", "9"]
    first, second = (hf_sharp.tune(config, "9runs", output_dir=tmp_path / name, flags=flags) for name in "ab")
    for run in (*first["runs"], *second["runs"]):
        run.pop("seconds")
        run["free"] = run.get("free")
    assert first["runs"] == second["runs"], "also those that Optuna proposed, and which of them ended early"
    assert {name: first[name] for name in ("best", "options")} == {name: second[name] for name in ("best", "options")}
    chosen = [yaml.safe_load((tmp_path / name / "best.yaml").read_text()) for name in "ab"]
    assert chosen[0] == chosen[1], "apart from what its comments say of the time"
    assert len({run["value"] for run in first["runs"]}) > 1, "the runs differ"


@pytest.mark.usefixtures("no_pictures")
def test_a_run_that_is_not_finite_does_not_end_the_search(config, tmp_path, monkeypatch):
    rates = iter([1e-2, 1e-2, 1e30, 1e-2])  # the check before the first run, and three runs
    arguments = Runner.arguments

    def staged(self, change):
        return arguments(self, change | {"learning_rate": next(rates)})

    monkeypatch.setattr(Runner, "arguments", staged)
    result = hf_sharp.tune(config, "3runs", output_dir=tmp_path / "search", search=["learning_rate"])
    assert [run["state"] for run in result["runs"]] == ["finished", "not finite", "finished"]
    assert result["runs"][1]["value"] is None
    assert "1 was not finite" in result["said"]
    rates = iter([1e30, 1e30])
    with pytest.raises(ValueError, match="training stopped at step"):  # the config itself
        hf_sharp.tune(config, "3runs", output_dir=tmp_path / "other", search=["learning_rate"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "20"], "budget must be a number of runs or a time above 0, such as 20runs or 2h; got '20'"),
        (["--budget", "0runs"], "got '0runs'"),
        ([], "the following arguments are required: --budget"),
        (["--budget", "2runs", "--search", "roh"], "unknown option to search: 'roh'. Did you mean 'rho'?"),
        (["--budget", "2runs", "--search", "rho", "rho"], "named twice"),
        (["--budget", "2runs", "--search", "loss_margin"], "does not take loss_margin"),
        (["--budget", "2runs", "--loss", "ldam"], "loss 'ldam' has no loss_tau: leave it out with --search method rho"),
        (["--budget", "2runs", "--search", "rho", "--sharpness", "none"], "rho has no effect with sharpness 'none'"),
        (["--budget", "2runs", "--leraning_rate", "1"], "Did you mean 'learning_rate'?"),
        (["--budget", "2runs", "--output_dir", "."], "is not empty and has no search"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("no_traceback")
def test_mistakes_are_one_line_and_leave_nothing(words, said, config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    if "--sharpness" in words or "--loss" in words:
        config.write_text("\n".join(line for line in config.read_text().splitlines() if "rho" not in line))
    assert said in command(capsys, "tune", config, *words)
    assert sorted(tmp_path.iterdir()) == before


def test_without_optuna_it_says_what_to_install(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    said = command(capsys, "tune", config, "--budget", "2runs", "--output_dir", tmp_path / "search")
    assert "pip install optuna" in said
    assert not (tmp_path / "search").exists()


# ---- the parts -----------------------------------------------------------------------------------------------------


class Lowest:
    def suggest_float(self, name, low, high, log=False):
        assert 0 <= low < high
        assert log == is_log(name)
        return low

    def suggest_categorical(self, name, choices):
        return choices[-1]


def test_every_option_can_be_searched():
    space = SearchSpace(
        {"loss": "vs", "learning_rate": 1e-3, "sharpness": "sam"}, [*SEARCHED, "loss_gamma", "head_init"]
    )
    assert space.options(Lowest()) == {
        **list(CANDIDATES.values())[-1],
        "rho": 0.005,
        "loss": "vs",
        "loss_tau": 0.0,
        "loss_gamma": 0.05,
        "head_init": EXTRA["head_init"].choices[-1],
    }
    rates = SearchSpace({"learning_rate": 1e-3, "sharpness": "sam"}, ["learning_rate"])
    assert rates.limits("learning_rate") == (2e-4, 5e-3)
    assert list(rates.candidates) == ["sam"], "a method that is not searched stays"


@pytest.mark.parametrize("loss", [None, "", "cross_entropy"])
def test_the_strength_is_searched_with_a_loss_that_has_one(loss):
    space = SearchSpace({} if loss is None else {"loss": loss})
    assert space.options(Lowest())["loss"] == "logit_adjusted"
    assert SearchSpace({"loss": loss} if loss else {}, ["method", "rho"]).loss == (loss or "logit_adjusted")


def test_the_cheap_runs_come_first_with_the_strength_that_was_free():
    space = SearchSpace({})
    assert space.first() == {"method": "none", "loss_tau": 0.0}
    ladder = space.ladder(0.7)
    assert [run["method"] for run in ladder] == list(CANDIDATES)
    assert {run["loss_tau"] for run in ladder} == {0.7}
    assert ladder[1]["rho (sam, momentum)"] == pytest.approx(0.75)
    assert ladder[2]["rho (sam)"] == pytest.approx(0.02)
    assert [run["method"] for run in space.ladder(0.0)] == list(CANDIDATES)[1:], "the first run is not repeated"


def test_budgets():
    assert read_budget("20runs") == read_budget(" 20 Runs ") == Budget(runs=20)
    assert read_budget("1run") == Budget(runs=1)
    assert read_budget("90m").seconds == read_budget("1.5h").seconds == 5400
    for wrong in ("", "runs", "2.5runs", "-1h", "h", "2 weeks"):
        with pytest.raises(ValueError, match="such as 20runs or 2h"):
            read_budget(wrong)
    assert Budget(seconds=1).allows([]), "one run always fits"
    assert not Budget(seconds=1).allows([5.0])


def a_run(number, value, method, tau, seconds=1.0, passes=1.0):
    report = {"per_class_recall": [value, value], "per_class_support": [50, 50]}
    params = {"method": method, "loss_tau": tau}
    cost = {"seconds": seconds, "passes": passes}
    more = {"state": "finished", **cost, "report": report, "group": method, "options": params}
    return {"number": number, "value": value, "params": params, **more}


def test_what_mattered_is_told_from_what_did_not():
    values = {"plain": 0.6, "sharp": 0.8}
    runs = [
        a_run(i, values[method] + 0.01 * (i % 3), method, tau, seconds=1 + (method == "sharp"))
        for i, (method, tau) in enumerate((m, t) for m in values for t in (0.1, 0.2, 0.5, 0.6, 0.8, 0.9))
    ]
    found = effects(runs)
    assert found["method"].matters
    assert found["method"].best == "sharp"
    assert found["method"].size == pytest.approx(0.2)
    assert not found["loss_tau"].matters
    said = paragraph(runs, 100, {"strength": 0.5, "value": 0.7})
    assert "What mattered: method (20.0 points" in said
    assert "What made no difference beyond the noise between runs: loss_tau" in said
    assert "strength 0.5) reaches 70.0" in said
    assert best_of(runs)["number"] == 8, "of equal runs the first"
    assert effects(runs[:3]) == {}
    assert "Too few runs" in paragraph(runs[:3], 100, None)


def test_a_cheaper_run_within_the_noise_is_named():
    # The first run has warmed the machine up, and so took longest.
    runs = [a_run(0, 0.79, "plain", 0.1, 9.0, 1.0), a_run(1, 0.8, "sharp", 0.1, 2.0, 2.0)]
    assert "uncertain by ± 4.0 points (standard error)" in paragraph(runs, 100, None)
    assert "run 0 (method plain, loss_tau 0.1) does as well at 50% of the cost of a step" in paragraph(runs, 100, None)
    for unlike in ({"value": 0.7}, {"passes": 1.95}, {"passes": None}):
        assert "does as well" not in paragraph([runs[0] | unlike, runs[1]], 100, None)
    old = [runs[0] | {"passes": None, "seconds": 1.0}, runs[1]]
    assert "does as well in 50% of the time" in paragraph(old, 100, None)


def test_equal_costs_are_told_apart_by_accuracy():
    runs = [
        a_run(i, value, "plain", 0.1 * i, 1.0, cost) for i, (value, cost) in enumerate([(0.78, 1), (0.79, 1), (0.8, 2)])
    ]
    assert "run 1 (method plain, loss_tau 0.1) does as well" in paragraph(runs, 100, None)


def test_the_front_holds_what_nothing_beats():
    points = {0: (1.0, 70.0), 1: (1.0, 71.0), 2: (3.0, 75.0), 3: (2.0, 60.0), 4: (4.0, 75.0)}
    assert pareto_front(points) == [1, 2]
