"""Measure how many examples a class mean needs: the accuracy of the initial head with at most n examples per class.

python benchmarks/head_examples.py

Uses all examples of the WordNet and clip art tasks that are not in the test set, with their natural class shares, and
the pretrained models of benchmarks/protocol.md. Features are computed once. Every seed draws its own test set (20 and 8
examples per class) and its own examples. Writes benchmarks/results/head_examples.json.
"""

from __future__ import annotations

import json
import os
from types import ModuleType
from typing import Any

import numpy as np
import tasks
import torch
from study import CACHE, RESULTS
from study.data import Examples, collate, read_data
from study.training import build_model
from tasks.division import divide
from torch import nn

from hf_sharp.model.head import features_in_batches
from hf_sharp.model.head_init import init_head_from_class_means
from hf_sharp.reports.results import machine_class

LIMITS = (25, 50, 100, 200, 400, None)
SEEDS = range(5)
TEST = {"wordnet": 20, "clipart": 8}
AT_MOST = 2000  # the largest number of examples per class


def features_of(task: str) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Compute the pretrained features of all examples, but of at most `AT_MOST` per class.

    Args:
        task: the task's name.

    Returns:
        (N, D) features, (N,) labels and (N,) groups, which must not be split between training and test.
    """
    module = tasks.load(task)
    data = module.prepare(CACHE)
    labels, rng = np.asarray(data["label"][:]), np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:AT_MOST] for c in range(labels.max() + 1)])
    whole = ModuleType(task)
    vars(whole).update(vars(module), split=lambda data, seed: (rows, rows[:1], rows[:0]))
    examples: dict[str, Examples] = read_data(whole, 0, with_test=False)
    num_classes, part = int(labels.max()) + 1, examples["train"]
    model = build_model(module, "full", num_classes, examples)
    ranges = (range(start, min(start + 100, len(part))) for start in range(0, len(part), 100))
    batches = (collate([part[row] for row in rows_of_batch]) for rows_of_batch in ranges)
    found = [features for features, _, _ in features_in_batches(model, batches, num_classes, progress=task)]
    group = np.asarray(data["group"][:])[rows] if "group" in data.column_names else rows
    return torch.cat(found), labels[rows], group


def accuracy(features: torch.Tensor, labels: np.ndarray, groups: np.ndarray, seed: int, task: str, limit: Any) -> float:
    """Return the balanced accuracy of the initial head on its own test set."""
    train, _, test = divide(labels, groups, seed, test_per_class=TEST[task], validation_per_class=1)
    train = np.random.default_rng(seed).permutation(train)
    head = nn.Sequential(nn.Linear(features.shape[1], int(labels.max()) + 1))
    batches = [{"input": features[train], "labels": torch.from_numpy(labels[train])}]
    init_head_from_class_means(head, batches, np.bincount(labels[train]), examples_per_class=limit)
    with torch.no_grad():
        right = (head(features[test]).argmax(1).numpy() == labels[test]).astype(float)
    return float(np.mean([right[labels[test] == c].mean() for c in np.unique(labels)]))


def main() -> None:
    """Measure, and write the results."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    result: dict[str, Any] = {"command": "python benchmarks/head_examples.py", "machine": machine_class(), "tasks": {}}
    for task in TEST:
        features, labels, groups = features_of(task)
        counts = np.sort(np.bincount(labels))[::-1]
        scores = {
            str(limit): [accuracy(features, labels, groups, seed, task, limit) for seed in SEEDS] for limit in LIMITS
        }
        result["tasks"][task] = {"class_counts": counts.tolist(), "balanced_accuracy": scores}
        print(task, {name: f"{100 * np.mean(values):.1f}" for name, values in scores.items()}, flush=True)
    (RESULTS / "head_examples.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
