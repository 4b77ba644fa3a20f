"""Implicit geometry under step imbalance: theory, the unconstrained features model, and a small ViT, over γ.

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
from hf_sharp.geometry.predict import cosines
from hf_sharp.losses import build_loss
from hf_sharp.recipe import read_flags, run_recipe
from hf_sharp.reports.plots import plot_geometry, plot_step_geometry
from hf_sharp.reports.results import machine_class

NAMES = {"cdt": "CDT", "ldt": "LDT"}
COLOURS = {"cdt": "#0072B2", "ldt": "#D55E00"}


@dataclass
class GeometryArguments:
    """Which geometry."""

    output_dir: str = field(default="outputs/geometry", metadata={"help": "Where pictures and figures go."})
    ratio: int = field(default=10, metadata={"help": "Examples of a frequent class for one of a rare class."})
    gammas: list[float] = field(
        default_factory=lambda: [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], metadata={"help": "Where the UFM is trained."}
    )
    ridges: list[float] = field(
        default_factory=lambda: [1e-2, 1e-5, 1e-8], metadata={"help": "The UFM's ridges; the last one is drawn."}
    )
    vit_gammas: list[float] = field(
        default_factory=lambda: [-0.5, 0.0, 0.5], metadata={"help": "Where the ViT is trained; none: leave it out."}
    )
    vit_steps: int = field(default=1500, metadata={"help": "The optimizer steps of the ViT."})
    seed: int = field(default=0, metadata={"help": "Of the ViT."})


def panels(geometry: Geometry, half: int) -> list[float]:
    """Sum a geometry up: of classifier and embeddings, the ratio of squared norms, and three mean cosines."""
    values = []
    for gram in geometry:
        squares, cosine = gram.diagonal(), cosines(gram)
        inside = ~np.eye(half, dtype=bool)
        values += [
            squares[:half].mean() / squares[half:].mean(),
            *(cosine[:half, :half][inside].mean(), cosine[half:, half:][inside].mean(), cosine[:half, half:].mean()),
        ]
    return [float(value) for value in values]


def train_vit(loss: str, gamma: float, arguments: GeometryArguments) -> tuple[dict[str, Any], Any, Any]:
    """Train a small ViT on digits with step imbalance; its geometry on the training set, beside the prediction."""
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


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Predict, train, draw, and write everything down."""
    classes: Any = GeometryArguments
    (arguments,) = read_flags(HfArgumentParser(classes), argv)
    out, counts, curves = Path(arguments.output_dir), [arguments.ratio] * 5 + [1] * 5, {}
    result: dict[str, Any] = {
        "command": shlex.join(["python", "recipes/geometry.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine_class(),
        "seed": arguments.seed,
        "ratio": arguments.ratio,
        "ufm": [],
        "vit": [],
    }
    for name, label in NAMES.items():
        fine = np.linspace(min(arguments.gammas), max(arguments.gammas), 121)
        theory = [panels(predict_for_loss(build_loss(name, counts, loss_gamma=g)), 5) for g in fine.tolist()]
        curves[f"{label}, theory"] = {
            "gamma": fine,
            "values": np.transpose(theory),
            "line": True,
            "color": COLOURS[name],
        }
        trained = []
        for gamma in arguments.gammas:
            loss = build_loss(name, counts, loss_gamma=gamma)
            predicted = predict_for_loss(loss)
            for ridge in arguments.ridges:
                found = train_ufm(loss, ridge, max_steps=20_000)
                distances = [gram_distance(one, other) for one, other in zip(found, predicted, strict=True)]
                result["ufm"].append({"loss": name, "gamma": gamma, "ridge": ridge, "distances": distances})
            trained.append(panels(found, 5))
            print(f"{label} γ={gamma:+.2f}: UFM is {distances[0]:.3f} from the prediction at ridge {ridge:g}")
        curves[f"{label}, UFM"] = {"gamma": arguments.gammas, "values": np.transpose(trained), "line": False}
        curves[f"{label}, UFM"] |= {"color": COLOURS[name], "marker": "os"[name == "ldt"]}
    trained_vits: dict[tuple[str, float], tuple] = {}
    for name, label in NAMES.items() if arguments.vit_gammas else ():
        rows = []
        for gamma in arguments.vit_gammas:
            what = (name, gamma) if gamma else ("cross_entropy", 0.0)
            if what not in trained_vits:
                trained_vits[what] = train_vit(name, gamma, arguments)
            row, measured, predicted = trained_vits[what]
            rows.append(row["panels"])
            result["vit"].append(row)
            print(f"{label} γ={gamma:+.2f}: ViT is {row['distances']['classifier']:.3f} from the prediction")
            if gamma == 0 and name == "cdt":
                grams = (measured.classifier_gram, predicted.classifier_gram)
                plot_geometry(grams, measured.class_counts, out / "vit_cross_entropy.png")
        curves[f"{label}, ViT"] = {"gamma": arguments.vit_gammas, "values": np.transpose(rows), "line": False}
        curves[f"{label}, ViT"] |= {"color": COLOURS[name], "marker": "^v"[name == "ldt"]}
    title = f"implicit geometry, half of the classes {arguments.ratio} times as frequent"
    plot_step_geometry(curves, out / "geometry.png", title)
    (out / "geometry.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"pictures {out}/geometry.png")
    return result


if __name__ == "__main__":
    sys.exit(run_recipe(main))
