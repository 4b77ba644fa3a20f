"""Augmentation and test-time augmentation in the recipes: who sees which images, and what is said about it."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, ConvNextImageProcessorPil, TrainerCallback, ViTImageProcessorPil

from hf_sharp import SharpTrainer, SharpTrainingArguments, cli
from hf_sharp.data.augmentation import ImageAugmentation
from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.recipe import TrainImageArguments, prepare_images, train_images
from hf_sharp.recipe.images import ToPixels, image_extras, input_size, views_of
from hf_sharp.reports.long_tail_report import mean_prediction, report_of_prediction
from tests.conftest import assert_same_bits, make_vit, weights_of
from tests.processes import run_processes
from tests.recipes.conftest import QUICK, TINY_VIT

SIZE = (40, 36)
OPTIONS = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none"}
OPTIONS |= {"save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False, "sharpness": "sam", "rho": 0.1}


def colour_images(counts=(8, 6, 4), seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    pictures = [Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)) for _ in labels]
    names = datasets.ClassLabel(names=["cat", "dog", "emu"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    return datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()}, features=features)


@pytest.fixture
def colour_folder(tmp_path):
    splits = {"train": colour_images(), "test": colour_images((4, 4, 4), seed=1)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "colour"))
    return str(tmp_path / "colour")


class SeesBatches(SharpTrainer):
    """Keeps the pixels of every batch that training steps get, and of every forward pass."""

    def training_step(self, model, inputs, *more):
        self.__dict__.setdefault("seen", []).append(inputs["pixel_values"].clone())
        return super().training_step(model, inputs, *more)


def trained(out, seed=0, data=None, resume=None, workers=0, epochs=None, **options):
    data = colour_images() if data is None else data
    processor, columns = ViTImageProcessorPil(size={"height": 8, "width": 8}), TrainImageArguments()
    plain = data.with_transform(ToPixels(processor, columns, "label"))
    augmentation = ToPixels(processor, columns, "label", ImageAugmentation("crop_flip", (8, 8), seed))
    args = SharpTrainingArguments(str(out), dataloader_num_workers=workers, **(OPTIONS | options))
    model = make_vit(num_labels=3, num_channels=3)
    trainer = SeesBatches(model, args, train_dataset=plain, train_transform=augmentation)
    passes = []
    hook = model.register_forward_pre_hook(
        lambda module, positional, named: passes.append(named["pixel_values"].clone()) if module.training else None,
        with_kwargs=True,
    )
    if epochs is not None:
        trainer.add_callback(StopAfter(epochs))
    trainer.train(resume_from_checkpoint=resume)
    hook.remove()
    return trainer, passes


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_the_same_seed_gives_the_same_batches_with_any_number_of_workers(tmp_path):
    alone = trained(tmp_path / "0")[0].seen
    assert len(alone) == 10
    assert same(alone, trained(tmp_path / "1")[0].seen)
    assert same(alone, trained(tmp_path / "2", workers=2)[0].seen)
    persistent = trained(tmp_path / "3", workers=1, dataloader_persistent_workers=True)[0].seen
    assert same(alone, persistent), "workers that live on see the new epoch"
    assert not same(alone, trained(tmp_path / "4", seed=1)[0].seen)


def test_epochs_differ_and_both_passes_see_the_same_images(tmp_path):
    one = colour_images((2, 1, 1))  # one batch an epoch, in the same order
    trainer, passes = trained(tmp_path, data=one, train_sampling_strategy="sequential", sharpness="sam")
    first, second = trainer.seen
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert same(passes, [first, first, second, second])


def test_a_resumed_training_sees_what_it_would_have_seen(tmp_path):
    whole, _ = trained(tmp_path / "whole")
    saving = {"save_strategy": "steps", "save_steps": 7}
    trained(tmp_path / "part", epochs=7, **saving)
    rest, _ = trained(tmp_path / "part", resume=True, **saving)
    assert same(rest.seen, whole.seen[7:])
    assert_same_bits(weights_of(rest.model), weights_of(whole.model))


def test_only_training_sees_augmented_images(tmp_path):
    data = colour_images()
    options = {"head_init": "class_mean", "head_examples": 3, "rho_schedule": "learned", "rho_update_every": 1}
    seen = []
    call = ToPixels.__call__

    def recorded(self, batch):
        pixels = call(self, batch)
        seen.append((self.change is not None, len(pixels["pixel_values"])))
        return pixels

    ToPixels.__call__ = recorded
    try:
        trainer, _ = trained(tmp_path, data=data, **options)
        draws = sum(number for changed, number in seen if changed)
        assert draws == 2 * len(trainer.train_dataset), "each example once an epoch"
        assert any(not changed for changed, _ in seen), "class means and held-out examples"
        seen.clear()
        trainer.predict(trainer.train_dataset)
        assert not any(changed for changed, _ in seen)
    finally:
        ToPixels.__call__ = call


def test_class_means_are_those_of_plain_images(tmp_path):
    heads = []
    for augmented in (True, False):
        processor, columns, data = ViTImageProcessorPil(size={"height": 8, "width": 8}), TrainImageArguments(), None
        data = colour_images().with_transform(ToPixels(processor, columns, "label"))
        change = ToPixels(processor, columns, "label", ImageAugmentation("crop_flip", (8, 8)))
        args = SharpTrainingArguments(
            str(tmp_path), head_init="class_mean", head_scale=1.0, **(OPTIONS | {"learning_rate": 0.0, "max_steps": 1})
        )
        model = make_vit(num_labels=3, num_channels=3)
        SharpTrainer(model, args, train_dataset=data, train_transform=change if augmented else None).train()
        heads.append(weights_of(model))
    assert_same_bits(*heads)


def rank_batches(out):
    return trained(out)[0].seen


def test_processes_draw_numbers_of_their_own(tmp_path):
    first, second = run_processes(rank_batches, tmp_path, folder=tmp_path)
    assert len(first) == len(second) == 6
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_transform_of_something_else_is_refused(tmp_path):
    args = SharpTrainingArguments(str(tmp_path), use_cpu=True)
    rows = [{"pixel_values": torch.zeros(3, 8, 8), "label": 0}]
    with pytest.raises(ValueError, match=r"train_transform needs a datasets.Dataset as train_dataset, got list"):
        SharpTrainer(make_vit(), args, train_dataset=rows, train_transform=dict)


# ---- the recipe ----


def recipe(folder, out, *flags):
    argv = ["--dataset", folder, "--model_config", TINY_VIT, "--output_dir", str(out), *QUICK]
    return train_images([*argv, "--sharpness", "none", *flags])


def test_colour_images_are_augmented_and_it_is_said(colour_folder, image_folder, tmp_path, caplog):
    (results,) = recipe(colour_folder, tmp_path / "colour_out").values()
    assert results["data"] == {"augmentation": "crop_flip"}
    assert (
        "Augmentation of training images: crop_flip, because the images are in colour, with at least 32" in caplog.text
    )
    assert "--augment none turns it off" in caplog.text
    assert "| augmentation | `crop_flip` |" in (tmp_path / "colour_out" / "README.md").read_text()
    (grey,) = recipe(image_folder, tmp_path / "grey_out").values()
    assert grey["data"] == {"augmentation": "none"}
    assert "Augmentation of training images: none, because the images have fewer than 32 pixels" in caplog.text


def test_augmentation_changes_the_training_and_can_be_turned_off(colour_folder, tmp_path):
    losses = {}
    for name in ("auto", "crop_flip", "none"):
        (results,) = recipe(colour_folder, tmp_path / name, "--augment", name).values()
        losses[name] = results["training"]["train_loss"]
    assert losses["auto"] == losses["crop_flip"] != losses["none"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--augment", "mixup"], "mixes the labels of two examples"),
        (["--augment", "crop"], "unknown augment 'crop'"),
        (["--tta", "flip"], "unknown tta 'flip'"),
    ],
)
def test_other_names_are_refused_before_anything_is_read(flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        recipe(str(tmp_path / "nowhere"), tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


def test_the_report_is_of_the_mean_of_the_views_and_says_so(colour_folder, tmp_path, capsys):
    out = tmp_path / "out"
    (results,) = recipe(colour_folder, out, "--tta", "five_crop", "--learning_rate", "0.1").values()
    (plain,) = recipe(colour_folder, tmp_path / "plain", "--learning_rate", "0.1").values()
    assert "test images in 5 views" in " ".join(capsys.readouterr().out.split())  # it may be folded
    one = {name: plain["report"][name] for name in ("accuracy", "balanced_accuracy")}
    assert results["tta"] == {"name": "five_crop", "views": 5, "one_view": one}
    assert "tta" not in plain
    card = (out / "README.md").read_text()
    assert "the mean of the logits of 5 views of each image (`five_crop`)" in card
    assert f"the accuracy is {100 * one['accuracy']:.1f} %" in card
    assert "Test-time augmentation" not in (tmp_path / "plain" / "README.md").read_text()
    # hf-sharp evaluate takes the option over from the training, and finds the same.
    assert cli.main(["evaluate", str(out), "--output_dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again.pop("tta") == "five_crop"
    assert again["per_class_recall"] == results["report"]["per_class_recall"]
    assert again["calibration_error"] == pytest.approx(results["report"]["calibration_error"], abs=1e-5)
    assert again["calibration_error"] != pytest.approx(plain["report"]["calibration_error"], abs=1e-5)


def test_views_of_texts_are_refused(bert_folder, tmp_path):
    splits = {"train": [20, 8], "test": [3, 3]}
    data = {
        split: datasets.Dataset.from_dict({"text": ["w1 w2"] * sum(n), "label": [0] * n[0] + [1] * n[1]})
        for split, n in splits.items()
    }
    datasets.DatasetDict(data).save_to_disk(str(tmp_path / "two"))
    said = cli.main(["evaluate", bert_folder, str(tmp_path / "two"), "--tta", "five_crop"])
    assert "tta='five_crop' is for images" in str(said)


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        (ViTImageProcessorPil(size={"height": 12, "width": 20}), (12, 20)),
        (CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}), (28, 28)),
        (ConvNextImageProcessorPil(size={"shortest_edge": 28}, crop_pct=0.875), (28, 28)),
    ],
    ids=["vit", "clip", "convnext"],
)
def test_crops_have_the_size_that_the_model_takes(processor, size):
    assert input_size(processor) == size
    data, columns = colour_images().train_test_split(0.3, seed=0), TrainImageArguments(tta="ten_crop")
    prepared = prepare_images(data, processor, columns, "label")
    args = SharpTrainingArguments("unused", use_cpu=True)
    extras = image_extras(prepared, processor, columns, args)
    assert len(extras.views) == 10
    for rows in (data["train"].with_transform(extras.make_transform(args)), *extras.views):
        assert rows[:2]["pixel_values"].shape == (2, 3, *size)


def test_a_processor_without_a_fixed_size_is_refused_or_left_alone():
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(ValueError, match="makes images of several sizes"):
        input_size(processor)
    data, columns = colour_images().train_test_split(0.3, seed=0), TrainImageArguments()
    extras = image_extras(data, processor, columns, SharpTrainingArguments("unused", use_cpu=True))
    assert extras.record == {"augmentation": "none"}
    with pytest.raises(ValueError, match="several sizes"):
        views_of(data["test"], processor, columns, "label", "five_crop")


def test_predictions_are_averaged_before_the_softmax():
    class Prediction:
        def __init__(self, logits):
            self.predictions, self.label_ids = (np.array(logits, np.float32),), np.array([0, 1])

    mean = mean_prediction([Prediction([[3, 0], [0, 1]]), Prediction([[-1, 0], [0, 3]])])
    np.testing.assert_array_equal(mean.predictions, [[1, 0], [0, 2]])
    assert report_of_prediction(mean, ClassFrequencies.from_counts([3, 2]))["accuracy"] == 1
    other = Prediction([[0, 0], [0, 0]])
    other.label_ids = np.array([1, 0])
    with pytest.raises(ValueError, match="of different examples"):
        mean_prediction([Prediction([[0, 0], [0, 0]]), other])
    with pytest.raises(ValueError, match="no predictions"):
        mean_prediction([])
