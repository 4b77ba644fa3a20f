"""What scripts written for `Trainer` expect of a trainer that takes its place, found by reading both side by side."""

import dataclasses
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import Subset
from transformers import AutoTokenizer, DataCollatorWithPadding, TrainerCallback, default_data_collator

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.losses import ClassFrequencyLoss, build_loss
from hf_sharp.model.cosine_head import CosineHead
from hf_sharp.reports.results import records_of
from hf_sharp.trainer.choosing import mean_balanced_accuracy
from hf_sharp.trainer.head_start import cosine_head_of
from tests.conftest import ARGUMENTS, CLASS_COUNTS, make_bert, make_images, make_vit
from tests.recipes.conftest import bert_folder  # noqa: F401


def with_model_init(tmp_path, **options):
    args = SharpTrainingArguments(**(ARGUMENTS | {"output_dir": str(tmp_path / "out"), "max_steps": 1} | options))
    return SharpTrainer(
        model_init=lambda: make_vit(), args=args, train_dataset=make_images(), eval_dataset=make_images(seed=1)
    )


def lengths(trainer):
    return trainer.model.classifier.weight.norm(dim=1)


# ---- new models, in a search or in a second training -----------------------------------------------------------------


def test_every_new_model_starts_from_the_class_means(tmp_path, monkeypatch):
    started = []
    real = SharpTrainer._hp_search_setup
    monkeypatch.setattr(
        SharpTrainer,
        "_hp_search_setup",
        lambda self, trial: (real(self, trial), started.append(lengths(self).detach())),
    )
    trainer = with_model_init(tmp_path, head_init="class_mean")
    random = lengths(trainer).clone()
    trainer.train()
    trainer.train()
    assert torch.equal(started[0], started[1])
    assert not torch.allclose(started[0], random)
    trainer.args.head_init = "none"
    trainer.train()
    assert torch.allclose(started[2], random)


def test_a_trial_decides_on_the_head(tmp_path):
    trainer, kinds = with_model_init(tmp_path), []
    for wanted in (False, True, False, True):
        trainer.args.cosine_head = wanted
        trainer.train()
        kinds.append(isinstance(trainer.model.classifier, CosineHead))
    assert kinds == [False, True, False, True]
    rows = lengths(trainer)
    torch.testing.assert_close(rows, rows.mean().expand(len(rows)))


def test_a_cosine_head_that_was_asked_for_later_is_projected(make_trainer):
    trainer = make_trainer(max_steps=3, learning_rate=1e-1)
    trainer.args.cosine_head = True
    trainer.train()
    head = cosine_head_of(trainer.model)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.full((4,), head.weight.norm(dim=1)[0].item()))


def test_a_loss_of_ones_own_begins_anew_with_every_model(tmp_path):
    loss = build_loss("large_margin", CLASS_COUNTS, feature_dim=16)
    args = SharpTrainingArguments(
        **({k: v for k, v in ARGUMENTS.items() if k != "loss"} | {"max_steps": 2}), output_dir=str(tmp_path)
    )
    trainer = SharpTrainer(model_init=lambda: make_vit(), args=args, train_dataset=make_images(), class_loss=loss)
    trainer.train()
    moved = trainer.class_loss.centroids.clone()
    trainer.train()
    assert torch.equal(trainer.class_loss.centroids, moved), "the same training, and not its continuation"
    assert loss.centroids.isnan().all(), "the user's own object does not change"


# ---- losses ----------------------------------------------------------------------------------------------------------


class Counting(ClassFrequencyLoss):
    """Counts its calls in training, except for frozen copies."""

    def __init__(self, class_counts, calls=None):
        super().__init__(class_counts)
        self.calls = [] if calls is None else calls
        self.is_frozen = False

    def __deepcopy__(self, memo):
        return Counting(self.class_counts, self.calls)

    def forward(self, logits, labels):
        if not self.is_frozen and logits.requires_grad:
            self.calls.append(1)
        return super().forward(logits, labels)

    def frozen(self):
        still = Counting(self.class_counts, self.calls)
        still.is_frozen = True
        return still


@pytest.mark.parametrize("sharpness", ["none", "sam", "focal_sam"])
def test_a_frozen_loss_is_used_in_later_passes(make_trainer, sharpness):
    loss = Counting(CLASS_COUNTS)
    make_trainer(trainer={"class_loss": loss}, sharpness=sharpness, max_steps=4).train()
    assert len(loss.calls) == 4


class OwnLoss(SharpTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"})
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels)
        return (loss, outputs) if return_outputs else loss


