"""Implicit geometry under step imbalance, as a function of γ: theory, the unconstrained features model, a small ViT.

python recipes/geometry.py --output_dir outputs/geometry
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, ViTConfig, ViTForImageClassification, set_seed

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.datasets import digits, long_tail
from hf_sharp.geometry import Geometry, gram_distance, measure, predict_for_loss, train_ufm
from hf_sharp.losses import build_loss
from hf_sharp.model.predicted_geometry import cosines
from hf_sharp.recipe import read_flags, run_recipe
from hf_sharp.registry.limits import check_numbers
from hf_sharp.reports.plots import plot_geometry, plot_step_geometry
from hf_sharp.reports.results import machine_class

NAMES = {"cdt": "CDT", "ldt": "LDT"}
COLOURS = {"cdt": "#0072B2", "ldt": "#D55E00"}


@dataclass
class GeometryArguments:
    """Options of the geometry recipe."""

    output_dir: str = field(default="outputs/geometry", metadata={"help": "Folder for pictures and figures."})
    ratio: int = field(default=10, metadata={"help": "Examples of a frequent class per example of a rare class."})
    gammas: list[float] = field(
        default_factory=lambda: [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], metadata={"help": "Values of γ for the UFM."}
    )
    ridges: list[float] = field(
        default_factory=lambda: [1e-2, 1e-5, 1e-8], metadata={"help": "Ridges of the UFM; the last one is plotted."}
    )
    vit_gammas: list[float] = field(
        default_factory=lambda: [-0.5, 0.0, 0.5], metadata={"help": "Values of γ for the ViT."}
    )
    vit_steps: int = field(default=1500, metadata={"help": "Optimizer steps of the ViT."})
    seed: int = field(default=0, metadata={"help": "Seed of the ViT."})

    def __post_init__(self) -> None:
        whole = {"least": 1, "whole": True}
        limits = {"ratio": whole, "vit_steps": whole, "seed": {"least": 0, "below": 2**32, "whole": True}}
        check_numbers(self, limits | {"ridges": {"above": 0}, "gammas": {}, "vit_gammas": {}})


def panels(geometry: Geometry, half: int) -> list[float]:
    """Summarise classifier and embeddings, each by a ratio of squared norms and three mean cosines."""
    values = []
    for gram in geometry:
        squares, cosine = gram.diagonal(), cosines(gram)
        pairs = ~np.eye(half, dtype=bool)
        values += [
            squares[:half].mean() / squares[half:].mean(),
            *(cosine[:half, :half][pairs].mean(), cosine[half:, half:][pairs].mean(), cosine[:half, half:].mean()),
        ]
    return [float(value) for value in values]


def train_vit(loss: str, gamma: float, arguments: GeometryArguments) -> tuple[dict[str, Any], Any, Any]:
    """Train a small ViT on digits with step imbalance, and compare its geometry on the training set with theory."""
    set_seed(arguments.seed)
    train = long_tail(digits()["train"], arguments.ratio, "step")

    def to_pixels(row: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": np.asarray(row["image"], np.float32)[None] / 127 - 1}

    data = train.map(to_pixels, remove_columns="image").with_format("torch")
    size: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 4}
    size |= {"num_attention_heads": 4, "image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    model = ViTForImageClassification(ViTConfig(**size))
    args = SharpTrainingArguments(
        str(Path(arguments.output_dir) / "vit"),
        sharpness="none",
        loss=loss,
        loss_gamma=gamma,
        max_steps=arguments.vit_steps,
        per_device_train_batch_size=64,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        weight_decay=1e-3,
        save_strategy="no",
        report_to="none",
        seed=arguments.seed,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = SharpTrainer(model=model, args=args, train_dataset=data)
    trainer.train()
    batches = DataLoader(data, 256, collate_fn=trainer.data_collator)
    measured, predicted = measure(model, batches), predict_for_loss(trainer.class_loss)
    accuracy = trainer.evaluate(data)["eval_accuracy"]
    row = {"loss": loss, "gamma": gamma, "nc1": measured.nc1, "training_accuracy": accuracy}
    row |= {"distances": measured.distances(predicted), "class_counts": measured.class_counts.tolist()}
    centred = Geometry(measured.classifier_gram, measured.centred_embedding_gram)
    return row | {"panels": panels(centred, 5)}, measured, predicted


def ufm_rows(name: str, counts: list[int], arguments: GeometryArguments) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Train the UFM for every γ and ridge, and summarise its geometry at the last ridge."""
    rows, values = [], []
    for gamma in arguments.gammas:
        loss = build_loss(name, counts, loss_gamma=gamma)
        predicted = predict_for_loss(loss)
        for ridge in arguments.ridges:
            trained = train_ufm(loss, ridge, max_steps=20_000)
            distances = [gram_distance(*grams) for grams in zip(trained, predicted, strict=True)]
            rows.append({"loss": name, "gamma": gamma, "ridge": ridge, "distances": distances})
        values.append(panels(trained, 5))
        print(f"{NAMES[name]} γ={gamma:+.2f}: UFM is {distances[0]:.3f} from the prediction at ridge {ridge:g}")
    return rows, np.transpose(values)


