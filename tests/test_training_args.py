from dataclasses import fields

import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_sharp import SharpTrainingArguments
from hf_sharp.losses import LOSSES
from hf_sharp.sharpness import METHODS


def args(tmp_path, **options):
    return SharpTrainingArguments(
        str(tmp_path), use_cpu=True, **{"sharpness": "sam", "loss": "cross_entropy"} | options
    )


def test_the_defaults_are_logit_adjustment_without_sharpness(tmp_path):
    """As README, `hf-sharp counts` and docs/choosing_a_method.md advise, by docs/evidence.md."""
    default = SharpTrainingArguments(str(tmp_path), use_cpu=True)
    assert (default.sharpness, default.loss, default.loss_tau) == ("none", "logit_adjusted", 1.0)


OURS = {item.name: item for item in fields(SharpTrainingArguments)}.keys() - {
    item.name for item in fields(TrainingArguments)
}


def test_the_filter_that_waits_for_the_device_is_on_with_float16_alone(tmp_path, monkeypatch):
    assert not args(tmp_path).logging_nan_inf_filter
    assert args(tmp_path, logging_nan_inf_filter=True).logging_nan_inf_filter
    assert args(tmp_path, fp16=True).logging_nan_inf_filter


def test_every_field_of_ours_has_help():
    ours = [item for item in fields(SharpTrainingArguments) if item.name in OURS]
    assert ours
    assert [item.name for item in ours if len(item.metadata.get("help", "")) < 20] == []


def test_fields_parse_from_the_command_line(tmp_path):
    (parsed,) = HfArgumentParser(SharpTrainingArguments).parse_args_into_dataclasses(
        [
            "--output_dir",
            str(tmp_path),
            "--use_cpu",
            "--sharpness",
            "focal_sam",
            "--rho",
            "0.1",
            "--adaptive",
            "--focal_gamma",
            "2",
        ]
    )
    assert (parsed.sharpness, parsed.rho, parsed.adaptive, parsed.focal_gamma) == ("focal_sam", 0.1, True, 2.0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sharpness", METHODS)
def test_every_method_goes_with_every_loss_at_defaults(tmp_path, sharpness, loss):
    parsed = args(tmp_path, sharpness=sharpness, loss=loss)
    assert set(parsed.method_arguments) | set(parsed.loss_arguments) <= OURS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpness": "smart"}, "unknown sharpness 'smart'; expected one of none, sam, imbsam, focal_sam"),
        ({"loss": "hinge"}, "unknown loss 'hinge'; expected one of cross_entropy, weighted, class_balanced"),
        (
            {"rho_schedule": "root"},
            "unknown rho_schedule 'root'; expected one of constant, linear, cosine, step",
        ),
        ({"rho_schedule": "step"}, "rho_steps must map fractions of training"),
        ({"rho_schedule": "step", "rho_steps": {"1.5": 0.1}}, "rho_steps must map fractions of training"),
        ({"rho_schedule": "step", "rho_steps": {"half": 0.1}}, "rho_steps must map fractions of training"),
        ({"rho_schedule": "step", "rho_steps": {"0.5": -0.1}}, "rho_steps must map fractions of training"),
        ({"rho_schedule": "step", "rho_steps": "0.8: 0.2"}, "rho_steps is neither JSON"),
        ({"rho_steps": {"0.5": 0.1}}, "rho_steps={'0.5': 0.1} has no effect with rho_schedule='constant'"),
        ({"rho_end": 0.1}, "rho_end=0.1 has no effect with rho_schedule='constant'"),
        ({"rho_schedule": "linear", "rho_end": -1.0}, "rho_end must be a finite number >= 0"),
        ({"sharpness_after": 1.0}, "sharpness_after must be a number >= 0 and < 1, got 1.0"),
        ({"sharpness": "cc_sam", "sharpness_after": 0.5}, "sharpness_after=0.5 has no effect with sharpness='cc_sam'"),
        ({"adaptive_scope": "matrices"}, "adaptive_scope='matrices' has no effect with adaptive=False"),
        ({"rho_update": "adam"}, "rho_update='adam' has no effect with rho_schedule='constant'"),
        ({"ascent": "own"}, "unknown ascent 'own'; expected one of gradient, momentum"),
        ({"rho": -0.1}, "rho must be a finite number >= 0, got -0.1"),
        ({"rho": float("nan")}, "rho must be a finite number >= 0, got nan"),
        ({"sharpness": "focal_sam", "focal_lambda": -1.0}, "focal_lambda must be a finite number >= 0"),
        ({"loss": "logit_adjusted", "loss_tau": float("inf")}, "loss_tau must be a finite number"),
        ({"sharpness": "sam", "focal_gamma": 2.0}, "focal_gamma=2.0 has no effect with sharpness='sam'"),
        ({"sharpness": "none", "rho": 0.1}, "rho=0.1 has no effect with sharpness='none'"),
        ({"ascent_scope": "batch"}, "unknown ascent_scope 'batch'; expected one of micro_batch, window"),
        ({"ascent_sync": "all"}, "unknown ascent_sync 'all'; expected one of local, global"),
        ({"sharpness": "none", "ascent_scope": "window"}, "ascent_scope='window' has no effect with sharpness='none'"),
        ({"sharpness": "none", "adaptive": True}, "adaptive=True has no effect with sharpness='none'"),
        ({"adaptive_eta": 0.1}, "adaptive_eta=0.1 has no effect with adaptive=False"),
        ({"loss_tau": 2.0}, "loss_tau=2.0 has no effect with loss='cross_entropy'"),
        ({"loss": "weighted", "loss_gamma": 1.0}, "loss_gamma=1.0 has no effect with loss='weighted'"),
        ({"loss": "vs", "loss_beta": 0.9}, "loss_beta=0.9 has no effect with loss='vs'"),
        ({"loss": "class_balanced", "loss_beta": 1.0}, "loss_beta must be a number >= 0 and < 1, got 1.0"),
        ({"loss": "cdt", "loss_gamma": float("nan")}, "loss_gamma must be a finite number, got nan"),
        ({"loss": "vs", "loss_margin": 0.1}, "loss_margin=0.1 has no effect with loss='vs'"),
        ({"sampler": "random"}, "unknown sampler 'random'; expected one of instance, square_root, class_balanced"),
        ({"reweight_after": 1.0}, "reweight_after must be a number > 0 and < 1, got 1.0"),
        ({"reweight_after": float("nan")}, "reweight_after must be a number > 0 and < 1"),
        ({"reweight_after": 0.8, "loss_beta": 2.0}, "loss_beta must be a number >= 0 and < 1"),
        ({"reweight_after": 0.8, "loss": "weighted"}, "reweight_after=0.8 would weight the classes twice"),
        ({"class_importance": "{cat: 2"}, "class_importance is neither JSON"),
        (
            {"sampler": "square_root", "train_sampling_strategy": "group_by_length"},
            "sampler='square_root' and train_sampling_strategy='group_by_length' both choose the examples",
        ),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not supported"),
        ({"optim": "adalomo"}, "optim='adalomo' updates the weights while the backward pass runs"),
        ({"deepspeed": "zero2.json"}, "DeepSpeed is not supported.*ddp.yaml"),
    ],
)
def test_bad_options_are_errors_at_construction(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        args(tmp_path, **options)


def test_deepspeed_from_the_launcher_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="DeepSpeed is not supported"):
        args(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpness": "sam", "sharpness_every": 2.5}, "sharpness_every must be an integer, got 2.5"),
        ({"rare_threshold": True}, "rare_threshold must be an integer, got True"),
        ({"sharpness": "sam", "rho": "big"}, "rho must be a number, got 'big'"),
        ({"loss_tau": None}, "loss_tau must be a number, got None"),
        ({"sharpness": "sam", "adaptive": "false"}, "adaptive must be True or False, got 'false'"),
        (
            {"loss": "ldam", "cosine_head": True, "cosine_scale": 10.0},
            r"cosine_scale=10.0 has no effect with loss='ldam'",
        ),
        ({"loss": "ldam", "cosine_head": True, "cosine_learn_scale": True}, "cosine_learn_scale=True has no effect"),
    ],
)
def test_values_of_another_type_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        args(tmp_path, **options)