class MoreLoss(SharpTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.parametrize(("kind", "named"), [(OwnLoss, "OwnLoss.compute_loss"), (MoreLoss, "logit_adjusted")])
def test_the_record_names_the_loss_that_was_used(make_trainer, kind, named):
    trainer = make_trainer(trainer_class=kind, sharpness="none", loss="logit_adjusted", max_steps=2)
    trainer.train()
    method = records_of(trainer)["method"]
    assert method["loss"] == named
    assert ("loss_tau" in method) == (named == "logit_adjusted")
    trainer.create_model_card()
    card = Path(trainer.args.output_dir, "README.md").read_text()
    assert ("Logit adjustment" in card) == (named == "logit_adjusted")


class Cosines(ClassFrequencyLoss):
    needs_cosine_logits = True


def test_a_cosine_loss_without_a_scale_gets_cosines(make_trainer):
    loss = Cosines(CLASS_COUNTS)
    trainer = make_trainer(trainer={"class_loss": loss}, sharpness="none", cosine_head=True, max_steps=2)
    trainer.train()
    with torch.no_grad():
        logits = trainer.model(
            pixel_values=torch.stack([row["pixel_values"] for row in make_images().with_format("torch")])
        ).logits
    assert logits.abs().max() <= 1 + 1e-3


# ---- data ------------------------------------------------------------------------------------------------------------


def test_the_tokenizer_of_a_collator_is_saved(bert_folder, tmp_path):  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    data = datasets.Dataset.from_dict({"input_ids": [[2, 5, 3], [2, 6, 7, 3]] * 4, "label": [0, 1, 2, 3] * 2})
    args = SharpTrainingArguments(**(ARGUMENTS | {"output_dir": str(tmp_path / "out")}))
    trainer = SharpTrainer(make_bert(), args, DataCollatorWithPadding(tokenizer), data)
    trainer.save_model()
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.int32])
@pytest.mark.parametrize("options", [{"sharpness": "focal_sam"}, {"sharpness": "none", "reweight_after": 0.5}])
def test_labels_of_any_integer_type(make_trainer, dtype, options):
    def collate(examples):
        batch = default_data_collator(examples)
        return batch | {"labels": batch["labels"].to(dtype)}

    make_trainer(trainer={"data_collator": collate}, max_steps=2, **options).train()


@pytest.mark.parametrize("sharpness", ["none", "sam"])
def test_labels_that_are_no_classes(make_trainer, sharpness):
    def collate(examples):
        batch = default_data_collator(examples)
        return batch | {"labels": batch["labels"].float()}

    with pytest.raises(ValueError, match=r"expected a class index per example as labels, got .* torch.float32"):
        make_trainer(trainer={"data_collator": collate}, sharpness=sharpness).train()


def test_a_transform_for_training_that_reads_a_removed_column(make_trainer):
    data = make_images().add_column("path", ["a"] * len(make_images()))

    def transform(rows):
        return {"pixel_values": rows["pixel_values"], "label": rows["label"], "n": [len(path) for path in rows["path"]]}

    with pytest.raises(ValueError, match="remove_unused_columns"):
        make_trainer(train_dataset=data, trainer={"train_transform": transform})


def test_a_sampler_over_a_subset_transforms_no_row(make_trainer):
    seen = []

    def transform(rows):
        seen.append(len(rows["label"]))
        return rows

    data = make_images().with_transform(transform)
    trainer = make_trainer(train_dataset=Subset(data, range(20)), sampler="class_balanced", remove_unused_columns=False)
    seen.clear()
    trainer._get_train_sampler()
    assert not seen


def test_one_arguments_object_for_labels_of_both_names(make_trainer):
    first = make_trainer(train_dataset=make_images().rename_column("label", "labels"))
    assert first.args.label_column == "labels"
    SharpTrainer(make_vit(), first.args, train_dataset=make_images())


# ---- options ---------------------------------------------------------------------------------------------------------


def test_a_set_called_balanced_is_refused(make_trainer):
    sets = {"balanced": make_images(seed=1), "natural": make_images(seed=2)}
    with pytest.raises(ValueError, match=r"an evaluation set is called 'balanced'.*Rename the set"):
        make_trainer(eval_dataset=sets)
    with pytest.raises(ValueError, match="an evaluation set is called 'balanced'"):
        make_trainer().evaluate(sets)


