import pytest
import torch
from transformers import TrainerCallback

from hf_sharp.sharpness import scheduled_rho
from tests.conftest import assert_same_bits, make_vit, weights_of


def test_schedules_at_start_middle_and_end():
    assert [scheduled_rho(0.2, "constant", t) for t in (0, 0.5, 1)] == [0.2, 0.2, 0.2]
    assert [scheduled_rho(0.2, "linear", t) for t in (0, 0.5, 1)] == [0.2, 0.1, 0.0]
    assert [round(scheduled_rho(0.2, "cosine", t), 12) for t in (0, 0.25, 1)] == [0.2, 0.170710678119, 0.0]


def test_progress_beyond_the_end_counts_as_the_end():
    assert scheduled_rho(0.2, "linear", 1.5) == 0.0


def test_unknown_schedule_lists_the_schedules():
    with pytest.raises(ValueError, match=r"'root'.*constant, linear, cosine, step"):
        scheduled_rho(0.2, "root", 0.0)


def test_schedules_that_grow():
    assert [scheduled_rho(0.05, "linear", t, rho_end=0.8) for t in (0, 1)] == [0.05, 0.8]
    assert scheduled_rho(0.05, "linear", 0.5, rho_end=0.8) == pytest.approx(0.425)
    assert scheduled_rho(0.1, "cosine", 0.5, rho_end=0.3) == pytest.approx(0.2)
    steps = {0.25: 0.1, 0.75: 0.6, 0.5: 0.5}  # in any order
    assert [scheduled_rho(0.05, "step", t, rho_steps=steps) for t in (0, 0.25, 0.6, 1)] == [0.05, 0.1, 0.5, 0.6]
    assert scheduled_rho(0.05, "constant", 1.0, rho_end=0.8) == 0.05


def logged(trainer):
    trainer.train()
    return [log["rho"] for log in trainer.state.log_history if "rho" in log]


def test_the_trainer_follows_a_schedule_that_grows(make_trainer):
    more = {"rho": 0.05, "max_steps": 10, "logging_steps": 1}
    steps = logged(make_trainer(rho_schedule="step", rho_steps={"0.5": 0.2}, **more))
    assert steps == [0.05] * 5 + [0.2] * 5
    linear = logged(make_trainer(rho_schedule="linear", rho_end=0.15, **more))
    assert linear == pytest.approx([0.05 + 0.01 * step for step in range(10)])


METHODS = [
    {"sharpness": "sam", "rho": 0.3},
    {"sharpness": "focal_sam", "rho": 0.3, "ascent_scope": "window", "gradient_accumulation_steps": 2},
    {"sharpness": "sam", "ascent": "momentum"},
    {"sharpness": "imbsam", "rho": 0.3},
    {"sharpness": "focal_sam", "sharpness_every": 2, "rho": 0.3},
    {"sharpness": "sam", "rho": 0.3, "rho_schedule": "learned", "rho_update_every": 1},
]


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_the_late_phase_begins_after_plain_steps(make_trainer, options, tmp_path):
    more = {"max_steps": 10, "logging_steps": 1, "lr_scheduler_type": "constant"}
    late = make_trainer(make_vit(), output_dir=str(tmp_path / "late"), sharpness_after=0.8, **more, **options)
    plain = make_trainer(make_vit(), sharpness="none", **more | {
        name: options[name] for name in ("gradient_accumulation_steps",) if name in options
    })  # fmt: skip
    weights = {}
    for name, trainer in (("late", late), ("plain", plain)):
        keep = Keep()
        trainer.add_callback(keep)
        trainer.train_dataset = plain.train_dataset if name == "plain" else late.train_dataset
        trainer.train()
        weights[name] = keep.weights
    rhos = [log["rho"] for log in late.state.log_history if "rho" in log]
    assert rhos[:8] == [0.0] * 8
    assert all(rhos[8:])
    if "rho_schedule" not in options:  # which trains on what it does not hold out
        for one, other in zip(weights["late"][:8], weights["plain"][:8], strict=True):
            assert_same_bits(one, other)
        assert any(not torch.equal(weights["late"][-1][key], value) for key, value in weights["plain"][-1].items())


class Keep(TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))


def test_the_late_phase_costs_one_pass_before(make_trainer):
    trainer = make_trainer(max_steps=10, sharpness_after=0.8, rho=0.3)
    passes = []
    trainer.model.register_forward_hook(lambda *args: passes.append(trainer.state.global_step))
    trainer.train()
    assert passes == [*range(8), 8, 8, 9, 9]


@pytest.mark.parametrize("at", [4, 8, 9])
def test_the_late_phase_resumes(make_trainer, tmp_path, at):
    more = {"max_steps": 10, "save_steps": 1, "save_strategy": "steps", "sharpness_after": 0.8, "rho": 0.3}
    more |= {"output_dir": str(tmp_path / "out"), "sharpness": "focal_sam"}
    whole = make_trainer(make_vit(dropout=0.1), **more)
    whole.train()
    resumed = make_trainer(make_vit(dropout=0.1), **more)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{at}"))
    assert_same_bits(weights_of(whole.model), weights_of(resumed.model))
