"""Train every method on a task by the protocol, and write down every run: resumable, one process per core.

python benchmarks/backbones/convert.py all               # once
python benchmarks/evidence.py wordnet                    # goes on where it stopped; does nothing when all is done
python benchmarks/evidence.py wordnet --workers 2 --limit-minutes 60
python benchmarks/evidence.py wordnet --stage rate       # no further than the learning rates: rate, base, tune, final
python benchmarks/evidence.py wordnet --status           # what is done and what comes next
python benchmarks/evidence.py all --tables               # benchmarks/results/evidence_*.json to Markdown
python benchmarks/evidence.py all --picture              # and a picture of every single run

What is compared and what is chosen how is in benchmarks/protocol.md, which was written before any test set was read. A
run's file is named after everything that it depends on, so nothing is trained twice, and several drivers may work on
one task. Runs with the seeds that choices are made with never see the test set.

outputs/evidence/TASK/KEY.json and KEY.npz (logits) are what a run leaves; git ignores them.
benchmarks/results/evidence_TASK.json is written from them, and is what tables and pictures are made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, cast

import numpy as np
import tasks
import torch
from scipy.stats import t as student
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
CACHE, BACKBONES, OUTPUTS = ROOT / "data/evidence", ROOT / "data/backbones", ROOT / "outputs/evidence"
RESULTS = ROOT / "benchmarks/results"

TUNING_SEEDS = (0, 1)
FINAL_SEEDS = (10, 11, 12, 13, 14)
STAGES = ("rate", "base", "tune", "final")
RARE = 20
BATCH, MAX_TOKENS = 32, 24
# Who starts the head at the class means: the function below, or (once it has the option) SharpTrainingArguments.
HEAD_INIT_BY = "benchmark"
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "modules_to_save": ["classifier"]}
LORA_TARGETS = {"text": ["query", "key", "value", "dense"], "image": ["expand_conv", "project_conv", "top_conv"]}

PLAIN = {"sharpness": "none", "loss": "cross_entropy"}
ADJUSTED = {"sharpness": "none", "loss": "logit_adjusted"}
RADII = (0.006, 0.02, 0.06, 0.2, 0.6)
MOMENTUM_RADII = (0.1, 0.3, 1.0, 3.0, 10.0)
ADAPTIVE_RADII = (0.06, 0.2, 0.6, 2.0, 6.0)


@dataclass(frozen=True)
class Row:
    """One row of the tables: options of `SharpTrainingArguments`, and what may be chosen among.

    Args:
        options: what every run of the row has.
        tries: more options, one dictionary per setting. In rising order if there are five of them: then the middle
            three are tried, and one more beyond the best if that is the first or the last of the three.
        base: "better", or "today": full fine-tuning and a head from noise.
        control: goes to the final seeds in any case.
    """

    options: Mapping[str, Any]
    tries: tuple[Mapping[str, Any], ...] = ({},)
    base: str = "better"
    control: bool = False


def _radii(values: Sequence[float]) -> tuple[Mapping[str, Any], ...]:
    return tuple({"rho": value} for value in values)


_SHARP = {"loss": "logit_adjusted"}
ROWS: dict[str, Row] = {
    "cross-entropy, today's base": Row(PLAIN, base="today", control=True),
    "inverse-frequency weights, today's base": Row(PLAIN | {"loss": "weighted"}, base="today", control=True),
    "cross-entropy": Row(PLAIN, control=True),
    "class weights": Row(
        PLAIN,
        (
            {"loss": "weighted"},
            {"loss": "class_balanced", "loss_beta": 0.99},
            {"loss": "class_balanced", "loss_beta": 0.9},
        ),
        control=True,
    ),
    "rare classes drawn more often": Row(
        PLAIN, ({"sampler": "class_balanced"}, {"sampler": "square_root"}, {"sampler": "progressive"}), control=True
    ),
    "logit adjustment": Row(ADJUSTED, control=True),
    "logit adjustment, tuned τ": Row(
        ADJUSTED, tuple({"loss_tau": value} for value in (0.5, 1.0, 1.5, 2.0, 3.0)), control=True
    ),
    "momentum-SAM": Row(_SHARP | {"sharpness": "sam", "ascent": "momentum"}, _radii(MOMENTUM_RADII)),
    "class-aware momentum": Row(
        _SHARP | {"sharpness": "focal_sam", "ascent": "class_momentum"}, _radii(MOMENTUM_RADII)
    ),
    "SAM": Row(_SHARP | {"sharpness": "sam"}, _radii(RADII)),
    "SAM after 80 %": Row(_SHARP | {"sharpness": "sam", "sharpness_after": 0.8}, _radii(RADII)),
    "Focal-SAM": Row(_SHARP | {"sharpness": "focal_sam"}, _radii(RADII)),
    "ImbSAM": Row(_SHARP | {"sharpness": "imbsam"}, _radii(RADII)),
    "ASAM": Row(_SHARP | {"sharpness": "sam", "adaptive": True, "adaptive_scope": "all"}, _radii(ADAPTIVE_RADII)),
    "LETS": Row(_SHARP | {"sharpness": "sam", "rho_schedule": "learned", "rho": 0.05}),
}
REFERENCE = "logit adjustment"
# Made of the logits of these rows' runs, without training.
POST_HOC = {
    "cross-entropy, adjusted after training": "cross-entropy",
    "cross-entropy, today's base, adjusted after training": "cross-entropy, today's base",
}
POST_HOC_STRENGTHS = tuple(round(0.1 * step, 1) for step in range(31))


class Run(NamedTuple):
    """One training: what its file is named after.

    Args:
        task: its name.
        tuning: "full", "lora" or "scratch".
        head: "noise" or "class_mean".
        rate: the learning rate.
        options: of `SharpTrainingArguments`, as sorted pairs.
        seed: of split, initialisation and order.
    """

    task: str
    tuning: str
    head: str
    rate: float
    options: tuple[tuple[str, Any], ...]
    seed: int

    def values(self) -> dict[str, Any]:
        """Everything that the run depends on, as JSON knows it."""
        module = tasks.load(self.task)
        made = {"head_init_by": HEAD_INIT_BY} if self.head == "class_mean" else {}
        return {
            **self._asdict(),
            "options": dict(self.options),
            "version": module.VERSION,
            "epochs": module.EPOCHS,
            "backbone": module.BACKBONE,
            "batch": BATCH,
            **made,
        }

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that no other run has."""
        return hashlib.sha256(json.dumps(self.values(), sort_keys=True).encode()).hexdigest()[:16]


