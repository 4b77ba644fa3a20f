"""Options are checked when the trainer is made and at every trial, and the metrics are known before training."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from transformers.trainer_utils import HPSearchBackend

from hf_sharp import SharpTrainer
from tests.conftest import CLASS_COUNTS, make_images, make_vit

BEST = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
BEST |= {"load_best_model_at_end": True, "sharpness": "none"}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("rho", -0.5, "rho must be a finite number >= 0, got -0.5"),
        ("rho", float("nan"), "rho must be a finite number >= 0, got nan"),
        ("loss", "focall", "unknown loss 'focall'"),
        ("sharpness", "sams", "unknown sharpness 'sams'"),
        ("sampler", "balanced", "unknown sampler 'balanced'"),
        ("loss_tau", 2.0, "loss_tau=2.0 has no effect with loss='cross_entropy'"),
        ("ascent_fraction", 0.0, "ascent_fraction must be a number > 0 and <= 1"),
        ("reweight_after", 1.5, "reweight_after must be a number > 0 and < 1"),
        ("label_smoothing_factor", 0.1, "label_smoothing_factor=0.1 is not supported"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size must be an integer >= 1, got 0"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps must be an integer >= 1, got 0"),
        ("learning_rate", -1.0, "learning_rate must be a finite number >= 0, got -1.0"),
        ("class_importance", '{"class 9": 2}', "class_importance has the class 'class 9'"),
    ],
)
def test_options_that_were_changed_afterwards(option, value, message, make_trainer):
    trainer = make_trainer(max_steps=1)
    args = trainer.args
    setattr(args, option, value)
    with pytest.raises(ValueError, match=message):
        type(trainer)(model=make_vit(), args=args, train_dataset=make_images())


@pytest.mark.parametrize(("option", "value"), [("rho", -0.5), ("loss", "focall"), ("rho_schedule", "step")])
def test_options_that_were_changed_on_the_trainer(option, value, make_trainer):
    trainer = make_trainer(max_steps=1)
    setattr(trainer.args, option, value)
    with pytest.raises(ValueError, match="rho_steps must map" if value == "step" else option):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_loss_that_was_changed_on_the_trainer_takes_effect(make_trainer):
    trainer = make_trainer(max_steps=2)
    trainer.args.loss, trainer.args.rho = "focal", 0.5
    trainer.train()
    assert trainer.class_loss.name == "focal"
    assert trainer.rho == 0.5
    assert trainer.method_state.method["loss"] == "focal"


def test_thresholds_and_costs_that_were_changed_on_the_trainer_take_effect(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1, eval_dataset=make_images(), sharpness="imbsam")
    before = trainer.evaluate()
    assert "eval_expected_cost" not in before
    trainer.args.rare_threshold, trainer.args.common_threshold = "30", 30
    trainer.args.cost_matrix = {"class 0": 7}
    after = trainer.evaluate()
    assert (before["eval_few_classes"], after["eval_few_classes"]) == (2, 3)
    assert "eval_expected_cost" in after
    assert trainer.class_frequencies.rare_threshold == 30
    trainer.args.rare_threshold = 5
    trainer.train()
    assert trainer.method_state.method["rare_threshold"] == 5
    assert trainer.predict(make_images()).metrics["test_few_classes"] == 1
    costs = tmp_path / "costs.csv"
    costs.write_text("class,cost\nclass 0,3\nclass 1,1\nclass 2,1\nclass 3,1\n")
    trainer.args.cost_matrix = str(costs)
    trainer.evaluate()
    costs.unlink()
    trainer.evaluate()
    assert trainer.cost_matrix[0].tolist() == [0, 3, 3, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cost_matrix": {"nope": 2}}, "cost_matrix has the class 'nope'"),
        ({"rare_threshold": 500}, "expected rare_threshold <= common_threshold"),
        ({"common_threshold": -1}, "common_threshold must be a finite number >= 0"),
        ({"label_column": "fine"}, "label_column was changed from 'label' to 'fine'.*Make a new SharpTrainer"),
        ({"rho_validation_fraction": 0.2}, "rho_validation_fraction was changed from 0.1 to 0.2"),
        ({"cosine_scale": 30.0}, "cosine_scale was changed from 25.0 to 30.0"),
        ({"cosine_head": False}, "cosine_head was changed from True to False"),
    ],
    ids=str,
)
def test_changes_on_the_trainer_that_are_wrong_or_too_late(changes, message, make_trainer):
    trainer = make_trainer(max_steps=1, eval_dataset=make_images(), cosine_head="cosine" in message)
    vars(trainer.args).update(changes)
    for use in (trainer.train, trainer.evaluate, lambda: trainer.predict(make_images())):
        with pytest.raises(ValueError, match=message):
            use()
    assert trainer.state.global_step == 0


def test_a_head_that_is_named_later_is_looked_for(make_trainer):
    trainer = make_trainer(sharpness="cc_sam", max_steps=1)
    trainer.args.head = "nowhere"
    with pytest.raises(ValueError, match="nowhere"):
        trainer.train()


def searching(make_trainer):
    args = make_trainer(max_steps=1).args
    trainer = SharpTrainer(model_init=lambda: make_vit(), args=args, train_dataset=make_images())
    trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: trial.params
    return trainer


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        ({"loss": "focall"}, "unknown loss 'focall'"),
        ({"rho": -0.5}, "rho must be a finite number >= 0"),
        ({"loss": "ldam"}, "needs cosine logits"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be an integer >= 1"),
        ({"sampler": "weighted"}, "unknown sampler 'weighted'"),
        ({"reweight_after": 0.5, "loss": "class_balanced"}, "would weight the classes twice"),
    ],
    ids=str,
)
def test_the_options_of_a_trial(trial, message, make_trainer):
    trainer = searching(make_trainer)
    with pytest.raises(ValueError, match=message):
        trainer.train(trial=SimpleNamespace(params=trial, number=0))
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("trial", [{"loss": "focal", "rho": 0.01}, {"sharpness": "none", "rho": 0.1}], ids=str)
def test_a_trial_that_fits_trains_also_with_options_that_its_method_does_not_use(trial, make_trainer, monkeypatch):
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)  # Optuna is not here
    trainer = searching(make_trainer)
    trainer.train(trial=SimpleNamespace(params=trial, number=0))
    assert trainer.class_loss.name == trial.get("loss", "cross_entropy")
    assert trainer.args.rho == trial["rho"]
    assert trainer.state.global_step == 1


# ---- metrics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["f1", "eval_f1", "acuracy", "many_accuracy", "first_accuracy", "test_loss"])
def test_a_metric_that_no_evaluation_reports(metric, make_trainer):
    with pytest.raises(ValueError, match=rf"metric_for_best_model='{metric}' is not reported.*macro_f1"):
        make_trainer(eval_dataset=make_images(), metric_for_best_model=metric, **BEST)


@pytest.mark.parametrize(
    "metric", ["macro_f1", "eval_few_accuracy", "loss", "calibration_error", "worst_class_recall", "g_mean", "runtime"]
)
def test_a_metric_that_is_reported_is_found(metric, make_trainer):
    trainer = make_trainer(eval_dataset=make_images(), metric_for_best_model=metric, **BEST)
    trainer.train()
    assert trainer.state.best_metric is not None


def test_a_group_without_examples_in_the_evaluation_set_has_no_metric(make_trainer):
    frequent = make_images([c if c > 20 else 0 for c in CLASS_COUNTS])
    with pytest.raises(ValueError, match="'few_accuracy' is not reported"):
        make_trainer(eval_dataset=frequent, metric_for_best_model="few_accuracy", **BEST)


def test_an_evaluation_set_without_labels_or_examples(make_trainer, caplog):
    unlabelled = make_images().rename_column("label", "labels")
    with pytest.raises(ValueError, match="metric_for_best_model='balanced_accuracy' is not reported"):
        make_trainer(eval_dataset=unlabelled, **BEST)
    assert "evaluated without labels: there is no label column 'label'; the columns are" in caplog.text
    with pytest.raises(ValueError, match="the evaluation set 'second' is empty"):
        make_trainer(eval_dataset={"first": make_images(), "second": make_images().select([])})


@pytest.mark.parametrize("kind", [dict, datasets.DatasetDict])
def test_two_evaluation_sets_with_the_default_metric_use_the_mean(kind, make_trainer):
    sets = kind({"first": make_images(seed=2), "second": make_images([5, 5, 5, 5], seed=3)})
    trainer = make_trainer(eval_dataset=sets, **BEST)
    trainer.train()
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items() if "balanced" in name}
    means = [
        entry["eval_balanced_accuracy"] for entry in trainer.state.log_history if "eval_balanced_accuracy" in entry
    ]
    assert trainer.state.best_metric == max(means)
    assert logged["eval_balanced_accuracy"] == pytest.approx(
        (logged["eval_first_balanced_accuracy"] + logged["eval_second_balanced_accuracy"]) / 2
    )


@pytest.mark.parametrize("metric", ["second_few_accuracy", "eval_first_balanced_accuracy", "loss"])
def test_two_evaluation_sets_with_a_metric_of_one(metric, make_trainer):
    sets = {"first": make_images(seed=2), "second": make_images(seed=3)}
    trainer = make_trainer(eval_dataset=sets, metric_for_best_model=metric, **BEST)
    trainer.train()
    assert trainer.state.best_metric is not None


def test_two_evaluation_sets_and_metrics_of_ones_own_take_the_mean_loss(make_trainer):
    sets = {"first": make_images(seed=2), "second": make_images(seed=3)}
    own = {"compute_metrics": lambda prediction: {"mine": 1.0}}
    trainer = make_trainer(eval_dataset=sets, trainer=own, **BEST)
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == min(losses)


def test_a_calibration_error_is_the_better_the_lower(make_trainer):
    trainer = make_trainer(eval_dataset=make_images(), metric_for_best_model="calibration_error", **BEST)
    assert trainer.args.greater_is_better is False


# ---- metrics of one's own ------------------------------------------------------------------------------------------

OWN = {
    "always": lambda prediction: {"acc": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())},
    "prefixed": lambda prediction: {"eval_acc": 1.0, "eval_recall": 0.5},
    "nothing": lambda prediction: {},
}


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("sets", [1, 2])
def test_metrics_of_ones_own_that_lack_the_best_are_found_before_training(own, sets, make_trainer):
    data = make_images() if sets == 1 else {"first": make_images(), "second": make_images()}
    options = {"trainer": {"compute_metrics": OWN[own]}, "metric_for_best_model": "f1"}
    with pytest.raises(
        ValueError, match=r"'f1' is not among the metrics.*loss.*let your compute_metrics return \{'f1'"
    ):
        make_trainer(eval_dataset=data, **options, **BEST)


@pytest.mark.parametrize("metric", ["acc", "eval_acc", "loss", "runtime"])
def test_metrics_of_ones_own_that_have_the_best(metric, make_trainer):
    own = {"compute_metrics": OWN["always"]}
    trainer = make_trainer(eval_dataset=make_images(), trainer=own, metric_for_best_model=metric, **BEST)
    trainer.train()
    assert trainer.state.best_metric is not None


def test_trying_metrics_of_ones_own_draws_no_random_numbers(make_trainer):
    def drawing(prediction):
        return {"acc": float(np.random.rand())}

    options = {"trainer": {"compute_metrics": drawing}, "metric_for_best_model": "acc"} | BEST
    make_trainer(eval_dataset=make_images())
    plain = np.random.rand()
    make_trainer(eval_dataset=make_images(), **options)
    assert np.random.rand() == plain


def only_real(prediction):
    """Metrics that cannot be computed for made-up predictions."""
    if len(prediction.predictions) < 10:
        raise ZeroDivisionError
    return {"acc": 1.0}


class InBatches:
    """Metrics that are gathered batch by batch."""

    def __call__(self, prediction, compute_result):
        return {"acc": 1.0}


@pytest.mark.parametrize(
    "more",
    [{}, {"lr_scheduler_type": "reduce_lr_on_plateau"}, {"load_best_model_at_end": False}, {"eval_on_start": True}],
)
def test_a_best_metric_that_the_first_evaluation_lacks_stops_there_and_loses_nothing(more, make_trainer, tmp_path):
    options = BEST | {"save_steps": 4, "max_steps": 6} | more
    options |= {"trainer": {"compute_metrics": only_real}, "metric_for_best_model": "f1"}
    trainer = make_trainer(eval_dataset=make_images(), **options)
    with pytest.raises(ValueError, match=r"'f1' is not among the metrics of the evaluation: acc, loss\.") as raised:
        trainer.train()
    assert trainer.state.global_step == (0 if "eval_on_start" in more else 2)
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert (str(checkpoint.parent) in str(raised.value)) == checkpoint.is_dir() == ("eval_on_start" not in more)
    if checkpoint.is_dir():
        again = make_trainer(eval_dataset=make_images(), **options | {"metric_for_best_model": "acc"})
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 6


def test_metrics_that_are_gathered_in_batches_are_not_tried(make_trainer):
    options = {"trainer": {"compute_metrics": InBatches()}, "metric_for_best_model": "f1", "batch_eval_metrics": True}
    trainer = make_trainer(eval_dataset=make_images(), **options, **BEST)
    with pytest.raises(ValueError, match="'f1' is not among the metrics of the evaluation: acc, loss"):
        trainer.train()
