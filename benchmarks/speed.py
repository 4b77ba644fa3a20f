"""Measure the times of passes over few examples, few-shot evaluation on known features, and a ViT's curvature.

python benchmarks/speed.py   # on an idle machine
"""

import json
import random
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.datasets import load_digits
from timing import seconds_of
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, ViTModel, set_seed

from hf_sharp.commands.sharpness import SharpnessArguments
from hf_sharp.datasets import long_tail
from hf_sharp.few_shot import Domain, evaluate, load_backbone
from hf_sharp.model.curvature import measure_curvature
from hf_sharp.model.group_batches import stratified_sample
from hf_sharp.reports.results import machine_class

ROOT = Path(__file__).resolve().parent.parent
VIT: dict[str, Any] = {"image_size": 28, "num_channels": 1, "patch_size": 4, "hidden_size": 256}
VIT |= {"num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024, "num_labels": 10}
ROUNDS = 40
CLASSES, PER_CLASS, EPISODES = 60, 20, {"prototype": 600, "affine": 100}


def few_shot(dim: int) -> dict[str, float]:
    """Measure episodes per second on features of a width, with as many examples as the recipe's font characters."""
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    rows = datasets.Dataset.from_dict({"label": labels})
    domain = Domain("features", rows, labels, [str(c) for c in range(CLASSES)], "pixel_values")
    model = ViTModel(ViTConfig(hidden_size=dim, num_hidden_layers=1, num_attention_heads=2, intermediate_size=dim))
    backbone = load_backbone(model, features="mean")
    centres = torch.randn(CLASSES, dim)
    features = centres[torch.from_numpy(labels)] + torch.randn(len(labels), dim)
    found = {}
    for adaptation, episodes in EPISODES.items():
        work = partial(evaluate, backbone, domain, adaptation, features=features)
        work(episodes=8)
        found[adaptation] = episodes / float(
            np.median([seconds_of(partial(work, episodes=episodes)) for _ in range(3)])
        )
    return found


def small_passes() -> dict[str, float]:
    """Measure a forward and backward pass over few images, the cost of a cheap ascent, relative to one over 32."""
    size_of_cost = {"image_size": 64, "num_channels": 3, "patch_size": 8, "num_labels": 100}  # as in cost.py
    model = ViTForImageClassification(ViTConfig(**VIT | size_of_cost))
    images, labels = torch.randn(32, 3, 64, 64), torch.arange(32)

    def gradient(size: int) -> None:
        model(pixel_values=images[:size], labels=labels[:size]).loss.backward()  # accumulates in .grad

    sizes = [1, 3, 8, 16, 32]
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size in random.sample(sizes, len(sizes)):
            seconds[size].append(seconds_of(partial(gradient, size)))
    whole = np.array(seconds.pop(32))
    return {str(size): float(np.median(np.array(found) / whole)) for size, found in seconds.items()}


def curvature() -> dict[str, float]:
    """Measure the curvature of a trained ViT on 1,000 digits, as `hf-sharp sharpness` does."""
    digits = load_digits()
    images = torch.nn.functional.interpolate(torch.tensor(digits.images / 8 - 1).float()[:, None], size=28)
    labels = torch.tensor(digits.target)
    tail = long_tail(datasets.Dataset.from_dict({"row": range(len(labels)), "label": labels}), 50.0)
    train = [{"pixel_values": images[row], "labels": labels[row]} for row in tail["row"]]
    model = ViTForImageClassification(ViTConfig(**VIT))
    with TemporaryDirectory() as folder:
        options: dict[str, Any] = {"max_steps": 200, "per_device_train_batch_size": 24, "learning_rate": 5e-4}
        Trainer(model, TrainingArguments(folder, report_to="none", **options), train_dataset=train).train()
    chosen = torch.tensor(stratified_sample(labels, 1000))
    chosen = chosen[labels[chosen].argsort()]  # so that most batches have one group, as in the command
    batches = [{"pixel_values": images[rows], "labels": labels[rows]} for rows in chosen.split(32)]
    counts, sample = np.bincount(tail["label"]), SharpnessArguments.hessian_examples
    work = partial(measure_curvature, model, batches, counts, hessian_examples=sample, progress="curvature")
    return {"parameters": model.num_parameters(), "examples": 1000, "hessian_examples": sample} | {
        "seconds": seconds_of(work)
    }


def main() -> None:
    """Measure, and write benchmarks/results/speed.json."""
    set_seed(0)
    result: dict[str, Any] = {
        "command": "python benchmarks/speed.py",
        "machine": machine_class(),
        "seed": 0,
        "small_passes": small_passes(),
        "episodes_per_second": {str(dim): few_shot(dim) for dim in (96, 384)},
        "curvature": curvature(),
    }
    print(json.dumps(result, indent=1))
    (ROOT / "benchmarks" / "results" / "speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
