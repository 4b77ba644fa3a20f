"""Measure the cost of a training step with SharpTrainer's methods and other libraries, relative to plain Trainer steps.

python benchmarks/cost.py   # needs pip install -e '.[benchmarks]'
python benchmarks/cost.py --size base --batch_size 64 --bf16 --rounds 10   # ViT-B/16 and BERT-base, for a GPU

Every round takes one step of every method, in shuffled order and on the same batch, in one process. The result is the
ratio to the plain steps of the same rounds, which does not change if the machine slows down. A method that acts every
k-th step is compared over k rounds at once. Passes are counted by hooks, in examples; peak memory is the allocator's.
The peers are pytorch_optimizer's SAM and LookSAM, and Focal-SAM as published, with three backward passes.
"""

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_optimizer
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from timing import seconds_of
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from hf_sharp import ClassFrequencies, SharpTrainer, SharpTrainingArguments
from hf_sharp.reports.results import machine_class
from hf_sharp.sharpness import class_coefficients
from hf_sharp.sharpness.ascent import gradient_to_perturbation, perturbed

COUNTS = [int(500 * 0.01 ** (rank / 99)) for rank in range(100)]
METHODS: dict[str, dict] = {
    "none": {"sharpness": "none"},
    "sam": {"sharpness": "sam"},
    "asam": {"sharpness": "sam", "adaptive": True, "rho": 0.5},
    "imbsam": {"sharpness": "imbsam", "rare_threshold": 50},
    "focal_sam": {"sharpness": "focal_sam"},
    "cc_sam": {"sharpness": "cc_sam"},
    "sam, learned radius": {"sharpness": "sam", "rho_schedule": "learned", "rho_update_every": 5},
    "sam, ascent_fraction 1/4": {"sharpness": "sam", "ascent_fraction": 0.25},
    "focal_sam, stochastic, ascent_fraction 1/4": {
        "sharpness": "focal_sam",
        "focal_sampling": "stochastic",
        "ascent_fraction": 0.25,
    },
    "sam, sharpness_every 10": {"sharpness": "sam", "sharpness_every": 10},
    "sam, momentum": {"sharpness": "sam", "ascent": "momentum"},
}
PEERS = (
    "peer: pytorch_optimizer SAM",
    "peer: pytorch_optimizer LookSAM, k = 10",
    "peer: Focal-SAM, three backward passes",
)
PERIODS = {"sam, learned radius": 5, "sam, sharpness_every 10": 10, PEERS[1]: 10}
KINDS = ("vit", "bert", "vit, LoRA", "bert, LoRA")
MEASURED = ("rounds", "batch_size", "size")
PACKAGES = ("torch", "transformers", "pytorch_optimizer")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Size:
    """The sizes of models and inputs."""

    model: dict[str, Any]
    image: dict[str, Any]
    tokens: int = 64
    vocabulary: int = 8000


_SMALL = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 6}
_TINY = {"hidden_size": 36, "intermediate_size": 96, "num_attention_heads": 2, "num_hidden_layers": 6}
SIZES = {
    "tiny": Size(_TINY, {"image_size": 8, "patch_size": 8}, 8),  # 100 k parameters in 100 tensors
    "small": Size(_SMALL, {"image_size": 64, "patch_size": 8}),  # some tenths of a second a step on two cores
    "base": Size({}, {"image_size": 224, "patch_size": 16}, 128, 30522),  # ViT-B/16 and BERT-base
}


def make_model(kind: str, size: Size) -> torch.nn.Module:
    """Make a model, randomly initialised."""
    set_seed(0)
    shape: dict[str, Any] = size.model | {"num_labels": len(COUNTS)}
    if kind.startswith("bert"):
        model: Any = BertForSequenceClassification(BertConfig(**shape, vocab_size=size.vocabulary))
    else:
        model = ViTForImageClassification(ViTConfig(**shape, **size.image))
    if kind.endswith("LoRA"):
        lora = LoraConfig(r=4, target_modules=r".*(query|value|q_proj|v_proj)", modules_to_save=["classifier"])
        model = get_peft_model(model, lora)
    return model


def make_batch(kind: str, examples: int, size: Size) -> dict[str, torch.Tensor]:
    """Make a batch whose classes follow COUNTS."""
    rng = np.random.default_rng(0)
    labels = torch.tensor(rng.choice(len(COUNTS), examples, p=np.array(COUNTS) / sum(COUNTS)))
    if kind.startswith("bert"):
        tokens = torch.tensor(rng.integers(5, size.vocabulary, (examples, size.tokens)))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    side = size.image["image_size"]
    return {"pixel_values": torch.randn(examples, 3, side, side), "labels": labels}


