"""Measure the costs of the one-pass ascent, a late sharp phase and an initialized head, as ratios of interleaved times.

    python benchmarks/ascent_costs.py [--rounds 30]

- sam, momentum: a step against a plain step of the same round.
- sharpness_after=0.8: 20 steps of a run (16 plain, 4 sharp) against 20 plain steps.
- head_init="class_mean": the pass over the training set against the forward passes of one epoch.

Medians over rounds with quartiles. Writes benchmarks/results/ascent_costs.json.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from timing import seconds_of
from transformers import ViTConfig, ViTForImageClassification, set_seed

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.reports.results import machine_class, versions
from hf_sharp.trainer.head_start import start_head

RESULT = Path(__file__).with_name("results") / "ascent_costs.json"
COUNTS = [int(100 * 0.02 ** (rank / 19)) for rank in range(20)]
METHODS: dict[str, dict[str, Any]] = {
    "none": {"sharpness": "none"},
    "sam": {"sharpness": "sam"},
    "sam, momentum": {"sharpness": "sam", "ascent": "momentum"},
}


def make_data() -> datasets.Dataset:
    """Make images of noise whose classes follow COUNTS."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(COUNTS)), COUNTS))
    features = datasets.Features(
        {
            "pixel_values": datasets.Array3D((3, 32, 32), "float32"),
            "label": datasets.ClassLabel(names=[str(rank) for rank in range(len(COUNTS))]),
        }
    )
    pixels = rng.normal(size=(len(labels), 3, 32, 32)).astype(np.float32)
    return datasets.Dataset.from_dict({"pixel_values": pixels, "label": labels}, features=features).with_format("torch")


def make_trainer(data: datasets.Dataset, **options: Any) -> SharpTrainer:
    """Make a trainer of a ViT of 5 million parameters."""
    set_seed(0)
    size: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    size |= {"num_hidden_layers": 6, "num_labels": len(COUNTS), "image_size": 32, "patch_size": 4}
    args = SharpTrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        max_steps=10**6,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    trainer = SharpTrainer(ViTForImageClassification(ViTConfig(**size)), args, train_dataset=data)
    trainer.create_optimizer_and_scheduler(10**6)
    trainer.state.max_steps = 10**6
    return trainer


def step_of(trainer: SharpTrainer, batch: dict[str, Any]) -> Callable[[], None]:
    """Make a function that takes one whole optimizer step."""
    model, optimizer = cast(torch.nn.Module, trainer.model), cast(torch.optim.Optimizer, trainer.optimizer)

    def step() -> None:
        trainer.engine.begin_window()
        trainer.training_step(model, dict(batch), torch.tensor(len(batch["labels"])))
        optimizer.step()
        optimizer.zero_grad()
        trainer.state.global_step += 1

    return step


def summary(ratios: list[float]) -> dict[str, float]:
    """Compute median and quartiles."""
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"median": float(middle), "lower_quartile": float(low), "upper_quartile": float(high)}


def measure_steps(data: datasets.Dataset, rounds: int) -> dict[str, dict[str, float]]:
    """Time a step of every method in every round, in shuffled order."""
    rows = data[:32]
    batch = {"pixel_values": rows["pixel_values"], "labels": rows["label"], "host_labels": rows["label"].numpy()}
    steps = {name: step_of(make_trainer(data, **options), batch) for name, options in METHODS.items()}
    for step in steps.values():
        for _ in range(12):  # until after the one-time measurement of the ascent's effect
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            times[name].append(seconds_of(steps[name]))
    return {
        name: summary([mine / plain for mine, plain in zip(values, times["none"], strict=True)])
        for name, values in times.items()
    }


def measure_late(data: datasets.Dataset, rounds: int) -> dict[str, float]:
    """Time runs of 20 steps whose last fifth is sharp against plain ones."""
    rows = data[:32]
    batch = {"pixel_values": rows["pixel_values"], "labels": rows["label"]}
    trainers = [make_trainer(data, sharpness="none"), make_trainer(data, sharpness="sam", sharpness_after=0.8)]
    steps = [step_of(trainer, batch) for trainer in trainers]

    def run(which: int) -> None:
        trainers[which].state.global_step, trainers[which].state.max_steps = 0, 20
        for _ in range(20):
            steps[which]()

    for which in (0, 1):
        run(which)
    return summary([seconds_of(lambda: run(1)) / seconds_of(lambda: run(0)) for _ in range(rounds)])


def measure_head(data: datasets.Dataset, rounds: int) -> dict[str, float]:
    """Time the pass that sets the head against the forward passes of one epoch."""
    trainer = make_trainer(data, sharpness="none", head_init="class_mean")
    model = cast(torch.nn.Module, trainer.model)

    def epoch() -> None:
        with torch.inference_mode():
            for batch in trainer.get_test_dataloader(data):
                model(pixel_values=batch["pixel_values"])

    start_head(trainer, model)
    return summary([seconds_of(lambda: start_head(trainer, model)) / seconds_of(epoch) for _ in range(rounds)])


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    data = make_data()
    result = {
        "command": f"python benchmarks/ascent_costs.py --rounds {rounds}",
        "model": "ViT of 5 M parameters, 32 × 32 pixels, batches of 32, float32",
        "rounds": rounds,
        "machine": machine_class(),
        "versions": versions(),
        "steps": measure_steps(data, rounds),
        "sharpness_after=0.8": measure_late(data, max(rounds // 5, 2)),
        "head_init=class_mean": measure_head(data, max(rounds // 5, 2)),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
