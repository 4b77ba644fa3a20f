"""Killed and going on: the end is the one that there would have been."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.trainer.checkpoint_files import whole_checkpoint, why_torn
from tests.conftest import assert_same_bits, make_images, make_vit, method_id

STEPS = 20
RUNS = [
    {"sharpness": "none", "loss": "class_balanced"},
    {"sharpness": "sam", "rho": 0.1, "sampler": "class_balanced"},
    {"sharpness": "sam", "rho": 1.0, "adaptive": True, "rho_schedule": "linear", "loss": "logit_adjusted"},
    {"sharpness": "imbsam", "rho": 0.1, "rho_schedule": "cosine", "sampler": "square_root"},
    {
        "sharpness": "focal_sam",
        "sampler": "progressive",
        "reweight_after": 0.5,
        "ascent_scope": "window",
        "gradient_accumulation_steps": 2,
    },
    {"sharpness": "focal_sam", "focal_sampling": "stochastic", "ascent_fraction": 0.5, "sharpness_every": 3},
    {
        "sharpness": "sam",
        "ascent": "momentum",
        "sharpness_after": 0.3,
        "rho_schedule": "step",
        "rho_steps": {"0.5": 1.0},
    },
]


def make(out, options, **more):
    defaults = {
        "sharpness": "sam",
        "loss": "cross_entropy",
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    args = SharpTrainingArguments(str(out), **(defaults | options | more))
    return SharpTrainer(make_vit(dropout=0.1), args, train_dataset=make_images())


class Say(TrainerCallback):
    def __init__(self, pipe):
        self.pipe = pipe

    def on_step_end(self, args, state, control, **kwargs):
        self.pipe.send(state.global_step)


def go_on(out, options, pipe, die_in):
    """In a process of its own: train from the last whole checkpoint to the end, or to one of the ends below."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._shared_state.clear()
    trainer = make(out, options)
    trainer.add_callback(Say(pipe))
    if die_in == "weights":
        save = trainer._save
        trainer._save = lambda folder, **kwargs: (save(folder, **kwargs), _tear(Path(folder) / "model.safetensors"))
    elif die_in == "optimizer":
        save_optimizer = trainer._save_optimizer_and_scheduler
        trainer._save_optimizer_and_scheduler = lambda folder: (
            save_optimizer(folder),
            _tear(Path(folder) / "optimizer.pt"),
        )
    elif die_in == "state":
        save_rng = trainer._save_rng_state
        trainer._save_rng_state = lambda folder: (save_rng(folder), _die())
    whole = whole_checkpoint(out)
    trainer.train(resume_from_checkpoint=whole)
    trainer.save_model(str(out / "end"))
    os._exit(0)


