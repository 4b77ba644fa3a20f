"""Measure where ASAM's perturbation lies, and which radius makes it as strong as SAM's at 0.05.

    python benchmarks/asam_scope.py [--backbone FOLDER]

Measured for a small ViT after one epoch on digits and, if `--backbone` names one, for a pretrained BERT with a new
head: the share of ‖ε‖² in tensors of two or more dimensions, and the radius at which the loss rises as much as with SAM
at ρ = 0.05, on the same batches. Writes benchmarks/results/asam_scope.json.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, ViTConfig, ViTForImageClassification, set_seed

from hf_sharp.data.embedded import digits
from hf_sharp.data.long_tail import long_tail
from hf_sharp.reports.results import machine_class, versions
from hf_sharp.sharpness.ascent import gradient_to_perturbation, perturbed, trainable_parameters

RESULT = Path(__file__).with_name("results") / "asam_scope.json"
SAM_RHO = 0.05
METRICS: dict[str, dict[str, Any]] = {
    "sam": {},
    "asam, all": {"adaptive_eta": 0.01, "adaptive_scope": "all"},
    "asam, matrices": {"adaptive_eta": 0.01, "adaptive_scope": "matrices"},
}


def digits_vit() -> tuple[nn.Module, list[Callable[[], Tensor]]]:
    """A small ViT after one epoch on long-tailed digits, and the losses of four batches."""
    set_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "num_labels": 10,
    }
    config = ViTConfig(image_size=8, patch_size=2, num_channels=1, **sizes)
    model = ViTForImageClassification(config)
    data = long_tail(digits()["train"], 20).shuffle(seed=0)
    pixels = torch.stack([torch.from_numpy(np.array(image)).float()[None] / 16 - 0.5 for image in data["image"]])
    labels = torch.tensor(data["label"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for rows in torch.randperm(len(labels)).split(16):
        model(pixel_values=pixels[rows], labels=labels[rows]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    batches = torch.randperm(len(labels)).split(32)[:4]
    return model, [functools.partial(_loss, model, pixel_values=pixels[rows], labels=labels[rows]) for rows in batches]


def bert(folder: str) -> tuple[nn.Module, list[Callable[[], Tensor]]]:
    """A pretrained BERT with a new head of 10 classes, and the losses of four batches of random tokens."""
    set_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=10, ignore_mismatched_sizes=True)
    tokens, labels = torch.randint(1000, 20000, (4, 16, 24)), torch.randint(0, 10, (4, 16))
    return model, [functools.partial(_loss, model, input_ids=tokens[i], labels=labels[i]) for i in range(4)]


def _loss(model: nn.Module, **inputs: Tensor) -> Tensor:
    return model(**inputs).loss


def measure(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, dict[str, float]]:
    """Measure the three metrics on one batch.

    Args:
        model: the model, in evaluation mode.
        loss: returns the loss of the batch at the current weights.

    Returns:
        For each metric: `matrix_share` of ‖ε‖² at ρ = 1, and `rho`, the radius with the same rise as SAM at 0.05.
    """
    named = [(w, g) for w, g in zip(trainable_parameters(model), gradients(model, loss), strict=True) if g is not None]
    weights, gradient = [w for w, _ in named], [g for _, g in named]
    base = loss().item()

    def rise(rho: float, metric: dict[str, Any]) -> float:
        epsilon = [g.clone() for g in gradient]
        gradient_to_perturbation(weights, epsilon, rho, **metric)
        with perturbed(weights, epsilon), torch.no_grad():
            return loss().item() - base

    wanted, found = rise(SAM_RHO, {}), {}
    for name, metric in METRICS.items():
        epsilon = [g.clone() for g in gradient]
        gradient_to_perturbation(weights, epsilon, 1.0, **metric)
        squares = {
            matrix: sum(float((e**2).sum()) for e in epsilon if (e.ndim > 1) == matrix) for matrix in (True, False)
        }
        upper = next(rho for rho in (0.01 * 2**n for n in range(16)) if rise(rho, metric) > wanted)
        found[name] = {
            "matrix_share": squares[True] / (squares[True] + squares[False]),
            "rho": float(brentq(lambda rho, metric=metric: rise(rho, metric) - wanted, 0.0, upper, xtol=1e-4)),
        }
    return found


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor | None]:
    """The gradient of a loss, one tensor per trainable parameter."""
    return list(torch.autograd.grad(loss(), trainable_parameters(model), allow_unused=True))


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="the folder of a pretrained BERT")
    backbone = parser.parse_args().backbone
    models = {"small ViT, one epoch on digits": digits_vit()}
    if backbone:
        models[f"{Path(backbone).name}, new head"] = bert(backbone)
    figures = {}
    for name, (model, losses) in models.items():
        model.eval()
        batches = [measure(model, loss) for loss in losses]
        figures[name] = {
            metric: {key: median(batch[metric][key] for batch in batches) for key in ("matrix_share", "rho")}
            for metric in METRICS
        }
    result = {
        "command": "python benchmarks/asam_scope.py --backbone FOLDER",
        "seeds": [0],
        "batches": 4,
        "machine": machine_class(),
        "versions": versions(),
        "models": figures,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
