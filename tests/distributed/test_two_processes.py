"""Two processes with gloo: every process has its own ε, and gradients are averaged once."""

import numpy as np
import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.data.sampling import ClassSampler
from tests.conftest import CLASS_COUNTS, assert_same_bits, make_images, make_vit
from tests.naive import naive_gradient
from tests.processes import run_processes


def train_and_keep(out, accumulation, options):
    """Train in this process, and return its micro-batches, gradients and the number of all-reduces."""
    args = SharpTrainingArguments(
        str(out),
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulation,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.0,
        logging_steps=1,
        **{"sharpness": "sam", "loss": "cross_entropy", **options},
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
        windows[-1].append({name: value for name, value in inputs.items() if name != "host_labels"})
        return step(model, inputs, num_items_in_batch)

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.append(torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()]))
            windows.append([])

    trainer.training_step = training_step
    trainer.add_callback(Keep())
    trainer.train()
    return {
        "windows": windows,
        "gradients": gradients,
        "weights": trainer.model.state_dict(),
        "reduces": len(reduces),
        "logs": trainer.state.log_history,
    }


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
    ranks = run_processes(train_and_keep, tmp_path / "out", accumulation, options, folder=tmp_path)
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


def drawn_in_three_epochs(out, name, resume=None):
    """The examples that this process sees in every step."""
    args = SharpTrainingArguments(
        str(out),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        save_strategy="steps",
        save_steps=14,
        disable_tqdm=True,
        sharpness="none",
        sampler=name,
        remove_unused_columns=False,
    )
    trainer = SharpTrainer(make_vit(), args, train_dataset=make_images().add_column("index", range(74)))
    seen, step = [], trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        seen.append(inputs.pop("index").tolist())
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = training_step
    trainer.train(resume_from_checkpoint=resume)
    return seen


@pytest.mark.parametrize("name", ["instance", "progressive"])
def test_the_processes_share_one_draw_and_resume_it(tmp_path, name):
    out = tmp_path / "out"
    whole = run_processes(drawn_in_three_epochs, out, name, folder=tmp_path)
    resumed = run_processes(drawn_in_three_epochs, out, name, str(out / "checkpoint-14"), folder=tmp_path)
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