def _tear(file):
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    _die()


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def run(out, options, kill_after=None, delay=0.0, die_in=None):
    """Train in a process of its own; kill it a moment after some steps. Whether it was killed."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=go_on, args=(out, options, there, die_in))
    process.start()
    there.close()
    try:
        steps = 0
        while kill_after is None or steps < kill_after:
            here.recv()
            steps += 1
        time.sleep(delay)
        process.kill()
    except EOFError:  # it has come to its end
        pass
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("options", RUNS, ids=method_id)
def test_killed_again_and_again_the_weights_at_the_end_are_the_same(tmp_path, options):
    run(tmp_path / "whole", options)
    moments = random.Random(str(options))
    out, kills = tmp_path / "out", 0
    for die_in in ("weights", "optimizer", "state"):
        kills += run(out, options, die_in=die_in)
        kills += run(out, options, kill_after=moments.randint(1, 4), delay=moments.uniform(0, 0.05))
        kills += run(out, options, kill_after=0, delay=moments.uniform(0.1, 0.3))
    while run(out, options, kill_after=moments.randint(3, 6), delay=moments.uniform(0, 0.05)):
        kills += 1
    assert kills >= 4, "a run may end before it is killed"
    assert (out / "end").is_dir()
    assert_same_bits(
        load_file(out / "end" / "model.safetensors"), load_file(tmp_path / "whole" / "end" / "model.safetensors")
    )
    assert any(folder.name.startswith("torn-checkpoint-") for folder in out.iterdir())


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    make(out, RUNS[1], max_steps=4).train()
    return out


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
@pytest.mark.parametrize("file", FILES)
def test_a_torn_checkpoint_is_named_and_the_one_before_it_taken(two_checkpoints, tmp_path, caplog, file, how):
    out = tmp_path / "out"
    shutil.copytree(two_checkpoints, out)
    torn = out / "checkpoint-4" / file
    if how == "gone":
        torn.unlink()
    else:
        with torn.open("r+b") as opened:
            opened.truncate(torn.stat().st_size - 10 if how == "cut" else 0)
    trainer = make(out, RUNS[1], max_steps=4)
    with pytest.raises(ValueError, match=rf"is incomplete: {file}.*; the last complete one is '.*checkpoint-2'"):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-4"))
    trainer.train(resume_from_checkpoint=True)
    told = [
        record.getMessage() for record in caplog.records if "renaming it to torn-checkpoint-4" in record.getMessage()
    ]
    assert len(told) == 1
    assert file in told[0]
    assert (out / "torn-checkpoint-4").is_dir()
    first, second = (load_file(folder / "checkpoint-4" / "model.safetensors") for folder in (out, two_checkpoints))
    assert_same_bits(first, second)


def test_files_of_others_may_be_of_any_kind(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints / "checkpoint-4", tmp_path / "checkpoint-4")
    for name in ("vectors.bin", "notes.pt", "table.pth"):
        (tmp_path / "checkpoint-4" / name).write_bytes(b"no archive")
    assert why_torn(tmp_path / "checkpoint-4") is None
    (tmp_path / "checkpoint-4" / "training_args.bin").write_bytes(b"no archive")
    assert why_torn(tmp_path / "checkpoint-4") == "training_args.bin ends too early"


def test_where_every_checkpoint_is_torn(two_checkpoints, tmp_path, caplog):
    out = tmp_path / "out"
    shutil.copytree(two_checkpoints, out)
    for file in out.rglob("optimizer.pt"):
        file.unlink()
    assert whole_checkpoint(out) is None
    assert sum("is incomplete" in record.getMessage() for record in caplog.records) == 2
    with pytest.raises(ValueError, match="No valid checkpoint"):
        make(out, RUNS[1]).train(resume_from_checkpoint=True)


def test_sharded_weights_that_lack_a_shard(two_checkpoints, tmp_path):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(two_checkpoints / "checkpoint-4", folder)
    (folder / "model.safetensors").unlink()
    make_vit().save_pretrained(folder, max_shard_size="5KB")
    assert why_torn(folder) is None
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert why_torn(folder) == f"{shard.name} is missing"


def test_writing_over_an_older_checkpoint_unmarks_it_first(two_checkpoints, tmp_path):
    """Killed in the middle, it would be half old and half new, and look whole."""
    out = tmp_path / "out"
    shutil.copytree(two_checkpoints, out)
    trainer = make(out, RUNS[1], max_steps=4)

    def stop(folder):
        raise KeyboardInterrupt

    trainer._save_rng_state = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-2"))
    assert "trainer_state.json" in why_torn(out / "checkpoint-4")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sharpness": "none"}, "rho: 0.1 there, not used now; .*sharpness: sam there, none now"),
        ({"sharpness": "sam", "rho": 0.2, "sampler": "class_balanced"}, "rho: 0.1 there, 0.2 now"),
        ({"sharpness": "sam", "rho": 0.1}, "sampler: class_balanced there, instance now"),
        (RUNS[1] | {"loss": "logit_adjusted"}, "loss: cross_entropy there, .* now; loss_tau: not used there, 1.0 now"),
        (RUNS[1] | {"class_importance": [1, 1, 1, 2]}, "class_importance: not used there"),
    ],
)
def test_a_checkpoint_of_another_method_is_refused_with_what_differs(two_checkpoints, tmp_path, options, told):
    trainer = make(tmp_path / "out", options)
    with pytest.raises(ValueError, match=told):
        trainer.train(resume_from_checkpoint=str(two_checkpoints / "checkpoint-4"))


def test_a_checkpoint_of_an_ascent_that_is_gone_is_refused_with_what_differs(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "old")
    file = tmp_path / "old" / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["stateful_callbacks"]["MethodState"]["args"]["method"] |= {"ascent": "gone", "gone_option": 0.8}
    file.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"ascent: gone there, gradient now; gone_option: 0\.8 there"):
        make(tmp_path / "out", RUNS[1]).train(resume_from_checkpoint=str(file.parent))


def test_a_checkpoint_of_other_class_counts_is_refused(two_checkpoints, tmp_path):
    args = make(tmp_path / "out", RUNS[1]).args
    trainer = SharpTrainer(make_vit(), args, train_dataset=make_images([40, 22, 9, 4]))
    with pytest.raises(ValueError, match=r"class_counts: \[40, 22, 9, 3\] there, \[40, 22, 9, 4\] now"):
        trainer.train(resume_from_checkpoint=str(two_checkpoints / "checkpoint-4"))


def test_a_checkpoint_of_plain_trainer(tmp_path):
    data = make_images().rename_column("label", "labels")
    sharp = make(tmp_path / "plain", {"sharpness": "none"}, max_steps=4)
    plain = Trainer(make_vit(dropout=0.1), sharp.args, train_dataset=data)
    plain.train()
    checkpoint = str(tmp_path / "plain" / "checkpoint-2")
    with pytest.raises(ValueError, match="sharpness: none there, sam now"):
        make(tmp_path / "out", {"sharpness": "sam"}, max_steps=4).train(resume_from_checkpoint=checkpoint)
    trainer = make(tmp_path / "out", {"sharpness": "none"}, max_steps=4)
    trainer.train(resume_from_checkpoint=checkpoint)
    saved = json.loads((tmp_path / "out" / "checkpoint-4" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["MethodState"]["args"]["method"]["class_counts"] == [40, 22, 9, 3]


def test_weights_alone_are_whole_and_it_is_said_what_starts_anew(tmp_path, caplog):
    options = {"sharpness": "sam", "save_only_model": True, "max_steps": 2}
    make(tmp_path / "out", options).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert why_torn(checkpoint) is None
    make(tmp_path / "out", options).train(resume_from_checkpoint=str(checkpoint))
    assert "holds only weights (save_only_model)" in caplog.text


def test_callback_states_are_restored_beside_the_method(tmp_path):
    options = {"restore_callback_states_from_checkpoint": True, **RUNS[1]}
    whole = make(tmp_path / "out", options, max_steps=4)
    whole.train()
    resumed = make(tmp_path / "out", options, max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert_same_bits(resumed.model.state_dict(), whole.model.state_dict())
    assert torch.isfinite(torch.tensor(resumed.state.log_history[-1]["train_loss"]))


def test_the_callback_of_the_checkpoint_does_not_replace_the_method(tmp_path):
    options = {"restore_callback_states_from_checkpoint": True, **RUNS[1]}
    make(tmp_path / "out", options, max_steps=2).train()
    only = make(tmp_path / "out", options | {"save_only_model": True}, max_steps=4)
    only.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert why_torn(tmp_path / "out" / "checkpoint-4") is None


def test_what_looks_like_a_checkpoint_and_is_none_is_left_alone(two_checkpoints, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(two_checkpoints, out)
    for name in ("checkpoint-4-best", "checkpoint-best"):
        (out / name).mkdir()
    assert whole_checkpoint(out) == str(out / "checkpoint-4")


def test_shards_without_their_index_are_torn(two_checkpoints, tmp_path):
    folder = tmp_path / "checkpoint-4"
    shutil.copytree(two_checkpoints / "checkpoint-4", folder)
    (folder / "model.safetensors").unlink()
    make_vit().save_pretrained(folder, max_shard_size="5KB")
    (folder / "model.safetensors.index.json").unlink()
    assert why_torn(folder) == "model.safetensors.index.json is missing"


def test_a_plain_trainers_weights_alone_are_not_put_aside(tmp_path):
    args = make(tmp_path / "plain", {"sharpness": "none", "save_only_model": True}, max_steps=2).args
    Trainer(make_vit(), args, train_dataset=make_images().rename_column("label", "labels")).train()
    assert whole_checkpoint(tmp_path / "plain") == str(tmp_path / "plain" / "checkpoint-2")


def test_an_earlier_torn_checkpoint_is_kept(two_checkpoints, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(two_checkpoints, out)
    (out / "torn-checkpoint-4").mkdir()
    (out / "checkpoint-4" / "optimizer.pt").unlink()
    assert whole_checkpoint(out) == str(out / "checkpoint-2")
    assert (out / "torn-checkpoint-4").is_dir()
    assert (out / "torn-checkpoint-4+" / "model.safetensors").is_file()
