"""How long few-shot evaluation takes on features that are known, and measuring the curvature of a ViT.

python benchmarks/speed.py   # on an idle machine
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel, set_seed

from hf_sharp.curvature import measure_curvature
from hf_sharp.few_shot import Domain, evaluate, load_backbone
from hf_sharp.results import machine_class

ROOT = Path(__file__).resolve().parent.parent
CLASSES, PER_CLASS, EPISODES = 60, 20, {"prototype": 600, "affine": 100}


def seconds_of(work: Callable[[], Any]) -> float:
    """Do some work; how long it took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def few_shot(dim: int) -> dict[str, float]:
    """Measure episodes per second on features of a width: as many examples as the font characters of the recipe."""
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


def curvature() -> dict[str, float]:
    """Measure the curvature of a ViT on 1,000 images as `hf-sharp sharpness` does."""
    size: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6}
    size |= {"num_attention_heads": 4, "image_size": 64, "patch_size": 8, "num_labels": 10}
    model = ViTForImageClassification(ViTConfig(**size))
    counts = [int(1000 * 100 ** (-rank / 9)) for rank in range(10)]
    labels = torch.repeat_interleave(torch.arange(10), 100)
    batches = [
        {"pixel_values": torch.randn(len(rows), 3, 64, 64), "labels": rows}
        for rows in labels[torch.randperm(1000)].split(64)
    ]
    seconds = seconds_of(lambda: measure_curvature(model, batches, counts, hessian_examples=200))
    return {"parameters": sum(p.numel() for p in model.parameters()), "examples": 1000, "seconds": seconds}


def main() -> None:
    """Measure, and write benchmarks/results/speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without_curvature", action="store_true", help="few-shot tasks only")
    arguments = parser.parse_args()
    set_seed(0)
    result: dict[str, Any] = {
        "command": "python benchmarks/speed.py" + " --without_curvature" * arguments.without_curvature,
        "machine": machine_class(),
        "seed": 0,
        "episodes_per_second": {str(dim): few_shot(dim) for dim in (96, 384)},
    }
    if not arguments.without_curvature:
        result["curvature"] = curvature()
    print(json.dumps(result, indent=1))
    (ROOT / "benchmarks" / "results" / "speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
