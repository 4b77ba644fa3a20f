"""Two processes compared with one, for every method, with one shared ε or one per process; DDP and FSDP2."""

import functools
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import DistributedType, PartialState
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.sharpness import average_over_processes
from hf_sharp.trainer.checkpoint_files import why_torn
from tests.conftest import assert_same_bits, make_images, make_vit, method_id
from tests.processes import run_processes

METHODS = [
    {"sharpness": "sam", "rho": 0.3},
    {"sharpness": "sam", "rho": 1.0, "adaptive": True},
    {"sharpness": "imbsam", "rho": 0.3},
    {"sharpness": "focal_sam", "rho": 0.3},
]
LOOKSAM = {"sharpness": "focal_sam", "rho": 0.3, "sharpness_every": 2}
MOMENTUM = {"sharpness": "sam", "rho": 0.3, "ascent": "momentum"}
STOCHASTIC = {"sharpness": "focal_sam", "rho": 0.3, "focal_sampling": "stochastic", "ascent_fraction": 0.5}
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "ViTLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


class KeepGradients(TrainerCallback):
    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(torch.cat([whole(p.grad).flatten() for p in model.parameters()]))


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def train(out, options, fsdp=False, data=None, resume=None, before=None, dtype=torch.float64):
    """Train in this process, which may be one of several, and return what the tests compare."""
    if fsdp:
        os.environ |= FSDP
        init = PartialState.__init__

        def as_on_gpus(self, *args, **kwargs):
            init(self, *args, **kwargs)  # on CPUs, accelerate silently replaces FSDP by DDP
            if self.distributed_type == DistributedType.MULTI_CPU:
                self.distributed_type = DistributedType.MULTI_GPU

        PartialState.__init__ = as_on_gpus
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "sharpness": "sam",
        "loss": "cross_entropy",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-2,
        "ddp_find_unused_parameters": False,
    }
    args = SharpTrainingArguments(str(out), **(defaults | options))
    numbers = np.float64 if dtype == torch.float64 else np.float32
    data = make_images(dtype=numbers) if data is None else data
    trainer = SharpTrainer(make_vit(dtype=dtype), args, train_dataset=data)
    keep = KeepGradients()
    trainer.add_callback(keep)
    if before is not None:
        before(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return {
        "gradients": keep.gradients,
        "weights": {name: whole(value) for name, value in trainer.model.state_dict().items()},
        "logs": [
            {k: v for k, v in log.items() if "runtime" not in k and "second" not in k}
            for log in trainer.state.log_history
        ],
        "kinds": {type(parameter).__name__ for parameter in trainer.model.parameters()},
    }


def assert_close(first, second, tolerance=1e-9):
    assert len(first["gradients"]) == len(second["gradients"]) > 0
    for one, other in zip(first["gradients"], second["gradients"], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("options", [*METHODS, LOOKSAM, MOMENTUM], ids=method_id)
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_with_one_epsilon_equal_one_process_with_a_double_batch(tmp_path, options, window, fsdp):
    if (options is LOOKSAM and fsdp) or (options is MOMENTUM and window):
        pytest.skip("refused")
    accumulation = {"gradient_accumulation_steps": 2} | ({"ascent_scope": "window"} if window else {})
    one = train(tmp_path / "one", options | accumulation | {"per_device_train_batch_size": 8})
    sync = {} if fsdp or options is MOMENTUM else {"ascent_sync": "global"}
    ranks = run_processes(train, tmp_path / "two", options | accumulation | sync, fsdp, folder=tmp_path)
    assert ranks[0]["kinds"] == ({"DTensor"} if fsdp else {"Parameter"})
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])
    assert_close(ranks[0], one)
    for log, expected in zip(ranks[0]["logs"], one["logs"], strict=True):
        assert log == pytest.approx(expected, rel=1e-5)


def test_every_process_has_its_own_epsilon_unless_synchronised(tmp_path):
    local = run_processes(train, tmp_path / "local", METHODS[0], folder=tmp_path)
    one_epsilon = run_processes(train, tmp_path / "global", METHODS[0] | {"ascent_sync": "global"}, folder=tmp_path)
    difference = (local[0]["gradients"][0] - one_epsilon[0]["gradients"][0]).norm()
    assert difference > 0.01 * local[0]["gradients"][0].norm()