def test_numbers_that_yaml_reads_as_texts_are_numbers(tmp_path):
    made = args(tmp_path, sharpness="sam", rho="1e-1", sharpness_every=2.0, loss_tau=1)
    assert (made.rho, made.sharpness_every, made.loss_tau) == (0.1, 2, 1)
    assert isinstance(made.sharpness_every, int)


def test_the_best_model_is_chosen_by_balanced_accuracy(tmp_path):
    parsed = args(tmp_path, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    assert (parsed.metric_for_best_model, parsed.greater_is_better) == ("balanced_accuracy", True)
    assert args(tmp_path).metric_for_best_model is None


def test_class_importance_is_json_on_the_command_line(tmp_path):
    assert args(tmp_path, class_importance='{"cat": 2}').class_importance == {"cat": 2}
    assert args(tmp_path, class_importance="[1, 2.5]").class_importance == [1, 2.5]


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"loss": "logit_adjusted"}, True),
        ({"reweight_after": 0.5}, True),
        ({"loss": "ldam", "cosine_head": True}, True),
        ({"loss": "ldam", "cosine_head": True, "loss_margin": 0.0}, False),
        ({"loss": "large_margin", "lm_frequency_margins": True}, True),
        ({"loss": "large_margin"}, False),
        ({"loss": "logit_adjusted", "loss_tau": 0.0}, False),
        ({"loss": "class_balanced", "loss_beta": 0.0}, False),
        ({"loss": "focal"}, False),
        ({"loss": "cross_entropy"}, False),
    ],
)
def test_a_sampler_beside_a_loss_that_knows_the_counts_is_warned_of(tmp_path, caplog, options, warned):
    args(tmp_path, sampler="class_balanced", **options)
    assert ("both make up for the class counts" in caplog.text) == warned


@pytest.mark.parametrize(
    ("options", "radius"),
    [
        ({}, 0.05),
        ({"sharpness": "focal_sam"}, 0.05),
        ({"ascent": "momentum"}, 0.75),
        ({"adaptive": True}, 1.0),
        ({"ascent": "momentum", "rho": 0.1}, 0.1),
    ],
)
def test_every_method_and_ascent_has_its_default_radius(tmp_path, options, radius):
    assert args(tmp_path, **options).radius == radius
    assert args(tmp_path, **options).method["rho"] == radius


def test_focal_sams_own_schedules_can_be_written(tmp_path):
    steps = args(tmp_path, rho=0.05, rho_schedule="step", rho_steps='{"0.25": 0.1, "0.5": 0.5, "0.75": 0.6}')
    assert steps.rho_steps == {"0.25": 0.1, "0.5": 0.5, "0.75": 0.6}
    assert args(tmp_path, rho=0.05, rho_schedule="linear", rho_end=0.8).method["rho_end"] == 0.8
