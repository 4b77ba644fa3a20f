"""Train and evaluate one run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import datasets
import numpy as np
import tasks
import torch
from torch import nn

from hf_sharp.datasets import split_validation
from study import BACKBONES
from study.data import Examples, collate, keep_used_tokens, read_data
from study.figures import RARE, figures
from study.runs import BATCH, FINAL_SEEDS, TUNING_SEEDS, Run, machine_class

VIT: dict[str, Any] = {
    "num_channels": 1,
    "patch_size": 7,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "modules_to_save": ["classifier"]}
LORA_TARGETS = {"text": ["query", "key", "value", "dense"], "image": ["expand_conv", "project_conv", "top_conv"]}


def build_model(module: ModuleType, tuning: str, num_classes: int, splits: Mapping[str, Examples]) -> nn.Module:
    """Build the model of a task, with a randomly initialised head.

    Args:
        module: the task.
        tuning: "full", "lora" or "scratch".
        num_classes: K.
        splits: the examples; the token ids of texts are renumbered in place.

    Returns:
        The model, with LoRA adapters if `tuning` is "lora".
    """
    from backbones.convert import remove_gates
    from transformers import (
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    if module.BACKBONE is None:
        shape = VIT | {"image_size": module.SIZE, "num_labels": num_classes}
        return ViTForImageClassification(ViTConfig(**shape))
    kind = AutoModelForSequenceClassification if module.KIND == "text" else AutoModelForImageClassification
    model = kind.from_pretrained(
        BACKBONES / module.BACKBONE, num_labels=num_classes, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    if module.KIND == "text":
        model.set_input_embeddings(keep_used_tokens(splits, model.get_input_embeddings()))
    else:
        model = model.to(memory_format=torch.channels_last)
        remove_gates(model)
    if tuning == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(**LORA, target_modules=LORA_TARGETS[module.KIND])
        return cast(nn.Module, get_peft_model(model, config))
    return model


@torch.no_grad()
def predict(model: nn.Module, examples: Examples) -> np.ndarray:
    """Compute the logits of examples.

    Args:
        model: the model; it is in evaluation mode afterwards.
        examples: N examples.

    Returns:
        (N, K) logits.
    """
    model.eval()
    device = next(model.parameters()).device
    logits = []
    for start in range(0, len(examples), 100):
        batch = collate([examples[row] for row in range(start, min(start + 100, len(examples)))])
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        logits.append(model(**inputs).logits.float().cpu().numpy())
    return np.concatenate(logits)


def hold_out(train: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Hold out the examples that LETS learns the radius on, by class, as hf_sharp does for a `datasets.Dataset`.

    Args:
        train: the training examples.
        fraction: the share to hold out.
        seed: the seed of the draw.

    Returns:
        The remaining examples and those held out.
    """
    rows = datasets.Dataset.from_dict({"label": train.labels, "row": np.arange(len(train))})
    parts = [np.array(part["row"][:]) for part in split_validation(rows, fraction, seed)]
    remaining, held_out = (Examples([train.inputs[row] for row in part], train.labels[part]) for part in parts)
    return remaining, held_out


def _train(run: Run, model: nn.Module, train: Examples, epochs: float) -> dict[str, Any]:
    """Train a model in place; return the cost of training."""
    from transformers import PrinterCallback

    from hf_sharp import SharpTrainer, SharpTrainingArguments

    examples = len(train) * epochs
    with tempfile.TemporaryDirectory() as folder:
        args = SharpTrainingArguments(
            folder,
            **dict(run.options),
            head_init="class_mean" if run.head == "class_mean" else "none",
            learning_rate=run.rate,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            warmup_steps=0.1,
            seed=run.seed,
            bf16=tasks.load(run.task).KIND == "text",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            rare_threshold=RARE,
        )
        held_out = None
        if args.learns_rho:
            train, held_out = hold_out(train, args.rho_validation_fraction, run.seed)
        trainer = SharpTrainer(
            model=cast(Any, model), args=args, data_collator=collate, train_dataset=train, rho_dataset=held_out
        )
        trainer.remove_callback(PrinterCallback)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "train_seconds": round(wall, 1),
        "train_cpu_seconds": round(cpu, 1),
        "passes_forward": round(trainer.record.forward / examples, 3),
        "passes_backward": round(trainer.record.backward / examples, 3),
    }


def execute(run: Run, epochs: float | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train and evaluate.

    Args:
        run: the run.
        epochs: fewer epochs than the task's, for a trial that is not used as a result.

    Returns:
        The content of the run's JSON file, and the logits.

    Raises:
        ValueError: the seed is neither a tuning seed nor one from the first final seed on.
    """
    from transformers import set_seed

    torch.set_num_threads(1)
    final = run.seed >= FINAL_SEEDS[0]
    if not final and run.seed not in TUNING_SEEDS:
        raise ValueError(f"seed {run.seed} is neither a tuning seed {TUNING_SEEDS} nor at least {FINAL_SEEDS[0]}.")
    module = tasks.load(run.task)
    splits = read_data(module, run.seed, with_test=final)
    train = splits["train"]
    num_classes = int(max(splits["validation"].labels.max(), train.labels.max())) + 1
    counts = np.bincount(train.labels, minlength=num_classes)
    set_seed(run.seed)
    model = build_model(module, run.tuning, num_classes, splits)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    cost = _train(run, model, train, module.EPOCHS if epochs is None else epochs)
    logits = {name: predict(model, part) for name, part in splits.items()}
    record: dict[str, Any] = {
        "run": run.values(),
        "class_counts": counts.tolist(),
        "sizes": {name: len(part) for name, part in splits.items()},
        "machine": machine_class(),
        "trained_parameters": trained,
        "train_accuracy": float((logits["train"].argmax(1) == train.labels).mean()),
        **cost,
    }
    arrays: dict[str, np.ndarray] = {"class_counts": counts}
    for name in ("validation", "test"):
        if name in splits:
            record[name] = figures(logits[name], splits[name].labels, counts)
            arrays |= {f"{name}_logits": logits[name].astype(np.float32), f"{name}_labels": splits[name].labels}
    return record, arrays