@pytest.mark.parametrize("fsdp", [False, True])
def test_one_epsilon_when_one_process_has_no_rare_examples(tmp_path, fsdp):
    """Batches of 4 in the order of the classes: process 0 sees only the common class, process 1 the rare ones."""
    options = {"sharpness": "imbsam", "rho": 0.3, "rare_threshold": 5, "max_steps": 2}
    data = make_images([8, 4, 2, 2], dtype=np.float64).sort("label").with_format("torch")
    data = data.select([0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15])
    one = train(tmp_path / "one", options | {"per_device_train_batch_size": 8}, data=data)
    sync = {} if fsdp else {"ascent_sync": "global"}
    ranks = run_processes(train, tmp_path / "two", options | sync, fsdp, data, folder=tmp_path)
    assert_close(ranks[1], one)
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])


@pytest.mark.parametrize(
    "options",
    [
        *METHODS,
        LOOKSAM,
        STOCHASTIC,
        {"sharpness": "sam", "ascent_sync": "global"},
        STOCHASTIC | {"ascent_sync": "global"},
    ],
    ids=method_id,
)
@pytest.mark.parametrize("fsdp", [False, True])
def test_after_20_steps_with_uneven_batches_the_processes_have_the_same_weights(tmp_path, options, fsdp):
    if fsdp and ("ascent_sync" in options or options is LOOKSAM):
        pytest.skip("the same as without, or refused")
    options = options | {"max_steps": 20, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "max_grad_norm": 1.0}
    data = make_images(
        [20, 9, 5, 3]
    )  # 37: in the last batch of an epoch, one process has one example and the other none
    ranks = run_processes(
        train, tmp_path / "two", options | {"logging_steps": 5}, fsdp, data, None, None, torch.float32, folder=tmp_path
    )
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])
    assert ranks[0]["logs"] == ranks[1]["logs"]
    assert all(torch.isfinite(value).all() for value in ranks[0]["weights"].values())
    assert ranks[0]["logs"][-2]["loss"] < ranks[0]["logs"][0]["loss"]


