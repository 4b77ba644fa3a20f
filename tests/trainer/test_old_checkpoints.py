"""Checkpoints written before the redesign (November 2026, commit e17ebe6) resume as they would have then.

Every zip holds checkpoint-5 of a run of 8 steps, and end.json: the run's options, and some of the weights that the same
code reached at step 8, on one CPU thread.
"""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from hf_sharp import SharpTrainer, SharpTrainingArguments
from tests.conftest import make_images, make_vit

ZIPS = sorted((Path(__file__).parent / "checkpoints").glob("*.zip"))


@pytest.mark.parametrize("file", ZIPS, ids=lambda file: file.stem)
def test_a_checkpoint_written_before_the_redesign_resumes(file, tmp_path):
    folder = tmp_path / "out" / "checkpoint-5"
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    written = json.loads((folder / "end.json").read_text())
    # Defaults that were other ones then.
    then = {"sharpness": "sam", "loss": "cross_entropy"}
    then |= {"rho": 0.05, "adaptive_scope": "matrices"} if written["options"].get("adaptive") else {}
    args = SharpTrainingArguments(
        str(folder.parent),
        max_steps=8,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **(then | written["options"]),
    )
    trainer = SharpTrainer(make_vit(dropout=0.1), args, train_dataset=make_images())
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8
    found = trainer.model.state_dict()
    for name, value in written["end"].items():
        # Bit for bit on the machine that wrote them; another CPU's kernels may round otherwise.
        torch.testing.assert_close(
            found[name], torch.tensor(value), rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