def test_other_label_names_are_refused(make_trainer):
    with pytest.raises(ValueError, match=r"label_names=\['labels', 'group'\] is not supported"):
        make_trainer(label_names=["labels", "group"])
    assert make_trainer(label_names=["labels"]).label_names == ["labels"]


PLATEAU = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch", "save_strategy": "epoch"}
PLATEAU |= {"load_best_model_at_end": True, "report_to": "none"}


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "max"),
        ({"metric_for_best_model": "balanced_accuracy"}, "max"),
        ({"metric_for_best_model": "loss"}, None),
        ({"metric_for_best_model": "few_accuracy", "lr_scheduler_kwargs": {"patience": 3}}, "max"),
        ({"lr_scheduler_kwargs": {"mode": "min"}}, "min"),
    ],
)
def test_the_schedule_follows_the_metric_in_its_direction(make_trainer, options, mode):
    args = make_trainer(eval_dataset=make_images(seed=1), **PLATEAU, **options).args
    assert (args.lr_scheduler_kwargs or {}).get("mode") == mode
    assert (args.lr_scheduler_kwargs or {}).get("patience") == options.get("lr_scheduler_kwargs", {}).get("patience")


def test_a_default_metric_stays_one_in_copies_and_in_a_second_trainer(make_trainer, tmp_path):
    args = make_trainer(eval_dataset=make_images(seed=1), **PLATEAU).args
    own = {"compute_metrics": lambda prediction: {"acc": 0.5}, "train_dataset": make_images()}
    for again in (args, dataclasses.replace(args, seed=1)):
        second = SharpTrainer(make_vit(), again, eval_dataset=make_images(seed=1), **own).args
        assert (second.metric_for_best_model, second.greater_is_better) == ("loss", False)
        assert "mode" not in (second.lr_scheduler_kwargs or {})


@pytest.mark.parametrize("value", [{1}, object()])
def test_options_that_no_checkpoint_can_hold(value):
    with pytest.raises(ValueError, match="loss_options must be JSON, to be saved with checkpoints"):
        SharpTrainingArguments("out", loss="cross_entropy", loss_options={"which": value})


def test_an_infinite_threshold():
    with pytest.raises(ValueError, match="rare_threshold must be an integer, got inf"):
        SharpTrainingArguments("out", rare_threshold=float("inf"))


def test_a_search_without_a_balanced_accuracy_says_so():
    with pytest.raises(ValueError, match="the evaluation reported only eval_loss, epoch"):
        mean_balanced_accuracy({"eval_loss": 1.0, "epoch": 1.0})


# ---- records and pushes ----------------------------------------------------------------------------------------------


def test_passes_count_from_the_attempt_that_trains(make_trainer):
    trainer = make_trainer(sharpness="sam", max_steps=2)
    trainer.callback_handler.callbacks.insert(0, TooLarge(trainer.record))
    trainer.train()
    assert trainer.record.passes == pytest.approx(2)


class TooLarge(TrainerCallback):
    """Stands for an attempt with batches that did not fit, before the one that trains."""

    def __init__(self, record):
        self.record = record

    def on_train_begin(self, args, state, control, **kwargs):
        self.record.forward = 1000


def test_the_loss_of_a_resumed_training_is_that_of_all_of_it(make_trainer):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "sharpness": "none"}
    make_trainer(**options).train()
    output = make_trainer(**options).train(
        resume_from_checkpoint=str(Path(make_trainer().args.output_dir, "checkpoint-2"))
    )
    assert output.training_loss == output.metrics["train_loss"]


def test_a_checkpoint_that_is_pushed_brings_the_models_code(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "modeling_own.py").write_text("own = True\n")
    monkeypatch.setattr("transformers.Trainer._push_from_checkpoint", lambda self, folder: None)
    trainer._push_from_checkpoint(str(checkpoint))
    assert (tmp_path / "out" / "modeling_own.py").read_text() == "own = True\n"


@pytest.mark.parametrize("across", [True, False])
def test_the_evaluation_loss_does_not_depend_on_the_number_of_processes(make_trainer, monkeypatch, across):
    trainer = make_trainer(average_tokens_across_devices=across)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    alone = trainer.compute_loss(trainer.model.eval(), dict(batch))
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    assert trainer.compute_loss(trainer.model, dict(batch)) == alone


def test_a_label_column_called_label_ids(make_trainer):
    rows = make_images().rename_column("label", "label_ids")
    trainer = make_trainer(make_vit(), rows, label_column="label_ids", max_steps=1)
    trainer.train()
    assert trainer.class_frequencies.counts.tolist() == [40, 22, 9, 3]
