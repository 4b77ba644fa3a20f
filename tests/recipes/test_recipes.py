"""The recipes end to end, on every kind of input, in small."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from transformers import pipeline

from hf_sharp.recipe import runs
from hf_sharp.recipe.boundary import run_recipe
from tests.recipes.conftest import QUICK, TINY_VIT, texts

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))


def recipe(name):
    return runpy.run_path(str(RECIPES / f"{name}_classification.py"))["main"]


def environment():
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("kind", ["image_folder", "idx_folder"])
def test_images_from_folders(kind, request, tmp_path):
    out = tmp_path / "out"
    argv = ["--dataset", request.getfixturevalue(kind), "--model_config", TINY_VIT, "--output_dir", str(out), *QUICK]
    results = recipe("image")([*argv, "--sharpness", "focal_sam", "--compare_with", "baseline"])
    assert list(results) == ["baseline", "focal_sam+logit_adjusted"]
    assert (out / "recall_by_count.png").stat().st_size > 10_000
    report = results["baseline"]["report"]
    assert sum(report["class_counts"]) == (21 if kind == "image_folder" else 30)
    assert sum(report["per_class_support"]) == 9
    saved = json.loads((out / "baseline" / "all_results.json").read_text())
    assert saved == results["baseline"]


def test_digits_with_a_pretrained_folder_and_a_head_of_another_size(vit_folder, tmp_path):
    argv = ["--model_name_or_path", vit_folder, "--imbalance_factor", "50", "--output_dir", str(tmp_path / "out")]
    results = recipe("image")([*argv, *QUICK])
    counts = results["logit_adjusted"]["report"]["class_counts"]
    assert (len(counts), counts[0] // counts[-1]) == (10, 62)


def test_a_learned_radius_is_in_the_results_and_in_a_picture(image_folder, tmp_path):
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    argv += ["--sharpness", "sam", "--rho_schedule", "learned", "--rho_update_every", "1", "--rho_learning_rate", "0.5"]
    results = recipe("image")([*argv, "--logging_steps", "1", "--max_steps", "4", "--compare_with", "baseline"])
    radius = results["sam+logit_adjusted"]["radius"]
    assert radius["step"] == [1, 2, 3, 4, 4], "what was logged, and the end"
    assert radius["rho"][0] == 0.05
    assert radius["rho"][-1] != 0.05
    assert "radius" not in results["baseline"]
    assert (tmp_path / "out" / "radius.png").stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_texts_from_files(kind, text_folder, bert_folder, tmp_path):
    argv = [
        "--dataset",
        str(text_folder / kind),
        "--model_name_or_path",
        bert_folder,
        "--output_dir",
        str(tmp_path / "o"),
    ]
    results = recipe("text")([*argv, *QUICK, "--loss", "logit_adjusted"])
    report = results["logit_adjusted"]["report"]
    assert report["class_counts"] == [20, 8, 4]
    assert report["worst_class"] in ("alpha", "beta", "gamma")
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["label2id"] == {"alpha": 0, "beta": 1, "gamma": 2}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "/somewhere/else/recipes/image_classification.py",
            "python recipes/image_classification.py",
        ),
        ("recipes/image_classification.py", "python recipes/image_classification.py"),
        ("/somewhere/hf_sharp/recipe/__main__.py", "python -m hf_sharp.recipe"),
    ],
)
def test_the_command_that_is_recorded_can_be_copied_and_tells_nothing_of_the_machine(script, said, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, "--hub_token", "secret", "--rho", "1"])
    assert runs._command() == f"{said} --hub_token '…' --rho 1"


@pytest.mark.parametrize("words", [["--hub-token", "secret"], ["--hub-token=secret"], ["--hub_token=sec\nret"]])
def test_no_spelling_of_the_token_is_recorded(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/text_classification.py", *words, "--seed", "1"])
    assert runs._command().endswith("…' --seed 1")
    assert "ret" not in runs._command()


def test_one_file_with_a_test_fraction(text_folder, bert_folder, tmp_path):
    argv = ["--dataset", str(text_folder / "csv" / "train.csv"), "--model_name_or_path", bert_folder]
    results = recipe("text")([*argv, "--test_fraction", "0.25", "--output_dir", str(tmp_path / "out"), *QUICK])
    report = results["logit_adjusted"]["report"]
    assert report["class_counts"] == [15, 6, 3]
    assert report["per_class_support"] == [5, 2, 1]


def test_evaluation_while_training_uses_the_validation_split(bert_folder, tmp_path):
    splits = {"train": (20, 8, 4), "dev": (3, 3, 3), "test": (4, 4, 4)}
    data = datasets.DatasetDict({name: datasets.Dataset.from_dict(texts(n)) for name, n in splits.items()})
    data.save_to_disk(str(tmp_path / "data"))
    argv = [
        "--dataset",
        str(tmp_path / "data"),
        "--model_name_or_path",
        bert_folder,
        "--output_dir",
        str(tmp_path / "out"),
    ]
    quick = [*QUICK, "--validation_split", "dev", "--eval_strategy", "steps", "--eval_steps", "1"]
    results = recipe("text")(
        [*argv, *quick, "--save_strategy", "steps", "--save_steps", "1", "--load_best_model_at_end"]
    )
    assert sum(results["logit_adjusted"]["report"]["per_class_support"]) == 12
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert len([log for log in state["log_history"] if "eval_balanced_accuracy" in log]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--eval_strategy steps --eval_steps 1", "eval_strategy='steps'"),
        ("--eval_on_start true", "eval_on_start=True"),
        ("--eval_on_start true --check_only true", "eval_on_start=True"),
        ("--save_strategy best", "save_strategy='best'"),
        ("--metric_for_best_model macro_f1", "metric_for_best_model='macro_f1'"),
    ],
)
def test_evaluation_while_training_needs_validation_data(flags, message, image_folder, tmp_path):
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    with pytest.raises(ValueError, match=f"{message} needs validation data. Add --validation_fraction 0.1"):
        recipe("image")([*argv, *flags.split()])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", [[], ["--run_name", "mine"]])
def test_a_tracker_sees_one_name_for_training_and_test(named, image_folder, tmp_path, monkeypatch):
    from transformers.trainer_callback import TrainerCallback

    seen = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(args.run_name)

    monkeypatch.setattr("transformers.trainer.DEFAULT_CALLBACKS", [Tracker])
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    recipe("image")([*argv, "--logging_steps", "1", "--compare_with", "baseline", *named])
    start = "mine" if named else str(tmp_path / "out")
    assert set(seen) == {f"{start}/baseline", f"{start}/logit_adjusted"}


def test_a_run_logs_at_least_ten_times(image_folder, tmp_path):
    out = tmp_path / "out"
    argv = ["--dataset", str(image_folder), "--model_config", TINY_VIT, "--output_dir", str(out), *QUICK]
    recipe("image")([*argv, "--max_steps", "30"])
    logs = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert 10 <= len([log for log in logs if "loss" in log]) <= 30


def test_a_validation_fraction_comes_out_of_the_training_split(image_folder, tmp_path):
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    results = recipe("image")([*argv, "--validation_fraction", "0.34", "--eval_strategy", "steps", "--eval_steps", "1"])
    report = results["logit_adjusted"]["report"]
    assert report["class_counts"] == [8, 4, 2]
    assert report["per_class_support"] == [3, 3, 3]


def test_a_finished_run_is_not_trained_again(image_folder, tmp_path, monkeypatch):
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    argv += ["--compare_with", "baseline", "--resume_from_checkpoint", "true"]
    first = recipe("image")(argv)
    (tmp_path / "out" / "logit_adjusted" / "all_results.json").unlink()
    import hf_sharp.trainer.sharp_trainer as module

    trained, train = [], module.SharpTrainer.train
    monkeypatch.setattr(
        module.SharpTrainer, "train", lambda self, **k: trained.append(self.args.loss) or train(self, **k)
    )
    second = recipe("image")(argv)
    assert trained == ["logit_adjusted"]
    assert second["baseline"] == first["baseline"]
    assert second["logit_adjusted"]["report"] == first["logit_adjusted"]["report"], "the seed decides"


def test_writing_over_leaves_nothing_of_the_old_run(image_folder, tmp_path):
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    recipe("image")([*argv, "--save_strategy", "steps", "--save_steps", "1"])
    (tmp_path / "out" / "notes.txt").write_text("mine")
    results = recipe("image")(
        [*argv, "--loss_tau", "0.7", "--resume_from_checkpoint", "true", "--overwrite_output_dir"]
    )
    assert results["logit_adjusted"]["options"]["loss_tau"] == 0.7
    assert json.loads((tmp_path / "out" / "all_results.json").read_text()) == results["logit_adjusted"]
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_an_interrupted_run_goes_on_from_its_checkpoint(image_folder, tmp_path):
    argv = [
        "--dataset",
        image_folder,
        "--model_config",
        TINY_VIT,
        *QUICK,
        "--sharpness",
        "sam",
        "--save_strategy",
        "steps",
        "--save_steps",
        "1",
    ]
    whole = recipe("image")([*argv, "--output_dir", str(tmp_path / "whole")])
    recipe("image")([*argv, "--output_dir", str(tmp_path / "cut")])
    (tmp_path / "cut" / "all_results.json").unlink()
    import shutil

    shutil.rmtree(tmp_path / "cut" / "checkpoint-2")
    resumed = recipe("image")([*argv, "--output_dir", str(tmp_path / "cut"), "--resume_from_checkpoint", "true"])
    assert resumed["sam+logit_adjusted"]["report"] == whole["sam+logit_adjusted"]["report"]
    state = json.loads((tmp_path / "cut" / "trainer_state.json").read_text())
    assert state["global_step"] == 2


# ---- launchers and the finished model ----------------------------------------------------------------------------

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "python": [sys.executable],
    "accelerate": [str(BIN / "accelerate"), "launch", "--config_file", str(RECIPES / "accelerate" / "single_gpu.yaml")],
    "accelerate without a config": [str(BIN / "accelerate"), "launch"],
    "torchrun with 2 processes": [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(launcher, image_folder, tmp_path):
    argv = [*LAUNCHERS[launcher], str(RECIPES / "image_classification.py"), "--dataset", image_folder]
    argv += ["--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK, "--sharpness", "imbsam"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("balanced accuracy") == 1, "one process shows the table"
    assert sum(json.loads((tmp_path / "out" / "all_results.json").read_text())["report"]["per_class_support"]) == 9


def test_the_saved_model_opens_without_hf_sharp(image_folder, tmp_path):
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    recipe("image")(argv)
    opened = (
        "import sys; sys.modules['hf_sharp'] = None\n"
        "from transformers import pipeline; from PIL import Image\n"
        f"print(pipeline('image-classification', {str(tmp_path / 'out')!r})(Image.new('L', (20, 20)))[0]['label'])"
    )
    done = subprocess.run([sys.executable, "-c", opened], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() in ("cat", "dog", "emu")


def test_the_saved_model_predicts_in_a_pipeline_what_it_predicted_here(image_folder, tmp_path):
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    results = recipe("image")([*argv, "--max_steps", "20", "--learning_rate", "1e-2"])
    classify = pipeline("image-classification", str(tmp_path / "out"))
    test = datasets.load_dataset("imagefolder", data_dir=image_folder)["test"]
    names = test.features["label"].names
    correct = [classify(row["image"])[0]["label"] == names[row["label"]] for row in test]
    assert np.mean(correct) == pytest.approx(results["logit_adjusted"]["report"]["accuracy"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sharpness", "smart"], "error: unknown sharpness 'smart'"),
        (["--dataset", "./nowhere"], "error: the file or folder './nowhere' does not exist"),
        (["--image_column", "picture"], "error: column 'picture' is not an image column; the columns are"),
        (["--test_split", "held_out"], "error: there is no split 'held_out'; the splits are 'train', 'test'"),
        (["--label_column", "class"], "error: split 'train': there is no label column 'class'; the columns are"),
        (["--config", "nowhere.yaml"], "error: the config file 'nowhere.yaml' does not exist"),
    ],
)
def test_an_error_is_one_line(argv, message, tmp_path):
    options = ["--model_config", TINY_VIT, *QUICK, "--output_dir", str(tmp_path / "out"), *argv]
    assert run_recipe(lambda: recipe("image")(options)).startswith(message)
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_script_ends_it_without_a_traceback(tmp_path):
    command = [sys.executable, str(RECIPES / "image_classification.py"), "--sharpness", "smart"]
    command += ["--model_config", TINY_VIT, *QUICK, "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: unknown sharpness 'smart'")
    assert "Traceback" not in done.stderr
