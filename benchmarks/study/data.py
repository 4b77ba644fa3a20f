"""The examples of a task, in memory, and their batches."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from study import BACKBONES, CACHE


class Examples(torch.utils.data.Dataset):
    """Examples in memory: one tensor and one label each."""

    def __init__(self, inputs: list[Tensor], labels: np.ndarray) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input": self.inputs[row], "label": int(self.labels[row])}


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Make a batch: pad texts to the longest one; scale images (uint8, channels last) to about −1 to 1."""
    inputs = [example["input"] for example in examples]
    if inputs[0].ndim == 1:
        padded = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        batch = {"input_ids": padded, "attention_mask": (padded != 0).long()}
    else:
        batch = {"pixel_values": (torch.stack(inputs).permute(0, 3, 1, 2).float() - 127) / 128}
    name = "labels" if "labels" in examples[0] else "label"
    batch["labels"] = torch.tensor([example[name] for example in examples])
    return batch


def read_data(module: ModuleType, seed: int, with_test: bool) -> dict[str, Examples]:
    """Load the examples of a task.

    Args:
        module: the task.
        seed: the seed of the split.
        with_test: whether to read the test set.

    Returns:
        `train`, `validation` and, if asked for, `test`.
    """
    data = module.prepare(CACHE)
    splits = dict(zip(("train", "validation", "test"), module.split(data, seed), strict=True))
    if not with_test:
        del splits["test"]
    labels = np.asarray(data["label"][:])
    tokenizer = None
    if module.KIND == "text":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(BACKBONES / module.BACKBONE)

    def inputs_of(rows: np.ndarray) -> list[Tensor]:
        part = data.select(rows)
        if tokenizer is not None:
            tokens = tokenizer(list(part["text"]), truncation=True, max_length=module.MAX_TOKENS)["input_ids"]
            return [torch.tensor(ids) for ids in tokens]
        images = (np.asarray(image) for image in part["image"])
        return [torch.from_numpy(image.reshape(*image.shape[:2], -1).copy()) for image in images]

    return {name: Examples(inputs_of(rows), labels[rows]) for name, rows in splits.items()}


def keep_used_tokens(splits: Mapping[str, Examples], embedding: nn.Embedding) -> nn.Embedding:
    """Remove tokens that never occur from the vocabulary, which halves the time of the optimizer's step.

    Outputs and gradients do not change: the embeddings of the removed tokens are never read, and without weight decay
    the optimizer never changes them.

    Args:
        splits: texts as token ids, which are renumbered in place.
        embedding: the embedding of the model, (V, D).

    Returns:
        The embedding of the tokens that occur, (U, D), in their old order; padding still has number 0.
    """
    used = torch.cat([torch.zeros(1, dtype=torch.long), *(ids for part in splits.values() for ids in part.inputs)])
    used = used.unique()
    for part in splits.values():
        part.inputs = [torch.searchsorted(used, ids) for ids in part.inputs]
    return nn.Embedding.from_pretrained(embedding.weight[used].detach().clone(), freeze=False, padding_idx=0)
