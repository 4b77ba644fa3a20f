"""Two processes with gloo: every process has its own ε, and gradients are averaged once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sharp.data.sampling import ClassSampler
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_images, make_vit
from tests.naive import naive_gradient

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, torch, numpy as np
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback
from hf_sharp import SharpTrainer, SharpTrainingArguments
from tests.conftest import make_images, make_vit

out, accumulation, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
args = SharpTrainingArguments(
    out, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation, use_cpu=True,
    report_to="none", save_strategy="no", disable_tqdm=True, max_grad_norm=0.0, logging_steps=1,
    **{"sharpness": "sam", "loss": "cross_entropy", **options}
)
trainer = SharpTrainer(make_vit(dtype=torch.float64), args, train_dataset=make_images(dtype=np.float64))
windows, gradients, reduces, hooked = [[]], [], [], []
step = trainer.training_step


def counted_all_reduce(state, bucket):
    reduces.append(1)
    return allreduce_hook(state, bucket)


def training_step(model, inputs, num_items_in_batch=None):
    if not hooked:
        hooked.append(model.register_comm_hook(None, counted_all_reduce))
    windows[-1].append({k: v for k, v in inputs.items() if k != "host_labels"})
    return step(model, inputs, num_items_in_batch)


class Keep(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients.append(torch.cat([p.grad.flatten().clone() for p in model.parameters()]))
        windows.append([])


trainer.training_step = training_step
trainer.add_callback(Keep())
trainer.train()
torch.save(
    {"windows": windows, "gradients": gradients, "weights": trainer.model.state_dict(), "reduces": len(reduces),
     "logs": trainer.state.log_history},
    f"{out}/rank{dist.get_rank()}.pt",
)
"""


SAMPLER_SCRIPT = """
import sys, torch
from hf_sharp import SharpTrainer, SharpTrainingArguments
from tests.conftest import make_images, make_vit

out, name, resume = sys.argv[1], sys.argv[2], sys.argv[3] or None
args = SharpTrainingArguments(
    out, num_train_epochs=3, per_device_train_batch_size=4, use_cpu=True, report_to="none", save_strategy="steps",
    save_steps=14, disable_tqdm=True, sharpness="none", sampler=name, remove_unused_columns=False,
)
data = make_images().add_column("index", range(74))
trainer = SharpTrainer(make_vit(), args, train_dataset=data)
seen, step = [], trainer.training_step


def training_step(model, inputs, num_items_in_batch=None):
    seen.append(inputs.pop("index").tolist())
    return step(model, inputs, num_items_in_batch)


trainer.training_step = training_step
trainer.train(resume_from_checkpoint=resume)
torch.save(seen, f"{out}/rank{args.process_index}.pt")
"""

# Skips the interpreter's shutdown: DDP keeps gloo's threads alive after the group is destroyed, and a thread that still
# holds a tensor of the last collective would abort the process (pytorch/pytorch#179291).
LEAVE = """
import os
args.distributed_state.destroy_process_group()
os._exit(0)
"""


def launch(tmp_path, *arguments, script=SCRIPT):
    (tmp_path / "script.py").write_text(script + LEAVE)
    argv = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    argv += [str(tmp_path / "script.py"), str(tmp_path), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize(
    ("accumulation", "options"),
    [
        (1, {"sharpness": "sam", "rho": 0.3}),
        (1, {"sharpness": "sam", "rho": 1.0, "adaptive": True}),
        (2, {"sharpness": "focal_sam", "rho": 0.3}),
        (2, {"sharpness": "imbsam", "rho": 0.3}),
        (1, {"sharpness": "none"}),
    ],
    ids=["sam", "asam", "focal_sam", "imbsam", "none"],
)
def test_gradients_are_averaged_and_epsilon_is_local(tmp_path, accumulation, options):
    ranks = launch(tmp_path, accumulation, repr(options))
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])
    seen = [[batch["labels"].tolist() for batch in rank["windows"][0]] for rank in ranks]
    assert seen[0] != seen[1], "the processes see different examples"
    # Every micro-batch has its own ε, on either process; the mean is over the examples of both.
    both = [*ranks[0]["windows"][0], *ranks[1]["windows"][0]]
    assert len(both) == 2 * accumulation
    expected = naive_gradient(
        make_vit(dtype=torch.float64),
        both,
        CLASS_COUNTS,
        options["sharpness"],
        options.get("rho", 0.0),
        eta=0.01 if "adaptive" in options else None,
    )
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"][0], expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    # One bucket holds this model: one all-reduce for each of the 3 optimizer steps, as in plain training.
    assert [rank["reduces"] for rank in ranks] == [3, 3]
    assert [log.get("rho") for log in ranks[0]["logs"]] == [log.get("rho") for log in ranks[1]["logs"]]


@pytest.mark.parametrize("name", ["instance", "progressive"])
def test_the_processes_share_one_draw_and_resume_it(tmp_path, name):
    whole = launch(tmp_path, name, "", script=SAMPLER_SCRIPT)
    resumed = launch(tmp_path, name, tmp_path / "checkpoint-14", script=SAMPLER_SCRIPT)
    assert len(whole[0]) == 30  # 3 epochs of 10
    for rank in range(2):
        assert resumed[rank] == whole[rank][14:]
    for epoch in range(3):
        steps = range(10 * epoch, 10 * epoch + 9)  # the last batches of an epoch are filled with its first examples
        drawn = [index for step in steps for rank in range(2) for index in whole[rank][step]]
        if name == "instance":
            assert len(set(drawn)) == 72, "no example is drawn by both processes"
        else:
            labels = make_images()["label"][:]
            assert drawn == list(ClassSampler(np.asarray(labels), name, 42, lambda epoch=epoch: (epoch, 3)))[:72]
