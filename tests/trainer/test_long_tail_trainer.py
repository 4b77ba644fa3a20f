"""What the Trainer's users do with it beside training: search, choose the best, predict, copy, unfreeze."""

import copy
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoConfig, Trainer, TrainerCallback
from transformers.trainer_utils import HPSearchBackend

from hf_sharp import SharpTrainer
from hf_sharp.model.confidence import fold_temperature
from hf_sharp.model.posthoc import adjust_head
from hf_sharp.model.records import RECORD, TEMPERATURE
from tests.conftest import CLASS_COUNTS, NUM_CLASSES, assert_same_bits, make_images, make_vit, weights_of

STEPWISE = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.mark.parametrize(
    "options", [{"sharpness": "imbsam"}, {"focal_sampling": "stochastic", "sharpness": "focal_sam"}]
)
def test_worker_processes_send_the_labels_that_the_examples_have(make_trainer, options):
    trainer = make_trainer(dataloader_num_workers=2, max_steps=9, **options)
    divide, seen = trainer.engine.divide, []

    def watched(inputs, host_labels):
        seen.append((inputs["labels"].tolist(), host_labels.tolist()))
        return divide(inputs, host_labels)

    trainer.engine.divide = watched
    trainer.train()
    assert len(seen) == 9
    assert all(labels == host_labels for labels, host_labels in seen)


# ---- hyperparameter search -----------------------------------------------------------------------------------------


def searching(make_trainer, **options):
    trainer = make_trainer(loss="logit_adjusted", sharpness="focal_sam", **options)
    trainer = SharpTrainer(
        model_init=lambda: make_vit(), args=trainer.args, train_dataset=make_images(), eval_dataset=make_images(seed=5)
    )
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    return trainer


def test_a_trial_trains_with_its_own_options(make_trainer, monkeypatch):
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)  # Optuna is not here
    trainer = searching(make_trainer)
    for number, tau in enumerate([2.0, 0.5]):
        trainer.train(trial=SimpleNamespace(params={"loss_tau": tau, "focal_gamma": tau}, number=number))
        assert trainer.class_loss.options["loss_tau"] == tau
        expected = 0.8 * (1 - np.array(CLASS_COUNTS) / sum(CLASS_COUNTS)) ** tau
        np.testing.assert_allclose(trainer.engine.planner.host_coefficients, expected)


def test_a_trial_cannot_switch_on_a_learned_radius_without_validation_examples(make_trainer):
    with pytest.raises(ValueError, match="held out when the trainer is created"):
        searching(make_trainer).train(trial=SimpleNamespace(params={"rho_schedule": "learned"}, number=0))


def test_a_search_looks_for_the_highest_mean_balanced_accuracy_of_the_report(make_trainer, monkeypatch):
    asked = {}
    monkeypatch.setattr(Trainer, "hyperparameter_search", lambda self, *args, **kwargs: asked.update(kwargs))
    sets = {"a": make_images(seed=5), "b": make_images(seed=6)}
    trainer = make_trainer(eval_dataset=sets)
    trainer.hyperparameter_search()
    metrics = trainer.evaluate()
    both = [metrics["eval_a_balanced_accuracy"], metrics["eval_b_balanced_accuracy"]]
    assert asked["compute_objective"](metrics) == pytest.approx(np.mean(both))
    with pytest.raises(ValueError, match="lowest balanced accuracy"):
        trainer.hyperparameter_search(direction="minimize")
    asked.clear()
    make_trainer(trainer={"compute_metrics": lambda prediction: {"f1": 0.5}}).hyperparameter_search()
    assert not asked, "metrics of one's own are looked for as Trainer does"


# ---- the best model ------------------------------------------------------------------------------------------------