def make_trainer(model: torch.nn.Module, options: dict | None, validation: Any, bf16: bool) -> Any:
    """Make a trainer for one method, or the plain Trainer for None, that is ready to take single steps."""
    args = SharpTrainingArguments(
        *(tempfile.mkdtemp(),),
        report_to="none",
        save_strategy="no",
        max_steps=10**6,
        bf16=bf16,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **(options or {"sharpness": "none"}),
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


def step_of(trainer: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return a function that takes a whole step of a trainer, with the optimizer; batches have labels on the host."""
    sharp = isinstance(trainer, SharpTrainer)
    on_host = {"host_labels": batch["labels"].cpu().numpy()} if sharp else {}

    def step() -> None:
        trainer.training_step(trainer.model, batch | on_host, torch.tensor(len(batch["labels"])))
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1

    return step


def step_of_peer(name: str, plain: Any, model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """Return a function that takes a step of a peer, with the passes of the plain Trainer."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": 5e-5, "weight_decay": 0.0, "fused": True}

    def backward() -> Any:
        with plain.compute_loss_context_manager():
            loss = model(**batch).loss
        loss.backward()
        return loss

    def closure() -> Any:
        loss = backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        return loss

    if name != PEERS[2]:
        kind: Any = pytorch_optimizer.SAM if name == PEERS[0] else pytorch_optimizer.LookSAM
        every = {"k": 10} if name == PEERS[1] else {}
        optimizer = kind(parameters, torch.optim.AdamW, rho=0.05, **every, **options)

        def step() -> None:
            model.train()
            backward()
            optimizer.step(closure)
            model.zero_grad()

        return step

    adamw = torch.optim.AdamW(parameters, **options)
    c = class_coefficients("focal_sam", COUNTS).float().to(batch["labels"].device)[batch["labels"]]
    inputs = {key: value for key, value in batch.items() if key != "labels"}

    def losses() -> torch.Tensor:
        with plain.compute_loss_context_manager():
            return functional.cross_entropy(model(**inputs).logits.float(), batch["labels"], reduction="none")

    def focal_step() -> None:
        model.train()
        at_w = losses()
        (c * at_w).mean().backward(retain_graph=True)
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        moved = {p: 0.05 * p.grad / (norm + 1e-12) for p in parameters if p.grad is not None}
        model.zero_grad()
        ((1 - c) * at_w).mean().backward()
        with torch.no_grad():
            for p, epsilon in moved.items():
                p.add_(epsilon)
        (c * losses()).mean().backward()
        with torch.no_grad():
            for p, epsilon in moved.items():
                p.sub_(epsilon)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        model.zero_grad()

    return focal_step


def count_passes(step: Callable[[], None], model: Any, steps: int, batch_size: int) -> dict[str, float]:
    """Count forward and backward passes through the first encoder layer, in examples per example of a batch."""
    counted: Counter = Counter()
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[0]

    def on_backward(module: Any, of_inputs: Any, of_outputs: Any) -> None:
        counted["backward"] += len(of_outputs[0])

    hooks = [
        layer.register_forward_pre_hook(lambda module, inputs: counted.update({"forward": len(inputs[0])})),
        layer.register_full_backward_hook(on_backward),
    ]
    for _ in range(steps):
        step()
    for hook in hooks:
        hook.remove()
    return {name: round(counted[name] / steps / batch_size, 3) for name in ("forward", "backward")}


def peak_bytes(step: Callable[[], None]) -> int:
    """Measure the peak of the memory that a step allocates, above what was allocated before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        trace = json.loads(Path(folder, "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    totals = np.cumsum([event["args"]["Bytes"] for event in events])
    return int(totals.max())


def quartiles(values: np.ndarray) -> list[float]:
    """Return the first quartile, the median and the third quartile, to three digits."""
    return [round(float(q), 3) for q in np.percentile(values, [25, 50, 75])]


def measure(kind: str, arguments: argparse.Namespace) -> dict:
    """Measure every method on one model: median and quartiles of the ratio to the plain step."""
    size, batch_size, bf16 = SIZES[arguments.size], arguments.batch_size, arguments.bf16
    model: Any = make_model(kind, size)
    plain = make_trainer(model, None, None, bf16)
    model = plain.accelerator.prepare_model(model)  # wraps the forward pass in autocast, if asked for
    batch = {name: value.to(plain.args.device) for name, value in make_batch(kind, batch_size, size).items()}
    held_out = make_batch(kind, 256, size)
    validation = [{name: value[i] for name, value in held_out.items()} for i in range(256)]
    steps = {"plain Trainer": step_of(plain, batch)}
    for name, options in METHODS.items():
        trainer = make_trainer(model, options, validation, bf16)
        steps[name] = step_of(trainer, batch)
    steps |= {name: step_of_peer(name, plain, model, batch) for name in PEERS}
    passes = {name: count_passes(step, model, PERIODS.get(name, 1), batch_size) for name, step in steps.items()}
    if arguments.compile:
        model.compile()
        for step in steps.values():
            step()
    memory = {name: max(peak_bytes(step) for _ in range(PERIODS.get(name, 1))) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(arguments.rounds):
        random.shuffle(order)
        for name in order:
            seconds[name].append(seconds_of(steps[name]))

    def ratios(name: str) -> np.ndarray:
        one, other = (np.reshape(seconds[n], (-1, PERIODS.get(name, 1))).mean(1) for n in (name, "plain Trainer"))
        return one / other

    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    rare = float((np.array(COUNTS)[batch["labels"].cpu().numpy()] < METHODS["imbsam"]["rare_threshold"]).mean())
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable_bytes": trainable,
        "batch_size": batch_size,
        "rare_share": rare,
        "plain_step_ms": round(1000 * float(np.median(seconds["plain Trainer"])), 1),
        "plain_peak_bytes": memory["plain Trainer"],
        "methods": {
            name: {
                "passes": passes[name],
                "ratio_quartiles": quartiles(ratios(name)),
                "peak_over_plain": round((memory[name] - memory["plain Trainer"]) / trainable, 3),
            }
            for name in seconds
        },
    }


def overhead(rounds: int) -> dict:
    """Measure the overhead of SAM on a tiny model, in milliseconds: the time of a step minus that of two plain steps.

    Also measure the part of it that moves the weights to w + ε and back, with five kernels per tensor.
    """
    model: Any = make_model("vit", SIZES["tiny"])
    batch = make_batch("vit", 4, SIZES["tiny"])
    trainers = {name: make_trainer(model, METHODS[name], None, False) for name in ("none", "sam")}
    batch = {name: value.to(trainers["none"].args.device) for name, value in batch.items()}
    size = torch.tensor(4)
    for trainer in trainers.values():
        trainer.training_step(model, dict(batch), size)
    tensors = [p for p in model.parameters() if p.requires_grad]

    def move() -> None:
        gradient_to_perturbation(tensors, epsilon, 0.05)
        with perturbed(tensors, epsilon):
            pass

    differences, moves = [], []
    for _ in range(rounds):
        plain = [seconds_of(lambda: trainers["none"].training_step(model, dict(batch), size)) for _ in range(2)]
        differences.append(seconds_of(lambda: trainers["sam"].training_step(model, dict(batch), size)) - sum(plain))
        model.zero_grad()
        epsilon = [torch.randn_like(p) for p in tensors]
        moves.append(seconds_of(move))
    return {
        "parameters": sum(p.numel() for p in tensors),
        "tensors": len(tensors),
        "sam_ms_beyond_two_passes_quartiles": quartiles(1000 * np.array(differences)),
        "of_these_moving_the_weights_quartiles": quartiles(1000 * np.array(moves)),
    }


def main() -> None:
    """Measure, show, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="a multiple of 10")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--size", choices=SIZES, default="small", help="of models and inputs")
    parser.add_argument("--models", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile the model")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/cost.json")
    arguments = parser.parse_args()
    random.seed(0)
    measured = " ".join(f"--{name} {value}" for name, value in vars(arguments).items() if name in MEASURED)
    if arguments.models != KINDS:
        measured += f" --models {' '.join(arguments.models)}"
    flags = "".join(f" --{name}" for name in ("bf16", "compile") if getattr(arguments, name))
    result: dict[str, Any] = {
        "command": f"python benchmarks/cost.py {measured}{flags}",
        "machine": machine_class(),
        "seed": 0,
        "versions": {name: version(name).partition("+")[0] for name in PACKAGES},
        "tiny": overhead(100),
        "models": {kind: measure(kind, arguments) for kind in arguments.models},
    }
    table = Table("step", *(f"{kind}: times plain (quartiles)" for kind in arguments.models), "passes (fwd + bwd)")
    for name in next(iter(result["models"].values()))["methods"]:
        rows = [model["methods"][name] for model in result["models"].values()]
        cells = ["{1:.2f} ({0:.2f} to {2:.2f})".format(*row["ratio_quartiles"]) for row in rows]
        table.add_row(name, *cells, f"{rows[0]['passes']['forward']:g} + {rows[0]['passes']['backward']:g}")
    Console().print(table)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
