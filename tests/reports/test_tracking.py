"""Figures and pictures reach the trackers that `report_to` names."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from hf_sharp.reports.tracking import finish_runs, send_picture, takes_pictures
from tests.conftest import make_images

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
ROOT = Path(__file__).parents[2]


def events_of(folder):
    files = sorted(Path(folder).rglob("events.out.tfevents.*"))
    found = {"images": {}, "scalars": set()}
    for file in files:
        events = event_accumulator.EventAccumulator(str(file)).Reload()
        found["scalars"] |= set(events.Tags()["scalars"])
        for tag in events.Tags()["images"]:
            found["images"].setdefault(tag, []).extend((image.step, image.width) for image in events.Images(tag))
    return found


def test_every_evaluation_shows_recall_by_count_in_tensorboard(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "log"))
    trainer = make_trainer(
        eval_dataset=make_images(seed=1), report_to="tensorboard", eval_strategy="steps", eval_steps=2, logging_steps=2
    )
    trainer.train()
    trainer.evaluate(metric_key_prefix="test")
    trainer.evaluate({"one": make_images(seed=2), "two": make_images(seed=3)})
    finish_runs(trainer.callback_handler.callbacks)
    found = events_of(tmp_path / "log")
    assert [step for step, _ in found["images"]["eval/recall_by_count"]] == [2, 4]
    assert {"test/recall_by_count", "eval_one/recall_by_count", "eval_two/recall_by_count"} < set(found["images"])
    assert all(width > 300 for images in found["images"].values() for _, width in images)
    assert {"train/rho", "train/sharpness", "eval/balanced_accuracy", "test/balanced_accuracy"} <= found["scalars"]


def test_a_set_without_labels_has_no_picture(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "log"))
    trainer = make_trainer(report_to="tensorboard")
    trainer.log({"something": 1.0})  # opens the log
    trainer.report_keeper.compute_metrics = trainer.compute_metrics = None
    assert "eval_runtime" in trainer.evaluate(make_images(seed=1))
    finish_runs(trainer.callback_handler.callbacks)
    assert not events_of(tmp_path / "log")["images"]


def test_without_a_tracker_nothing_is_drawn(make_trainer, monkeypatch):
    monkeypatch.setattr("hf_sharp.reports.tracking.plot_recall_by_count", lambda *args: pytest.fail("drawn"))
    make_trainer(eval_dataset=make_images(seed=1)).evaluate()


class Tracker:
    """What wandb and trackio have in common, as their callbacks hold it."""

    def __init__(self):
        self.logged, self.finished = [], 0

    def Image(self, picture):  # their name
        return np.asarray(picture).shape

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("attribute", ["_wandb", "_trackio"])
def test_trackers_with_a_run_get_the_picture_and_those_without_do_not(attribute, tmp_path):
    from PIL import Image

    Image.new("RGBA", (40, 30)).save(tmp_path / "picture.png")
    running, idle, other = (type("Callback", (), {})() for _ in range(3))
    for callback, initialized in ((running, True), (idle, False)):
        setattr(callback, attribute, Tracker())
        callback._initialized = initialized
    callbacks = [running, idle, other]
    assert [takes_pictures(callback) for callback in callbacks] == [True, False, False]
    send_picture(callbacks, "eval/recall_by_count", tmp_path / "picture.png", 7)
    finish_runs(callbacks)
    assert getattr(running, attribute).logged == [{"eval/recall_by_count": (30, 40, 3), "train/global_step": 7}]
    assert (getattr(running, attribute).finished, running._initialized) == (1, False)
    assert (getattr(idle, attribute).logged, getattr(idle, attribute).finished) == ([], 0)


def test_the_runs_of_a_recipe_have_a_log_each_with_its_figures_and_pictures(tmp_path):
    config = yaml.safe_load((ROOT / "recipes" / "configs" / "quickstart_lets.yaml").read_text())
    config |= {"max_steps": 4, "logging_steps": 2, "report_to": "tensorboard", "output_dir": str(tmp_path / "out")}
    config |= {"compare_with": ["rho_schedule=constant"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    command = [
        sys.executable,
        str(ROOT / "recipes" / "image_classification.py"),
        "--config",
        str(tmp_path / "config.yaml"),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = sorted(folder for folder in (tmp_path / "out").iterdir() if folder.is_dir())
    assert len(runs) == 2
    for run in runs:
        found = events_of(run)
        assert "test/recall_by_count" in found["images"]
        assert ("train/radius" in found["images"]) == ("constant" not in run.name)
        assert "test/balanced_accuracy" in found["scalars"]