def test_a_schedule_that_waits_for_a_plateau_waits_for_one_of_the_balanced_accuracy(make_trainer):
    options = STEPWISE | {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 3}}
    trainer = make_trainer(eval_dataset=make_images(seed=5), load_best_model_at_end=True, **options)
    trainer.create_optimizer_and_scheduler(4)
    assert (trainer.lr_scheduler.mode, trainer.lr_scheduler.patience) == ("max", 3)
    trainer = make_trainer(eval_dataset=make_images(seed=5), **options)
    trainer.create_optimizer_and_scheduler(4)
    assert (trainer.args.metric_for_best_model, trainer.lr_scheduler.mode) == ("loss", "min")


@pytest.mark.parametrize("own_metrics", [True, False])
def test_without_a_report_the_best_model_is_the_one_with_the_lowest_loss(make_trainer, own_metrics):
    options = STEPWISE | {"load_best_model_at_end": True, "prediction_loss_only": not own_metrics}
    args = make_trainer(eval_dataset=make_images(seed=5), **options).args
    metrics = (None, None, lambda prediction: {"f1": 0.5}) if own_metrics else ()
    given = (make_vit(), args, None, make_images(), make_images(seed=5), None, *metrics)
    trainer = SharpTrainer(*given)
    trainer.train()
    assert trainer.state.best_metric == min(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)


# ---- evaluation and prediction -------------------------------------------------------------------------------------


def test_a_model_that_has_diverged_is_evaluated(make_trainer, caplog):
    trainer = make_trainer(eval_dataset=make_images(seed=5))
    trainer.model.classifier.bias.data[1] = float("nan")
    metrics = trainer.evaluate()
    assert metrics["eval_balanced_accuracy"] == 0.25
    assert "eval_calibration_error" not in metrics
    assert "not all finite" in caplog.text


def test_a_test_set_that_tells_no_labels_is_predicted(make_trainer):
    data = make_images(seed=5).cast_column("label", datasets.Value("int64"))
    unlabelled = data.remove_columns("label").add_column("label", [None] * len(data)).with_format("numpy")
    prediction = make_trainer().predict(unlabelled)
    assert prediction.predictions.shape == (len(data), 4)
    assert prediction.label_ids is None


def test_the_report_is_that_of_the_last_evaluation_whatever_is_predicted(make_trainer):
    data = make_images(seed=5)
    trainer = make_trainer(eval_dataset=data)
    trainer.evaluate()
    trainer.predict(data.select(range(4)))
    assert sum(trainer.report_keeper.report["per_class_support"]) == len(data)
    trainer.predict(data.select(range(4)))
    trainer.compute_metrics = None  # as of a set without labels
    trainer.evaluate()
    assert trainer.report_keeper.report is None


# ---- other habits --------------------------------------------------------------------------------------------------


class Unfreeze(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        for parameter in model.parameters():
            parameter.requires_grad_(state.global_step >= 3 or parameter.shape[0] == 4)


@pytest.mark.parametrize(
    "options",
    [
        {"sharpness_every": 2},
        {"rho_schedule": "learned", "rho_update_every": 1},
        {"ascent": "momentum"},
        {"ascent_scope": "window"},
    ],
    ids=str,
)
def test_layers_may_be_unfrozen_on_the_way(make_trainer, options):
    trainer = make_trainer(max_steps=8, rho=0.2, trainer={"callbacks": [Unfreeze()]}, **options)
    before = trainer.model.vit.embeddings.cls_token.clone()
    optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-2)
    trainer.optimizer = optimizer
    trainer.train()
    assert trainer.state.global_step == 8
    assert not torch.equal(trainer.model.vit.embeddings.cls_token, before)


def test_copies_of_the_arguments_keep_the_token_and_saved_ones_do_not(make_trainer, tmp_path):
    args = make_trainer(hub_token="hf_secret").args
    assert copy.copy(args).hub_token == copy.deepcopy(args).hub_token == "hf_secret"
    assert copy.deepcopy(args).to_dict() == args.to_dict()
    torch.save(args, tmp_path / "args.bin")
    assert b"hf_secret" not in (tmp_path / "args.bin").read_bytes()