def vit_rows(name: str, arguments: GeometryArguments, cross_entropy: list[tuple]) -> list[dict[str, Any]]:
    """Train the ViT for every γ; with γ = 0 every loss is cross-entropy, trained once and kept in `cross_entropy`."""
    rows = []
    for gamma in arguments.vit_gammas:
        if gamma or not cross_entropy:
            run = train_vit(name, gamma, arguments)
            if not gamma:
                cross_entropy.append(run)
        row = run[0] if gamma else cross_entropy[0][0]
        print(f"{NAMES[name]} γ={gamma:+.2f}: ViT is {row['distances']['classifier']:.3f} from the prediction")
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Predict, train, plot, and write the figures."""
    classes: Any = GeometryArguments
    (arguments,) = read_flags(HfArgumentParser(classes), argv)
    out, counts = Path(arguments.output_dir), [arguments.ratio] * 5 + [1] * 5
    result: dict[str, Any] = {
        "command": shlex.join(["python", "recipes/geometry.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine_class(),
        "seed": arguments.seed,
        "ratio": arguments.ratio,
        "ufm": [],
        "vit": [],
    }
    curves: dict[str, dict[str, Any]] = {}

    def add_curve(name: str, source: str, gammas: Any, values: Any, marker: str = "") -> None:
        curve = {"gamma": gammas, "values": values, "line": not marker, "color": COLOURS[name]}
        curves[f"{NAMES[name]}, {source}"] = curve | ({"marker": marker} if marker else {})

    for name, marker in zip(NAMES, "os", strict=True):
        fine = np.linspace(min(arguments.gammas), max(arguments.gammas), 121)
        theory = [panels(predict_for_loss(build_loss(name, counts, loss_gamma=g)), 5) for g in fine.tolist()]
        add_curve(name, "theory", fine, np.transpose(theory))
        rows, values = ufm_rows(name, counts, arguments)
        result["ufm"] += rows
        add_curve(name, "UFM", arguments.gammas, values, marker)
    cross_entropy: list[tuple] = []
    for name, marker in zip(NAMES, "^v", strict=True):
        rows = vit_rows(name, arguments, cross_entropy)
        result["vit"] += rows
        add_curve(name, "ViT", arguments.vit_gammas, np.transpose([row["panels"] for row in rows]), marker)
    for _, measured, predicted in cross_entropy:
        grams = (measured.classifier_gram, predicted.classifier_gram)
        plot_geometry(grams, measured.class_counts, out / "vit_cross_entropy.png")
    title = f"implicit geometry, half of the classes {arguments.ratio} times as frequent"
    plot_step_geometry(curves, out / "geometry.png", title)
    (out / "geometry.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"pictures {out}/geometry.png")
    return result


if __name__ == "__main__":
    sys.exit(run_recipe(main, "the same command starts again"))
