"""What is evaluated is the whole split, and finite; a training that is not finite stops and publishes nothing."""

import json

import datasets
import numpy as np
import pytest
import torch
from transformers import ViTImageProcessor
from transformers.trainer_utils import HPSearchBackend

from hf_sharp.recipe.images import train_images
from hf_sharp.trainer.training_record import weights_are_finite
from tests.conftest import make_images, make_vit
from tests.inputs.commands import command, no_traceback, recipe  # noqa: F401
from tests.recipes.conftest import QUICK, TINY_VIT, image_folder  # noqa: F401

STEPS = {"max_steps": 6, "sharpness": "none", "learning_rate": 1e20}


# ---- the whole split -----------------------------------------------------------------------------------------------


def test_dropping_the_last_batch_of_training_leaves_evaluation_whole(make_trainer):
    data = make_images()
    trainer = make_trainer(eval_dataset=data, dataloader_drop_last=True, per_device_eval_batch_size=16)
    assert len(data) % 16
    assert len(data) % 8
    trainer.evaluate()
    assert sum(trainer.report_keeper.report["per_class_support"]) == len(data)
    assert len(trainer.predict(data).label_ids) == len(data)
    assert len(trainer.get_train_dataloader()) == len(data) // 8
    assert trainer.args.dataloader_drop_last


def test_the_report_of_a_recipe_covers_the_whole_test_split(image_folder, tmp_path):  # noqa: F811
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", str(tmp_path / "out"), *QUICK]
    argv += ["--dataloader_drop_last", "true", "--per_device_eval_batch_size", "4"]
    assert sum(train_images(argv)["logit_adjusted"]["report"]["per_class_support"]) == 9


# ---- losses and weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", ["none", "sam", "focal_sam", "cc_sam"])
@pytest.mark.parametrize("logging_steps", [1, 4, 500])
def test_a_training_that_is_not_finite_stops(sharpness, logging_steps, make_trainer):
    trainer = make_trainer(**STEPS | {"sharpness": sharpness}, logging_steps=logging_steps)
    with pytest.raises(
        ValueError, match=r"training stopped at step \d: .*not finite.*[Ll]ower learning_rate \(it is 1e"
    ):
        trainer.train()
    assert trainer.state.global_step == min(6, max(2, logging_steps))


def test_weights_that_the_loss_does_not_see_are_looked_at_too(make_trainer):
    trainer = make_trainer(max_steps=1, sharpness="none", learning_rate=1e-3)
    trainer.train()
    with torch.no_grad():
        trainer.model.vit.embeddings.position_embeddings[0, -1, 0] = float("inf")
    assert not weights_are_finite(trainer.model, lambda flags: flags)
    trainer.model.vit.embeddings.position_embeddings.requires_grad_(False)
    assert weights_are_finite(trainer.model, lambda flags: flags), "a frozen weight is not of this training"


def test_no_checkpoint_is_saved_of_weights_that_are_not_finite(make_trainer, tmp_path):
    trainer = make_trainer(**STEPS, save_strategy="steps", save_steps=1, logging_steps=500, save_total_limit=1)
    with pytest.raises(ValueError, match="not finite"):
        trainer.train()
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        from safetensors.torch import load_file

        assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())


def test_inputs_that_are_not_finite_are_told(make_trainer):
    data = make_images().with_format(None)
    pixels = np.array(data["pixel_values"][:])
    pixels[5] = np.nan
    columns = {"pixel_values": pixels.tolist(), "label": data["label"][:]}
    data = datasets.Dataset.from_dict(columns, features=data.features).with_format("torch")
    with pytest.raises(ValueError, match="check that the inputs hold no such values"):
        make_trainer(make_vit(), data, max_steps=20).train()


def test_a_search_goes_on_after_a_trial_that_is_not_finite(make_trainer, caplog):
    trainer = make_trainer(**STEPS, logging_steps=1)
    trainer.hp_search_backend = HPSearchBackend.OPTUNA
    trainer.train()
    assert "The search goes on" in caplog.text
    assert trainer.state.global_step < 6


@pytest.mark.usefixtures("no_traceback")
def test_a_recipe_publishes_nothing_and_fails(image_folder, tmp_path, capsys):  # noqa: F811
    argv = ["--dataset", image_folder, "--model_config", TINY_VIT, "--output_dir", tmp_path / "out", *QUICK]
    argv += ["--max_steps", "4", "--learning_rate", "1e20", "--sharpness", "none", "--compare_with", "loss=focal"]
    assert "Lower learning_rate" in recipe(capsys, train_images, *argv)
    files = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert not files & {"model.safetensors", "all_results.json", "README.md"}


@pytest.mark.usefixtures("no_traceback")
def test_a_report_of_outputs_that_are_not_finite_is_refused(image_folder, tmp_path, capsys):  # noqa: F811
    model = make_vit(num_labels=3, num_channels=3)
    model.classifier.bias.data[0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    said = command(capsys, "evaluate", tmp_path / "model", image_folder, "--output_dir", tmp_path / "report")
    assert "for 9 of 9 examples of the test split are not finite" in said
    assert not (tmp_path / "report").exists()


# ---- time and loss of an interrupted training ----------------------------------------------------------------------


def test_time_and_loss_after_an_interruption_are_those_of_the_whole_training(make_trainer, tmp_path):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2, "sharpness": "none"}
    whole = make_trainer(**options).train()
    file = tmp_path / "out" / "checkpoint-3" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["TrainingRecord"]["attributes"]["seconds"] = 1000.0
    file.write_text(json.dumps(state))
    resumed = make_trainer(**options).train(str(file.parent))
    assert 1000 < resumed.metrics["train_runtime"] < 1600
    assert resumed.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-5)
    assert resumed.metrics["train_steps_per_second"] == pytest.approx(6 / resumed.metrics["train_runtime"], abs=1e-3)
    part = json.loads((tmp_path / "out" / "checkpoint-6" / "trainer_state.json").read_text())
    assert part["stateful_callbacks"]["TrainingRecord"]["attributes"]["seconds"] > 1000