def test_a_learned_radius_with_a_model_made_later_and_labels_that_are_names(make_trainer):
    data = make_images().cast_column("label", datasets.ClassLabel(names=["a", "b", "c", "d"])).with_format(None)
    names = [data.features["label"].int2str(label) for label in data["label"]]
    named = data.remove_columns("label").add_column("label", names).with_format("numpy")

    def model_init():
        model = make_vit()
        model.config.label2id = {name: i for i, name in enumerate("abcd")}
        model.config.id2label = dict(enumerate("abcd"))
        return model

    args = make_trainer(rho_schedule="learned").args
    trainer = SharpTrainer(model_init=model_init, args=args, train_dataset=named)
    trainer.train()
    assert len(trainer.rho_dataset) + len(trainer.train_dataset) == sum(CLASS_COUNTS)


def test_a_dict_of_splits_is_no_training_set(make_trainer):
    with pytest.raises(ValueError, match=r"dict of datasets \(train, test\)"):
        make_trainer(train_dataset=datasets.DatasetDict(train=make_images(), test=make_images()))


def test_labels_that_are_numpy_scalars(make_trainer):
    data = [{"pixel_values": row["pixel_values"], "label": np.array(int(row["label"]))} for row in make_images()]
    trainer = make_trainer(train_dataset=data)
    assert trainer.class_frequencies.counts.tolist() == CLASS_COUNTS
    trainer.train()


@pytest.mark.parametrize("scope", ["micro_batch", "window"])
def test_both_passes_are_about_the_centroids_that_the_first_one_found(make_trainer, scope):
    # Where ε is next to nothing, the losses at w and at w + ε are one, if they are about the same centroids.
    trainer = make_trainer(
        model=make_vit(dtype=torch.float64),
        train_dataset=make_images(dtype=np.float64),
        loss="large_margin",
        rho=1e-9,
        ascent_scope=scope,
        gradient_accumulation_steps=4,
        max_steps=3,
        logging_steps=1,
    )
    trainer.train()
    assert [log["sharpness"] for log in trainer.state.log_history[:3]] == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_expected_cost_is_reported_and_does_not_change_the_training(make_trainer):
    runs = {}
    for costs in (None, {"class 3": {"class 0": 7}}, '{"class 3": {"class 0": 7}}'):
        trainer = make_trainer(eval_dataset=make_images(seed=1), cost_matrix=costs, sharpness="none")
        trainer.train()
        runs[str(costs)] = trainer.evaluate(), weights_of(trainer.model), trainer.report_keeper.report
    (plain, before, _), (metrics, after, report), (as_json, *_) = runs.values()
    assert_same_bits(before, after)
    assert "eval_expected_cost" not in plain
    assert metrics["eval_expected_cost"] == as_json["eval_expected_cost"]
    confused = next(
        (c["count"] for c in report["confusions"] if (c["true"], c["predicted"]) == ("class 3", "class 0")), 0
    )
    wrong = 1 - metrics["eval_accuracy"]
    assert metrics["eval_expected_cost"] == pytest.approx(wrong + 6 * confused / sum(report["per_class_support"]))
    assert confused > 0, "the test needs this confusion"


def test_costs_of_unknown_classes_are_refused_before_training(make_trainer):
    with pytest.raises(ValueError, match=r"cost_matrix has the class 'class3', .* Did you mean 'class 3'"):
        make_trainer(cost_matrix={"class3": 7})


def test_a_training_forgets_what_was_done_to_the_head_before_it(make_trainer, tmp_path):
    """Costs that are not in the head any more would be taken out of its probabilities, and `adjust` would refuse it."""
    adjusted = fold_temperature(adjust_head(make_vit(), CLASS_COUNTS), 2.0, NUM_CLASSES)
    trainer = make_trainer(adjusted)
    trainer.train()
    trainer.save_model()
    config = AutoConfig.from_pretrained(tmp_path / "out").to_dict()
    assert not {RECORD, TEMPERATURE} & config.keys()
