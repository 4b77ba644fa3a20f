"""What one training step costs: SharpTrainer's methods against a plain Trainer step, in one process.

python benchmarks/cost.py

Every round takes one step of every method, in shuffled order, on the same batch; the ratio to the plain step of the
same five rounds is what counts, so a machine that slows down slows both, and what happens every fifth step counts in
full. Passes are counted by hooks, not assumed.
"""

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_sharp import ClassFrequencies, SharpTrainer, SharpTrainingArguments
from hf_sharp.recipe.runs import machine_class

COUNTS = [int(500 * 0.01 ** (rank / 99)) for rank in range(100)]
METHODS: dict[str, dict] = {
    "none": {"sharpness": "none"},
    "sam": {"sharpness": "sam"},
    "asam": {"sharpness": "sam", "adaptive": True, "rho": 0.5},
    "imbsam": {"sharpness": "imbsam"},
    "focal_sam": {"sharpness": "focal_sam"},
    "cc_sam": {"sharpness": "cc_sam"},
    "sam, learned radius": {"sharpness": "sam", "rho_schedule": "learned", "rho_update_every": 5},
}
ROOT = Path(__file__).resolve().parent.parent


def make_model(kind: str) -> torch.nn.Module:
    """Make a model whose step takes some tenths of a second on two cores."""
    set_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "num_labels": len(COUNTS),
    }
    if kind == "vit":
        return ViTForImageClassification(ViTConfig(**size, image_size=64, patch_size=8))
    return BertForSequenceClassification(BertConfig(**size, vocab_size=8000))


def make_batch(kind: str, size: int) -> dict[str, torch.Tensor]:
    """Make a batch whose classes follow COUNTS."""
    rng = np.random.default_rng(0)
    labels = torch.tensor(rng.choice(len(COUNTS), size, p=np.array(COUNTS) / sum(COUNTS)))
    if kind == "vit":
        return {"pixel_values": torch.randn(size, 3, 64, 64), "labels": labels}
    tokens = torch.tensor(rng.integers(5, 8000, (size, 64)))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def make_trainer(model: torch.nn.Module, options: dict | None, validation: Any = None) -> Any:
    """Make a trainer of one method, or for None the plain Trainer, that is ready for single steps."""
    args = SharpTrainingArguments(
        tempfile.mkdtemp(), report_to="none", save_strategy="no", max_steps=10**6, **(options or {"sharpness": "none"})
    )
    if options is None:
        trainer: Any = Trainer(model=model, args=args)
    else:
        frequencies = ClassFrequencies.from_counts(COUNTS)
        learned = options.get("rho_schedule") == "learned"
        trainer = SharpTrainer(
            model=model, args=args, class_frequencies=frequencies, rho_dataset=validation if learned else None
        )
    trainer.create_optimizer_and_scheduler(10**6)
    trainer.state.max_steps = 10**6
    return trainer


def step(trainer: Any, batch: dict[str, torch.Tensor]) -> float:
    """Take one step, optimizer included, as the training loop does; seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    trainer.training_step(trainer.model, dict(batch), torch.tensor(len(batch["labels"])))
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    trainer.state.global_step += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def count_passes(trainer: Any, batch: dict[str, torch.Tensor]) -> dict[str, int]:
    """Count forward and backward passes through the first encoder layer during one step."""
    counted: Counter = Counter()
    layers = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.ModuleList))
    hooks = [
        layers[0].register_forward_hook(lambda *_: counted.update(["forward"])),
        layers[0].register_full_backward_hook(lambda *_: counted.update(["backward"])),
    ]
    step(trainer, batch)
    for hook in hooks:
        hook.remove()
    return dict(counted)


def measure(kind: str, rounds: int, batch_size: int) -> dict:
    """Measure every method on one model: median and quartiles of the ratio to the plain step."""
    model: Any = make_model(kind)
    batch = {name: value.to(model.device) for name, value in make_batch(kind, batch_size).items()}
    trainers = {"plain Trainer": make_trainer(model, None)}
    columns = {name.replace("labels", "label"): value.tolist() for name, value in make_batch(kind, 256).items()}
    validation = datasets.Dataset.from_dict(columns).with_format("torch")
    trainers |= {name: make_trainer(model, options, validation) for name, options in METHODS.items()}
    passes = {name: count_passes(trainer, batch) for name, trainer in trainers.items()}
    for trainer in trainers.values():
        step(trainer, batch)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    order = list(trainers)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            seconds[name].append(step(trainers[name], batch))
    fives = {name: np.reshape(values, (-1, 5)).mean(1) for name, values in seconds.items()}
    plain = fives["plain Trainer"]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch_size": batch_size,
        "plain_step_ms": round(1000 * float(np.median(plain)), 1),
        "methods": {
            name: {
                "passes": passes[name],
                "ratio_quartiles": [round(float(q), 3) for q in np.percentile(values / plain, [25, 50, 75])],
            }
            for name, values in fives.items()
        },
    }


def main() -> None:
    """Measure, show, and write benchmarks/results/cost.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="a multiple of 5")
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args()
    random.seed(0)
    result: dict[str, Any] = {
        "command": f"python benchmarks/cost.py --rounds {arguments.rounds} --batch_size {arguments.batch_size}",
        "machine": machine_class(),
        "seed": 0,
        "versions": {"torch": torch.__version__.partition("+")[0]},
        "models": {kind: measure(kind, arguments.rounds, arguments.batch_size) for kind in ("vit", "bert")},
    }
    table = Table("step", *(f"{kind}: times plain (quartiles)" for kind in result["models"]), "passes (fwd + bwd)")
    for name in next(iter(result["models"].values()))["methods"]:
        rows = [model["methods"][name] for model in result["models"].values()]
        cells = ["{1:.2f} ({0:.2f} to {2:.2f})".format(*row["ratio_quartiles"]) for row in rows]
        table.add_row(name, *cells, f"{rows[0]['passes']['forward']} + {rows[0]['passes']['backward']}")
    Console().print(table)
    (ROOT / "benchmarks" / "results" / "cost.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
