"""Training scripts written for Trainer: overrides, optimizers, models and options that are the user's own."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_sharp import ClassFrequencies, SharpTrainer, SharpTrainingArguments
from hf_sharp.losses import ClassFrequencyLoss
from tests.conftest import ARGUMENTS, CLASS_COUNTS, make_images, make_vit


class Linear(nn.Module):
    """A model whose forward() takes no further arguments, so that Trainer divides losses by the accumulation steps."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 4)

    def forward(self, pixel_values):
        return {"logits": self.head(pixel_values.flatten(1))}


class OwnLoss:
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = nn.functional.cross_entropy(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class OwnTrainer(OwnLoss, Trainer):
    pass


class OwnSharpTrainer(OwnLoss, SharpTrainer):
    pass


class Gradients(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]).clone())


def test_an_override_of_compute_loss_accumulates_as_in_trainer(tmp_path):
    options = {k: v for k, v in ARGUMENTS.items() if k not in ("sharpness", "loss")}
    options |= {"gradient_accumulation_steps": 4, "max_grad_norm": 0.0, "max_steps": 2}
    plain = {"args": TrainingArguments(str(tmp_path), **options, label_names=["labels"])}
    data, gradients = make_images().rename_column("label", "labels"), []
    for kind, given in ((OwnTrainer, plain), (OwnSharpTrainer, {"args": SharpTrainingArguments(tmp_path, **options)})):
        set_seed(0)
        gradients.append(Gradients())
        given["args"].remove_unused_columns = False
        kind(model=Linear(), train_dataset=data, callbacks=[gradients[-1]], **given).train()
    torch.testing.assert_close(gradients[0].seen, gradients[1].seen)


def test_a_subclass_says_itself_how_its_loss_is_scaled(make_trainer):
    class Mean(OwnSharpTrainer):
        loss_is_scaled_for_ga = False

    assert make_trainer(trainer_class=Mean, sharpness="none").loss_is_scaled_for_ga is False
    assert make_trainer(sharpness="none").loss_is_scaled_for_ga is True


def test_an_optimizer_made_before_the_trainer_trains_the_cosine_head(make_trainer):
    model = make_vit()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = make_trainer(model, sharpness="none", cosine_head=True, trainer={"optimizers": (optimizer, None)})
    before = model.classifier.weight.detach().clone()
    trainer.train()
    assert (model.classifier.weight != before).all()


class WithoutMoment(SharpTrainer):
    def create_optimizer(self, *args, **kwargs):
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        return self.optimizer


class WithProjectedMoment(SharpTrainer):
    def create_optimizer(self, *args, **kwargs):
        groups = [{"params": list(self.model.parameters()), "rank": 4}]  # as GaLore's
        self.optimizer = torch.optim.AdamW(groups)
        return self.optimizer


@pytest.mark.parametrize(("kind", "name"), [(WithoutMoment, "SGD"), (WithProjectedMoment, "AdamW")])
def test_an_optimizer_without_first_moment_is_found_before_the_first_step(make_trainer, kind, name):
    trainer = make_trainer(trainer_class=kind, ascent="momentum", sharpness_after=0.5)
    said = f"needs the optimizer's first moment, and {name} keeps none with these options"
    with pytest.raises(ValueError, match=said):
        trainer.train()
    assert trainer.state.global_step == 0


def test_arguments_of_two_trainers_have_the_best_metric_of_each(make_trainer, tmp_path):
    steps = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    args = SharpTrainingArguments(**ARGUMENTS | steps | {"output_dir": str(tmp_path)})
    given = {"model": make_vit(), "args": args, "train_dataset": make_images(), "eval_dataset": make_images(seed=5)}
    for own, expected in (({"compute_metrics": lambda p: {"own": 1.0}}, ("loss", False)), ({}, None)) * 2:
        SharpTrainer(**given, **own)
        assert (args.metric_for_best_model, args.greater_is_better) == (expected or ("balanced_accuracy", True))


class Scaled(ClassFrequencyLoss):
    name = "scaled"

    def __init__(self, class_counts, factor=1.0):
        super().__init__(class_counts, factor=factor)


@pytest.mark.parametrize("factor", [np.float32(0.5), np.int64(2), torch.tensor(0.5)])
def test_options_that_are_arrays_are_saved(make_trainer, tmp_path, factor):
    trainer = make_trainer(
        sharpness="none",
        class_importance=np.ones(4, np.float32),
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
        report_to="tensorboard",
        trainer={"class_loss": Scaled(CLASS_COUNTS, factor=factor)},
    )
    trainer.train()
    assert (tmp_path / "out" / "checkpoint-1" / "trainer_state.json").is_file()
    assert type(trainer.class_loss.config["factor"]) in (int, float)


def test_a_test_set_whose_labels_are_all_ignored_is_predicted(make_trainer):
    rows = [{"pixel_values": torch.randn(1, 8, 8), "label": -100} for _ in range(3)]
    output = make_trainer().predict(rows)
    assert output.predictions.shape == (3, 4)
    assert "test_balanced_accuracy" not in output.metrics


def test_a_model_may_return_a_list(make_trainer):
    class Listed(Linear):
        def forward(self, pixel_values):
            return [Linear.forward(self, pixel_values)["logits"]]

    trainer = make_trainer(Listed(), eval_dataset=make_images(seed=5))
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0


class NeedsLabels(Linear):
    def forward(self, pixel_values, labels):
        logits = super().forward(pixel_values)["logits"]
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class CallsWithLabels(SharpTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


def test_a_model_that_requires_labels_is_told_that_it_gets_none(make_trainer):
    with pytest.raises(
        ValueError, match=r"NeedsLabels.forward\(\) requires labels, but SharpTrainer computes the loss"
    ):
        make_trainer(NeedsLabels())
    make_trainer(NeedsLabels(), trainer_class=CallsWithLabels, sharpness="none", max_steps=1).train()


class Stream(torch.utils.data.IterableDataset):
    """A stream that knows its length."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)


def test_a_stream_with_a_length_is_trained_by_epochs(make_trainer):
    rows = Stream(list(make_images()))
    options = {"max_steps": -1, "num_train_epochs": 1, "eval_dataset": rows}
    trainer = make_trainer(Linear(), rows, trainer={"class_frequencies": CLASS_COUNTS}, **options)
    assert trainer.train().global_step == 10
    assert trainer.evaluate()["eval_accuracy"] > 0
    assert ClassFrequencies.from_dataset(rows).counts.tolist() == CLASS_COUNTS