class CountAllReduces(TrainerCallback):
    """Counts the all-reduces of gradients, not those of the number of examples."""

    def __init__(self):
        self.count, self.original = 0, torch.distributed.all_reduce
        torch.distributed.all_reduce = self

    def __call__(self, tensor, *args, **kwargs):
        self.count += tensor.numel() > 10
        return self.original(tensor, *args, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        state.log_history.append({"all_reduces": self.count})


def count_all_reduces(trainer):
    trainer.add_callback(CountAllReduces())
    wrap = trainer.accelerator.prepare_model

    def wrapped(*args, **kwargs):
        model = wrap(*args, **kwargs)
        model.register_comm_hook(None, allreduce_hook)  # it calls torch.distributed.all_reduce
        return model

    trainer.accelerator.prepare_model = wrapped


@pytest.mark.parametrize(("sync", "expected"), [("local", 3), ("global", 6)])
@pytest.mark.parametrize("options", METHODS, ids=method_id)
def test_all_reduces_of_gradients_in_three_steps(tmp_path, options, sync, expected):
    """As many as in plain data parallelism, and one more per step with one ε. The model fits into one bucket."""
    options = options | {"ascent_sync": sync, "gradient_accumulation_steps": 2, "ascent_scope": "window"}
    ranks = run_processes(train, tmp_path / "two", options, False, None, None, count_all_reduces, folder=tmp_path)
    assert [rank["logs"][-1]["all_reduces"] for rank in ranks] == [expected, expected]
    plain = {"sharpness": "none", "gradient_accumulation_steps": 2}
    ranks = run_processes(train, tmp_path / "plain", plain, False, None, None, count_all_reduces, folder=tmp_path)
    assert [rank["logs"][-1]["all_reduces"] for rank in ranks] == [3, 3]


@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
@pytest.mark.parametrize("options", METHODS, ids=method_id)
def test_sharded_training_resumes_exactly(tmp_path, options, kind):
    options = options | {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "cosine"}
    with mock.patch.dict(FSDP, FSDP_STATE_DICT_TYPE=kind):
        whole_run = run_processes(train, tmp_path / "out", options, True, folder=tmp_path)
        checkpoint = str(tmp_path / "out" / "checkpoint-2")
        resumed = run_processes(train, tmp_path / "out", options, True, None, checkpoint, folder=tmp_path)
    assert len(resumed[0]["gradients"]) == 2
    for rank in range(2):
        assert_same_bits(resumed[rank]["weights"], whole_run[rank]["weights"])
    assert [why_torn(checkpoint, rank) for rank in range(2)] == [None, None]
    weights = max(
        Path(checkpoint).glob("pytorch_model_fsdp*/*.distcp" if "SHARDED" in kind else "pytorch_model_fsdp.bin")
    )
    os.truncate(weights, weights.stat().st_size - 100)
    assert "pytorch_model_fsdp" in why_torn(checkpoint)
    (Path(checkpoint) / "rng_state_1.pth").unlink()
    assert why_torn(checkpoint, 1) == "rng_state_1.pth is missing"


def evaluate_between_steps(trainer):
    class Evaluate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.evaluate(trainer.train_dataset)
            trainer.model.train()

    trainer.add_callback(Evaluate())


@pytest.mark.parametrize("method", [METHODS[0], MOMENTUM], ids=["sam", "momentum"])
def test_an_evaluation_between_two_sharded_steps_changes_nothing(tmp_path, method):
    without = run_processes(train, tmp_path / "out", method, True, folder=tmp_path)
    options = method | {"per_device_eval_batch_size": 37}
    ranks = run_processes(train, tmp_path / "out", options, True, None, None, evaluate_between_steps, folder=tmp_path)
    assert_same_bits(ranks[0]["weights"], without[0]["weights"])


def raise_in(where, trainer):
    """Raise in the first step, on every process; then repeat the step."""
    happened = []

    def raise_once(*_):
        happened.append(1)
        if len(happened) == (2 if where == "second pass" else 1):
            raise RuntimeError("planted")

    if where == "second pass":
        trainer.model.classifier.register_forward_pre_hook(raise_once)
    else:
        trainer.engine.average = lambda gradients: (raise_once(), average_over_processes(gradients))
    step = trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        if happened:
            return step(model, inputs, num_items_in_batch)
        before = [whole(p) for p in model.parameters()]
        with pytest.raises(RuntimeError, match="planted"):
            step(model, inputs, num_items_in_batch)
        assert all(torch.equal(whole(p), old) for p, old in zip(model.parameters(), before, strict=True))
        model.zero_grad()
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = training_step


@pytest.mark.parametrize(
    ("fsdp", "where"), [(False, "second pass"), (False, "all-reduce of the ascent"), (True, "second pass")]
)
def test_training_continues_after_an_error_as_if_nothing_had_happened(tmp_path, fsdp, where):
    if fsdp and not hasattr(FSDPModule, "reset_iter_state"):
        pytest.skip("before torch 2.13, FSDP2 cannot continue after an error")
    options = METHODS[3] | {"ascent_sync": "global"}
    without = run_processes(train, tmp_path / "out", options, fsdp, folder=tmp_path)
    plant = functools.partial(raise_in, where)
    ranks = run_processes(train, tmp_path / "out", options, fsdp, None, None, plant, folder=tmp_path)
    assert_same_bits(ranks[0]["weights"], without[0]["weights"])


def refused(out):
    with mock.patch.dict(FSDP, FSDP_VERSION="1"), pytest.raises(ValueError, match="FSDP1 is not supported"):
        train(out, METHODS[0], fsdp=True)


def test_fsdp1_is_refused(tmp_path):
    run_processes(refused, tmp_path / "out", folder=tmp_path)


def refused_offload(out):
    with mock.patch.dict(FSDP, FSDP_OFFLOAD_PARAMS="true"), pytest.raises(ValueError, match="CPU offload is not supp"):
        train(out, METHODS[0], fsdp=True)


def test_cpu_offload_is_refused(tmp_path):
    run_processes(refused_offload, tmp_path / "out", folder=tmp_path, processes=1)