def make_run(task: str, base: tuple[str, str], rate: float, seed: int, *options: Mapping[str, Any]) -> Run:
    """Make a run; of options given twice the later ones count."""
    merged = {name: value for part in options for name, value in part.items()}
    return Run(task, *base, rate, tuple(sorted(merged.items())), seed)


# ---- the figures -------------------------------------------------------------------------------------------------


def rarest_third(counts: np.ndarray) -> np.ndarray:
    """Choose the third of the classes (rounded down, at least one) with the fewest training examples.

    Args:
        counts: (K,) training examples.

    Returns:
        Class indices; of classes with as many examples the first come first.

    Example:
        >>> rarest_third(np.array([9, 2, 5, 7, 2, 8])).tolist()
        [1, 4]
    """
    return np.argsort(counts, kind="stable")[: max(1, len(counts) // 3)]


def figures(logits: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float | None]:
    """Compute every figure of a run from its logits.

    Args:
        logits: (N, K); where training diverged they are not finite, and class 0 is what such a row predicts.
        labels: (N,).
        counts: (K,) training examples of each class.

    Returns:
        `balanced_accuracy`, `few_accuracy` (classes with fewer than 20 training examples; None where there are none),
        `rarest_third`, `worst_class_recall`, `macro_f1`, `calibration_error` (None if not finite) and `accuracy`.
    """
    from scipy.special import softmax

    from hf_sharp.metrics import long_tail_report

    finite = bool(np.isfinite(logits).all())
    probabilities = softmax(logits.astype(np.float64), axis=1) if finite else None
    guessed = np.nan_to_num(logits, nan=-np.inf, neginf=-np.inf, posinf=np.inf).argmax(1)
    report = long_tail_report(guessed, labels, counts, probabilities, rare_threshold=RARE)
    recall = np.array([math.nan if value is None else value for value in report["per_class_recall"]])
    names = ("balanced_accuracy", "few_accuracy", "worst_class_recall", "macro_f1", "accuracy")
    return {
        **{name: report[name] for name in names},
        "rarest_third": float(np.nanmean(recall[rarest_third(counts)])),
        "calibration_error": report.get("calibration_error"),
    }


def paired(ours: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Compare two rows, seed by seed.

    Args:
        ours: one figure per seed.
        others: the same seeds' figures of the other row.

    Returns:
        `mean` of the differences, and `low` and `high`, Student's 95 % interval of it (nan with a single seed).

    Example:
        >>> {name: round(value, 3) for name, value in paired([0.5, 0.6, 0.7], [0.4, 0.5, 0.5]).items()}
        {'mean': 0.133, 'low': -0.01, 'high': 0.277}
    """
    differences = [a - b for a, b in zip(ours, others, strict=True)]
    mean, n = statistics.fmean(differences), len(differences)
    half = math.nan
    if n > 1:
        half = float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half}


# ---- the protocol ------------------------------------------------------------------------------------------------


def is_available(options: Mapping[str, Any]) -> bool:
    """Say whether this version of hf_sharp knows an option and its value.

    Args:
        options: of `SharpTrainingArguments`.

    Returns:
        Whether a run with them can be started. Rows that wait for an option are planned once it is there.
    """
    return _is_accepted(json.dumps(dict(options)))


@cache
def _is_accepted(options: str) -> bool:
    from hf_sharp import SharpTrainingArguments

    try:
        SharpTrainingArguments("unused", use_cpu=True, **json.loads(options))
    except (TypeError, ValueError):
        return False
    return True


def best_of(scores: Sequence[float | None]) -> int:
    """Give the index of the highest score; of equal ones the first, so the smaller value."""
    return max((i for i, score in enumerate(scores) if score is not None), key=lambda i: (scores[i], -i))


class Search:
    """Which settings of a row are tried, and which one is best, given what is known.

    Args:
        size: how many settings there are. Of five the middle three are tried, and one more beyond an end that is best;
            of fewer all of them.

    Example:
        >>> search = Search(5)
        >>> search.wanted({}), search.wanted({1: 0.3, 2: 0.4, 3: 0.5}), search.wanted({1: 0.3, 2: 0.4, 3: 0.1})
        ([1, 2, 3], [4], [])
    """

    def __init__(self, size: int) -> None:
        self.first = list(range(size)) if size < 5 else [1, 2, 3]
        self.size = size

    def wanted(self, scores: Mapping[int, float]) -> list[int]:
        """List the settings that are still to be run.

        Args:
            scores: setting to its mean validation score over the tuning seeds.

        Returns:
            Settings; none when the best one is known.
        """
        if missing := [i for i in self.first if i not in scores]:
            return missing
        if self.size == 5 and len(scores) == 3:
            best = self.best(scores)
            return [0] if best == 1 else [4] if best == 3 else []
        return []

    @staticmethod
    def best(scores: Mapping[int, float]) -> int:
        """Give the setting with the highest score, of equal ones the smallest."""
        return max(scores, key=lambda i: (scores[i], -i))


def stops(differences: Mapping[int, Sequence[float]]) -> bool:
    """Say whether a row stops after the search, without final runs.

    Args:
        differences: of every setting that was tried, the validation score less the reference's, seed by seed.

    Returns:
        Whether the best setting is behind by more than twice the spread: the standard deviation of these differences
        over seeds, pooled over the settings, and at least one point.

    Example:
        >>> stops({0: [-0.05, -0.04], 1: [-0.10, -0.08]}), stops({0: [-0.01, 0.01], 1: [-0.1, -0.1]})
        (True, False)
    """
    best = max(statistics.fmean(values) for values in differences.values())
    variances = [statistics.variance(values) for values in differences.values() if len(values) > 1]
    spread = max(0.01, math.sqrt(statistics.fmean(variances)) if variances else 0.0)
    return best < -2 * spread


class Plan(NamedTuple):
    """Where the protocol stands, given the runs that are finished.

    Args:
        wanted: runs that can be started now.
        rates: base to learning rate, as far as they are chosen.
        base: the better base, once it is chosen.
        chosen: row to the index of its best setting.
        stopped: rows that stopped, with the mean validation difference of their best setting.
        waiting: rows whose options this version does not have.
        stage: the stage that `wanted` belongs to; "done" when there is nothing left.
        validation: row to (mean validation score of each setting that was tried).
    """

    wanted: list[Run]
    rates: dict[str, float]
    base: tuple[str, str] | None
    chosen: dict[str, int]
    stopped: dict[str, float]
    waiting: list[str]
    stage: str
    validation: dict[str, dict[int, float]]


def make_plan(task: str, finished: Mapping[str, Mapping[str, Any]]) -> Plan:
    """Follow the protocol as far as the finished runs allow.

    Args:
        task: its name.
        finished: key to what the run left, of which only the validation's balanced accuracy decides anything.

    Returns:
        The plan.
    """
    module = tasks.load(task)
    tunings = tuple(module.RATES)
    rates: dict[str, float] = {}
    chosen: dict[str, int] = {}
    stopped: dict[str, float] = {}
    validation: dict[str, dict[int, float]] = {}

    def score(run: Run) -> float | None:
        found = finished.get(run.key)
        return None if found is None else cast(float, found["validation"]["balanced_accuracy"])

    def search(name: str, candidates: Sequence[Sequence[Run]]) -> list[Run]:
        """Search among settings, each of which is one run per tuning seed."""
        scores = {}
        for index, runs in enumerate(candidates):
            values = [score(run) for run in runs]
            if None not in values:
                scores[index] = statistics.fmean(cast(list[float], values))
        validation[name] = scores
        wanted = Search(len(candidates)).wanted(scores)
        if not wanted:
            chosen[name] = Search.best(scores)
        return [run for index in wanted for run in candidates[index] if score(run) is None]

    def plan(wanted: list[Run], stage: str, base: tuple[str, str] | None = None) -> Plan:
        waiting = [name for name, row in ROWS.items() if not is_available(row.options)]
        return Plan(wanted, rates, base, chosen, stopped, waiting, stage, validation)

    # 1. The learning rate of every way to train, with plain cross-entropy and a head from noise.
    wanted = []
    for tuning in tunings:
        candidates = [
            [make_run(task, (tuning, "noise"), rate, seed, PLAIN) for seed in TUNING_SEEDS]
            for rate in module.RATES[tuning]
        ]
        more = search(f"learning rate, {tuning}", candidates)
        wanted += more
        if not more:
            rates[tuning] = module.RATES[tuning][chosen[f"learning rate, {tuning}"]]
    if wanted:
        return plan(wanted, "rate")

    # 2. The base: with logit adjustment.
    heads = ("noise",) if tunings == ("scratch",) else ("noise", "class_mean")
    bases = [(tuning, head) for tuning in tunings for head in heads]
    candidates = [[make_run(task, base, rates[base[0]], seed, ADJUSTED) for seed in TUNING_SEEDS] for base in bases]
    if wanted := search("base", candidates):
        return plan(wanted, "base")
    better = bases[chosen["base"]]
    today = (tunings[0], "noise")

    # 3. The settings of every row, and which rows stop.
    def runs_of(row: Row, index: int, seeds: Iterable[int]) -> list[Run]:
        base = better if row.base == "better" else today
        return [make_run(task, base, rates[base[0]], seed, row.options, row.tries[index]) for seed in seeds]

    reference = [cast(float, score(run)) for run in candidates[chosen["base"]]]
    for name, row in ROWS.items():
        if not is_available(row.options) or (row.base == "today" and today == better):
            continue
        # A row without anything to choose needs no runs here, unless it may stop.
        if len(row.tries) == 1 and row.control:
            chosen[name] = 0
            continue
        more = search(name, [runs_of(row, index, TUNING_SEEDS) for index in range(len(row.tries))])
        wanted += more
        if more or row.control:
            continue
        differences = {
            index: [
                cast(float, score(run)) - other
                for run, other in zip(runs_of(row, index, TUNING_SEEDS), reference, strict=True)
            ]
            for index in validation[name]
        }
        if stops(differences):
            stopped[name] = max(statistics.fmean(values) for values in differences.values())
    # The strength of the correction after training is chosen on these.
    for name in POST_HOC.values():
        row = ROWS[name]
        if row.base == "better" or today != better:
            wanted += [run for run in runs_of(row, 0, TUNING_SEEDS) if score(run) is None]
    if wanted:
        return plan(list(dict.fromkeys(wanted)), "tune", better)

    # 4. The final runs: every base with logit adjustment, all controls, and the rows that did not stop.
    for base in bases:
        wanted += [make_run(task, base, rates[base[0]], seed, ADJUSTED) for seed in FINAL_SEEDS]
    for name, row in ROWS.items():
        if name in chosen and name not in stopped:
            wanted += runs_of(row, chosen[name], FINAL_SEEDS)
    # Seed by seed, so that what is there after a while is whole comparisons.
    wanted = sorted((run for run in dict.fromkeys(wanted) if score(run) is None), key=lambda run: run.seed)
    return plan(wanted, "final" if wanted else "done", better)


# ---- one run -----------------------------------------------------------------------------------------------------


class Examples(torch.utils.data.Dataset):
    """Examples in memory: tensors, with a label each."""

    def __init__(self, inputs: list[Tensor], labels: np.ndarray) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input": self.inputs[row], "label": int(self.labels[row])}


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Make a batch: texts are padded to the longest, pictures (uint8, channels last) become values around 0."""
    inputs = [example["input"] for example in examples]
    if inputs[0].ndim == 1:
        padded = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        batch = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    else:
        batch = {"pixel_values": (torch.stack(inputs).permute(0, 3, 1, 2).float() - 127) / 128}
    if "labels" in examples[0] or "label" in examples[0]:
        name = "labels" if "labels" in examples[0] else "label"
        batch["labels"] = torch.tensor([example[name] for example in examples])
    return batch


def read_data(module: ModuleType, seed: int, with_test: bool) -> dict[str, Examples]:
    """Load a task's data into memory.

    Args:
        module: the task.
        seed: of the split.
        with_test: whether the test set is read at all.

    Returns:
        `train`, `validation` and perhaps `test`.
    """
    data = module.prepare(CACHE)
    sides = dict(zip(("train", "validation", "test"), module.split(data, seed), strict=True))
    if not with_test:
        del sides["test"]
    labels = np.asarray(data["label"])
    tokenizer = None
    if module.KIND == "text":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(BACKBONES / module.BACKBONE)

    def inputs_of(rows: np.ndarray) -> list[Tensor]:
        part = data.select(rows)
        if tokenizer is not None:
            coded = tokenizer(list(part["text"]), truncation=True, max_length=MAX_TOKENS)["input_ids"]
            return [torch.tensor(ids) for ids in coded]
        images = (np.asarray(image) for image in part["image"])
        return [torch.from_numpy(image.reshape(*image.shape[:2], -1).copy()) for image in images]

    return {name: Examples(inputs_of(rows), labels[rows]) for name, rows in sides.items()}


def build_model(module: ModuleType, tuning: str, num_classes: int) -> nn.Module:
    """Make the model, its head from noise; LoRA comes later, as the head is copied then."""
    from backbones.convert import freeze_gates
    from transformers import (
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    if module.BACKBONE is None:
        return ViTForImageClassification(
            ViTConfig(
                image_size=module.SIZE,
                num_channels=1,
                patch_size=4,
                hidden_size=96,
                intermediate_size=192,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_labels=num_classes,
            )
        )
    kind = AutoModelForSequenceClassification if module.KIND == "text" else AutoModelForImageClassification
    folder = BACKBONES / module.BACKBONE
    model = kind.from_pretrained(folder, num_labels=num_classes, ignore_mismatched_sizes=True)
    if module.KIND == "image":
        model = model.to(memory_format=torch.channels_last)
        freeze_gates(model)
    return model


@torch.no_grad()
def predict(model: nn.Module, examples: Examples, head: nn.Module | None = None) -> np.ndarray:
    """Run a model over examples.

    Args:
        model: the model; it is in evaluation mode afterwards.
        examples: N of them.
        head: a layer whose inputs are wanted instead.

    Returns:
        (N, K) logits, or (N, d) inputs of the layer.
    """
    model.eval()
    parts: list[np.ndarray] = []
    seen: list[Tensor] = []
    hook = None if head is None else head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for start in range(0, len(examples), 100):
        batch = collate([examples[row] for row in range(start, min(start + 100, len(examples)))])
        batch.pop("labels")
        logits = model(**batch).logits
        parts.append((logits if head is None else seen.pop()).float().numpy())
    if hook is not None:
        hook.remove()
    return np.concatenate(parts)


SCALES = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0)


def class_mean_head(features: np.ndarray, labels: np.ndarray, num_classes: int, scale: float) -> tuple[Tensor, Tensor]:
    """Make a head of the classes' means: w_c = s (μ_c − μ)/‖μ_c − μ‖ and b_c = −w_c·μ, μ the mean of the μ_c.

    Args:
        features: (N, d), the head's inputs.
        labels: (N,).
        num_classes: K.
        scale: s.

    Returns:
        Weight (K, d) and bias (K,). A class without examples has a row of zeros, and a bias of −s.
    """
    means = np.zeros((num_classes, features.shape[1]))
    present = np.bincount(labels, minlength=num_classes) > 0
    for label in np.flatnonzero(present):
        means[label] = features[labels == label].mean(0)
    centre = means[present].mean(0)
    rows = np.where(present[:, None], means - centre, 0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = scale * rows / np.maximum(norms, 1e-12)
    bias = np.where(present, -(rows @ centre), -scale)
    return torch.tensor(rows, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32)


def choose_scale(features: np.ndarray, labels: np.ndarray, num_classes: int, seed: int, folds: int = 5) -> float:
    """Choose the scale of a head of class means: the lowest cross-entropy of held-out training examples, classes alike.

    Args:
        features: (N, d), of the training examples.
        labels: (N,).
        num_classes: K.
        seed: of the folds.
        folds: how many; classes that a fold's other examples do not have are left out of it.

    Returns:
        One of `SCALES`.
    """
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(labels)) % folds
    losses = dict.fromkeys(SCALES, 0.0)
    for number in range(folds):
        known, held = fold != number, fold == number
        held &= np.isin(labels, np.unique(labels[known]))
        share = 1 / np.bincount(labels[held], minlength=num_classes)[labels[held]]
        for scale in SCALES:
            weight, bias = class_mean_head(features[known], labels[known], num_classes, scale)
            logits = torch.tensor(features[held], dtype=torch.float32) @ weight.T + bias
            loss = nn.functional.cross_entropy(logits, torch.tensor(labels[held]), reduction="none").numpy()
            losses[scale] += float((share * loss).sum() / share.sum())
    return min(losses, key=lambda scale: losses[scale])


def start_from_class_means(model: nn.Module, examples: Examples, num_classes: int, seed: int) -> float:
    """Let a model's head begin at the class means.

    Args:
        model: its `classifier`, a linear layer, is changed.
        examples: the training set.
        num_classes: K.
        seed: of the folds that the scale is chosen with.

    Returns:
        The scale.
    """
    head = cast(nn.Linear, model.classifier)
    features = predict(model, examples, head).astype(np.float64)
    scale = choose_scale(features, examples.labels, num_classes, seed)
    weight, bias = class_mean_head(features, examples.labels, num_classes, scale)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return scale


class _Passes:
    """Counts the examples that go forward and backward through a model while it trains."""

    def __init__(self, model: nn.Module) -> None:
        self.forward = self.backward = 0
        self.hook = model.register_forward_hook(self._count)

    def _count(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        if model.training and outputs.logits.requires_grad:
            self.forward += len(outputs.logits)
            outputs.logits.register_hook(self._count_backward)

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


def execute(run: Run, epochs: float | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train and evaluate.

    Args:
        run: what to train.
        epochs: fewer than the task's, to try something out; not a result.

    Returns:
        What goes into the run's JSON file, and the logits.
    """
    from transformers import set_seed

    from hf_sharp import SharpTrainer, SharpTrainingArguments

    torch.set_num_threads(1)
    module = tasks.load(run.task)
    with_test = run.seed in FINAL_SEEDS
    if run.seed not in (*FINAL_SEEDS, *TUNING_SEEDS):
        raise ValueError(f"seed {run.seed} is neither of those that choices are made with nor of the final ones.")
    sides = read_data(module, run.seed, with_test)
    train = sides["train"]
    num_classes = int(max(sides["validation"].labels.max(), train.labels.max())) + 1
    counts = np.bincount(train.labels, minlength=num_classes)
    set_seed(run.seed)
    model = build_model(module, run.tuning, num_classes)
    scale = start_from_class_means(model, train, num_classes, run.seed) if run.head == "class_mean" else None
    if run.tuning == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            cast(Any, model), LoraConfig(**cast(Any, LORA), target_modules=LORA_TARGETS[module.KIND])
        )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        args = SharpTrainingArguments(
            folder,
            **dict(run.options),
            learning_rate=run.rate,
            num_train_epochs=module.EPOCHS if epochs is None else epochs,
            per_device_train_batch_size=BATCH,
            warmup_steps=0.1,
            seed=run.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            rare_threshold=RARE,
        )
        trainer = SharpTrainer(model=cast(Any, model), args=args, data_collator=collate, train_dataset=train)
        passes = _Passes(model)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.train()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        passes.hook.remove()
    logits = {name: predict(model, part) for name, part in sides.items()}
    steps = len(train) * args.num_train_epochs
    left: dict[str, Any] = {
        "run": run.values(),
        "class_counts": counts.tolist(),
        "sizes": {name: len(part) for name, part in sides.items()},
        "trained_parameters": trained,
        "head_scale": scale,
        "train_accuracy": float((logits["train"].argmax(1) == train.labels).mean()),
        "train_seconds": round(wall, 1),
        "train_cpu_seconds": round(cpu, 1),
        "passes_forward": round(passes.forward / steps, 3),
        "passes_backward": round(passes.backward / steps, 3),
    }
    arrays: dict[str, np.ndarray] = {"class_counts": counts}
    for name in ("validation", "test"):
        if name in sides:
            left[name] = figures(logits[name], sides[name].labels, counts)
            arrays |= {f"{name}_logits": logits[name].astype(np.float32), f"{name}_labels": sides[name].labels}
    return left, arrays


# ---- many runs ---------------------------------------------------------------------------------------------------


def read_finished(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the files of all finished runs: key to what each left."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}


def claim(folder: Path, key: str) -> bool:
    """Take a run, so that no other driver starts it too.

    Args:
        folder: of the task.
        key: of the run.

    Returns:
        Whether it is ours. A claim of a process that is no more does not count.
    """
    file = folder / f"{key}.lock"
    for _ in range(2):
        try:
            with file.open("x") as opened:
                opened.write(str(os.getpid()))
            return True
        except FileExistsError:
            try:
                os.kill(int(file.read_text() or 0) or os.getpid(), 0)
                return False
            except (ProcessLookupError, FileNotFoundError):
                file.unlink(missing_ok=True)
            except ValueError:
                return False
    return False


def work(run: Run, folder: Path) -> str:
    """Do one run in a process of its own, and write its files; nothing if another driver has it.

    Args:
        run: what to train.
        folder: of the task.

    Returns:
        The run's key.
    """
    key = run.key
    file = folder / f"{key}.json"
    if file.exists() or not claim(folder, key):
        return key
    try:
        left, arrays = execute(run)
        part = folder / f"{key}.part.npz"
        np.savez_compressed(part, allow_pickle=False, **arrays)
        part.rename(folder / f"{key}.npz")
        written = folder / f"{key}.part"
        written.write_text(json.dumps(left, indent=1) + "\n")
        written.rename(file)
    except Exception:
        (folder / f"{key}.error").write_text(f"{json.dumps(run.values())}\n{traceback.format_exc()}")
        raise
    finally:
        (folder / f"{key}.lock").unlink(missing_ok=True)
    return key


def drive(task: str, workers: int, last_stage: str, limit_minutes: float | None) -> None:
    """Work off the plan: whenever a process is free, what the finished runs ask for next.

    Args:
        task: its name.
        workers: how many processes.
        last_stage: no run of a later stage is started.
        limit_minutes: after so long no run is started any more.
    """
    folder = OUTPUTS / task
    folder.mkdir(parents=True, exist_ok=True)
    tasks.load(task).prepare(CACHE)
    end = math.inf if limit_minutes is None else time.monotonic() + 60 * limit_minutes
    pending: dict[Future, Run] = {}
    failed: set[str] = set()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            plan = make_plan(task, read_finished(folder))
            wanted = plan.wanted if plan.stage in STAGES[: STAGES.index(last_stage) + 1] else []
            busy = {run.key for run in pending.values()} | failed
            for run in wanted:
                if len(pending) >= workers or time.monotonic() > end:
                    break
                if run.key not in busy and not _is_claimed(folder, run.key):
                    pending[pool.submit(work, run, folder)] = run
                    busy.add(run.key)
            if not pending:
                elsewhere = any(_is_claimed(folder, run.key) for run in wanted)
                if elsewhere and time.monotonic() < end:  # another driver's runs come before what follows from them
                    time.sleep(5)
                    continue
                break
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                run = pending.pop(future)
                if (error := future.exception()) is not None:
                    failed.add(run.key)
                    print(f"{run.key} failed: {error!r}; see {run.key}.error", flush=True)
                elif (file := folder / f"{run.key}.json").exists():
                    left = json.loads(file.read_text())
                    print(
                        f"{plan.stage} {run.tuning}/{run.head} rate {run.rate:g} seed {run.seed} {dict(run.options)}: "
                        f"validation {left['validation']['balanced_accuracy']:.3f}, training "
                        f"{left['train_accuracy']:.3f}, {left['train_cpu_seconds']:.0f} s",
                        flush=True,
                    )
    if failed:
        raise SystemExit(f"{len(failed)} runs failed.")


def _is_claimed(folder: Path, key: str) -> bool:
    try:
        os.kill(int((folder / f"{key}.lock").read_text()), 0)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return False
    return True


# ---- what comes out ----------------------------------------------------------------------------------------------


def adjusted_after_training(logits: np.ndarray, counts: np.ndarray, strength: float) -> np.ndarray:
    """Take τ log π off the logits: what `hf_sharp.posthoc` folds into a head's bias."""
    with np.errstate(divide="ignore"):
        priors = np.log(np.maximum(counts, 0.5) / counts.sum())
    return logits - strength * priors


def choose_strength(runs: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Choose the strength of the correction after training, as every other setting is chosen.

    Args:
        runs: the arrays of the tuning seeds' runs.

    Returns:
        Of `POST_HOC_STRENGTHS`, the one with the highest mean balanced accuracy on validation data; the smallest of
        equally good ones.
    """
    scores = []
    for strength in POST_HOC_STRENGTHS:
        each = []
        for arrays in runs:
            logits = adjusted_after_training(arrays["validation_logits"], arrays["class_counts"], strength)
            found = figures(logits, arrays["validation_labels"], arrays["class_counts"])
            each.append(cast(float, found["balanced_accuracy"]))
        scores.append(statistics.fmean(each))
    return POST_HOC_STRENGTHS[best_of(scores)]


def _arrays(folder: Path, run: Run) -> dict[str, np.ndarray]:
    with np.load(folder / f"{run.key}.npz") as file:
        return dict(file)


def collect(task: str, command: str) -> dict[str, Any]:
    """Put together what benchmarks/results/evidence_TASK.json holds.

    Args:
        task: its name.
        command: what made it.

    Returns:
        The protocol's choices, every run with its figures, and per row the figures of every final seed that is there.
    """
    folder = OUTPUTS / task
    finished = read_finished(folder)
    plan = make_plan(task, finished)
    module = tasks.load(task)
    rows: dict[str, dict[str, Any]] = {}

    def add(name: str, runs: Sequence[Run], **more: Any) -> None:
        done = {run.seed: finished[run.key] for run in runs if run.key in finished}
        if done:
            rows[name] = {
                **more,
                "options": dict(runs[0].options),
                "base": [runs[0].tuning, runs[0].head],
                "seeds": {
                    str(seed): {
                        **left["test"],
                        **{
                            key: left[key]
                            for key in ("train_accuracy", "train_cpu_seconds", "passes_forward", "passes_backward")
                        },
                    }
                    for seed, left in done.items()
                },
            }

    if plan.base is not None:
        today = (next(iter(module.RATES)), "noise")
        for tuning in module.RATES:
            for head in ("noise", "class_mean") if tuning != "scratch" else ("noise",):
                runs = [make_run(task, (tuning, head), plan.rates[tuning], seed, ADJUSTED) for seed in FINAL_SEEDS]
                add(f"base: {tuning}, head from {head.replace('_', ' ')}", runs, kind="base")
        for name, row in ROWS.items():
            if name not in plan.chosen or name in plan.stopped:
                continue
            base = plan.base if row.base == "better" else today
            options = (row.options, row.tries[plan.chosen[name]])
            runs = [make_run(task, base, plan.rates[base[0]], seed, *options) for seed in FINAL_SEEDS]
            add(name, runs, kind="control" if row.control else "sharp")
        for name, source in POST_HOC.items():
            row = ROWS[source]
            base = plan.base if row.base == "better" else today
            each = {
                seed: make_run(task, base, plan.rates[base[0]], seed, row.options)
                for seed in (*TUNING_SEEDS, *FINAL_SEEDS)
            }
            if source not in rows or any(each[seed].key not in finished for seed in TUNING_SEEDS):
                continue
            strength = choose_strength([_arrays(folder, each[seed]) for seed in TUNING_SEEDS])
            seeds = {}
            for seed in rows[source]["seeds"]:
                arrays = _arrays(folder, each[int(seed)])
                logits = adjusted_after_training(arrays["test_logits"], arrays["class_counts"], strength)
                found = figures(logits, arrays["test_labels"], arrays["class_counts"])
                seeds[seed] = rows[source]["seeds"][seed] | found
            rows[name] = rows[source] | {"kind": "control", "strength": strength, "seeds": seeds}
    some = next(iter(finished.values()), {})
    return {
        "task": task,
        "command": command,
        "machine": machine_class(),
        "versions": {
            name: version(name) for name in ("hf-sharp", "torch", "transformers", "peft", "datasets", "numpy")
        },
        "protocol": "benchmarks/protocol.md",
        "tuning_seeds": list(TUNING_SEEDS),
        "final_seeds": list(FINAL_SEEDS),
        "stage": plan.stage,
        "classes": len(some.get("class_counts", ())),
        "class_counts": sorted(some.get("class_counts", ()), reverse=True),
        "few_classes": sum(count < RARE for count in some.get("class_counts", ())),
        "sizes": some.get("sizes", {}),
        "rates": plan.rates,
        "base": plan.base,
        "chosen": {name: dict(ROWS[name].tries[index]) for name, index in plan.chosen.items() if name in ROWS},
        "validation": {
            name: {str(index): round(value, 4) for index, value in scores.items()}
            for name, scores in plan.validation.items()
        },
        "stopped": {name: round(value, 4) for name, value in plan.stopped.items()},
        "waiting": plan.waiting,
        "rows": rows,
        "runs": [left | {"key": key} for key, left in finished.items()],
    }


def machine_class() -> str:
    """Say what the runs ran on, without its name: cores, kind, memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores {platform.machine()}, {memory:.0f} GB, CPU only, one thread per run"


def _percent(values: Sequence[float | None]) -> str:
    if any(value is None for value in values):
        return "–"
    numbers = [100 * cast(float, value) for value in values]
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.1f}{spread}"


def _difference(ours: Mapping[str, Mapping], others: Mapping[str, Mapping], metric: str) -> str:
    seeds = [seed for seed in ours if seed in others]
    pairs = [(ours[seed][metric], others[seed][metric]) for seed in seeds]
    if len(pairs) < 2 or any(None in pair for pair in pairs):
        return "–"
    found = {name: 100 * value for name, value in paired(*zip(*pairs, strict=True)).items()}
    bold = "**" if found["low"] > 0 or found["high"] < 0 else ""
    return f"{bold}{found['mean']:+.1f}{bold} ({found['low']:+.1f} … {found['high']:+.1f})"


def make_table(result: Mapping[str, Any]) -> str:
    """Make the Markdown table of a task.

    Args:
        result: of `collect`.

    Returns:
        One line per row of the protocol: means and standard deviations over seeds in %, and paired differences with
        their 95 % intervals, bold where they exclude 0; below it what stopped, and what it was made by.
    """
    rows = result["rows"]
    plain = rows.get("cross-entropy, today's base", rows.get("cross-entropy", {"seeds": {}}))["seeds"]
    reference = rows.get(REFERENCE, {"seeds": {}})["seeds"]
    rarest = not result["few_classes"]
    few, few_name = ("rarest_third", "rarest third") if rarest else ("few_accuracy", "few (n < 20)")
    lines = [
        f"| {result['task']} | balanced | {few_name} | worst class | calibration error | macro F1 | training | cost | "
        f"balanced − cross-entropy | few − cross-entropy | balanced − logit adjustment | few − logit adjustment |",
        "|" + "---|" * 12,
    ]
    base_cost = statistics.fmean(seed["train_cpu_seconds"] for seed in reference.values()) if reference else math.nan
    for name, row in rows.items():
        seeds = row["seeds"]

        def over(metric: str, of: Mapping[str, Mapping] = seeds) -> str:
            return _percent([seed[metric] for seed in of.values()])

        chosen = ", ".join(f"{key} {value}" for key, value in result["chosen"].get(name, {}).items())
        if "strength" in row:
            chosen = f"τ {row['strength']}"
        cost = statistics.fmean(seed["train_cpu_seconds"] for seed in seeds.values())
        lines.append(
            f"| {name}{f' ({chosen})' if chosen else ''} | {over('balanced_accuracy')} | {over(few)} | "
            f"{over('worst_class_recall')} | {over('calibration_error')} | {over('macro_f1')} | "
            f"{over('train_accuracy')} | {cost:.0f} s, {cost / base_cost:.2f} | "
            f"{_difference(seeds, plain, 'balanced_accuracy')} | {_difference(seeds, plain, few)} | "
            f"{_difference(seeds, reference, 'balanced_accuracy')} | {_difference(seeds, reference, few)} |"
        )
    for name, value in result["stopped"].items():
        lines.append(f"| {name} | stopped: {100 * value:+.1f} on validation data |" + " |" * 10)
    sizes = result["sizes"]
    counts = result["class_counts"]
    told = f"{result['classes']} classes from {counts[0]} down to {counts[-1]} training examples, " if counts else ""
    lines += [
        "",
        f"{told}{result['few_classes']} of them with fewer than 20; {sizes.get('train', 0)} for training, "
        f"{sizes.get('validation', 0)} for validation. Base: {', '.join(result['base'] or ['not chosen yet'])}. Seeds "
        f"{', '.join(map(str, result['final_seeds']))}: mean ± standard deviation; differences are paired, with 95 % "
        f"intervals. `{result['command']}` on {result['machine']}, torch {result['versions']['torch']}. Data: "
        f"`benchmarks/results/evidence_{result['task']}.json`.",
    ]
    return "\n".join(lines) + "\n"


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Draw every single final run: one line per row, one dot per seed, in one colour per seed.

    Args:
        result: of `collect`.
        file: the picture, a PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = result["rows"]
    few = "few_accuracy" if result["few_classes"] else "rarest_third"
    panels = {"balanced_accuracy": "balanced accuracy in %", few: f"{few.replace('_', ' ')} in %"}
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 1.2 + 0.32 * max(len(rows), 1)), sharey=True)
    colours = {str(seed): f"C{index}" for index, seed in enumerate(result["final_seeds"])}
    for axis, (metric, label) in zip(axes, panels.items(), strict=True):
        for height, row in enumerate(rows.values()):
            values = {seed: 100 * found[metric] for seed, found in row["seeds"].items() if found[metric] is not None}
            for seed, value in values.items():
                axis.plot(value, height, "o", color=colours[seed], markersize=5, alpha=0.8)
            if values:
                axis.plot(statistics.fmean(values.values()), height, "|", color="black", markersize=14)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].invert_yaxis()
    handles = [pyplot.Line2D([], [], marker="o", linestyle="", color=c, label=f"seed {s}") for s, c in colours.items()]
    axes[1].legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle(f"{result['task']}: every run; the bar is the mean")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def say_status(task: str) -> None:
    """Print what is chosen so far, and how much is left of the stage."""
    folder = OUTPUTS / task
    finished = read_finished(folder)
    plan = make_plan(task, finished)
    seconds = [left["train_cpu_seconds"] for left in finished.values()]
    print(
        f"{task}: {len(finished)} runs finished ({sum(seconds) / 3600:.1f} core hours); stage {plan.stage}, "
        f"{len(plan.wanted)} runs of it left; rates {plan.rates}, base {plan.base}"
    )
    for name, scores in plan.validation.items():
        shown = ", ".join(f"{index}: {100 * value:.1f}" for index, value in scores.items())
        print(f"  {name}: {shown}" + (f"; best {plan.chosen[name]}" if name in plan.chosen else ""))
    print(f"  stopped: {plan.stopped}; waiting for options: {', '.join(plan.waiting) or 'none'}")


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["all", *tasks.NAMES])
    parser.add_argument("--workers", type=int, default=1, help="processes, one core each")
    parser.add_argument("--stage", choices=STAGES, default="final", help="the last stage to run")
    parser.add_argument("--limit-minutes", type=float, help="start no run after so many minutes")
    parser.add_argument("--status", action="store_true", help="only say where it stands")
    parser.add_argument("--tables", action="store_true", help="only write Markdown from the committed results")
    parser.add_argument("--picture", action="store_true", help="only draw every run from the committed results")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    for task in tasks.NAMES if arguments.task == "all" else [arguments.task]:
        file = RESULTS / f"evidence_{task}.json"
        if arguments.status:
            say_status(task)
        elif arguments.tables or arguments.picture:
            if not file.exists():
                continue
            result = json.loads(file.read_text())
            if arguments.tables:
                print(make_table(result))
            if arguments.picture:
                draw(result, RESULTS / f"evidence_{task}.png")
        else:
            try:
                drive(task, arguments.workers, arguments.stage, arguments.limit_minutes)
            finally:
                result = collect(task, f"python benchmarks/evidence.py {task}")
                if result["runs"]:
                    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
