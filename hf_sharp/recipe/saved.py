"""A saved model, by folder or Hub name, beside the data that it is looked at with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    DefaultDataCollator,
    PreTrainedModel,
)

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.labels import LabelCollator
from hf_sharp.recipe.images import ImageArguments, prepare_images
from hf_sharp.recipe.texts import TextArguments, prepare_texts


@dataclass
class LookArguments(ImageArguments, TextArguments):
    """Which data, of images or of texts."""


def name_dataset(data: LookArguments, word: str | None, argv: Sequence[str]) -> None:
    """Look at the dataset that a word of the command line names, or --dataset does.

    Args:
        data: whose `dataset` becomes the word.
        word: a dataset, or None.
        argv: the command line.

    Raises:
        ValueError: neither names one, or they name two.
    """
    if word is None:
        if not any(given.split("=")[0] == "--dataset" for given in argv):
            raise ValueError("name the dataset, after the model: its training split has the class counts.")
        return
    if data.dataset not in (LookArguments.dataset, word):
        raise ValueError(f"two datasets are named: {word!r} and --dataset {data.dataset!r}. Say one.")
    data.dataset = word


@dataclass(frozen=True)
class SavedModel:
    """A model, what prepares its inputs, and the splits prepared for it.

    Attributes:
        name: the folder or Hub name.
        model: in evaluation mode, on the GPU where there is one.
        processor: its image processor or tokenizer.
        splits: `train`, `test` and maybe `validation`.
        frequencies: of the training split.
        label_column: where the labels are.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    splits: datasets.DatasetDict
    frequencies: ClassFrequencies
    label_column: str

    def batches(self, split: str, batch_size: int = 64) -> DataLoader:
        """Give the batches of a split as the model takes them, with `labels`.

        Args:
            split: one of `splits`.
            batch_size: examples in a batch.

        Returns:
            A DataLoader, in the order of the data.
        """
        texts = "input_ids" in self.splits[split].column_names
        collate: Any = DataCollatorWithPadding(self.processor) if texts else DefaultDataCollator()
        return DataLoader(
            self.splits[split],
            batch_size,
            collate_fn=LabelCollator(collate, self.label_column, None),
        )

    def predict(self, split: str, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Run the model over a split.

        Args:
            split: one of `splits`.
            batch_size: examples in a batch.

        Returns:
            Logits (N, K) in float32 and labels (N,), on the CPU.
        """
        logits, labels = [], []
        with torch.inference_mode():
            for batch in tqdm(self.batches(split, batch_size), desc=split, unit="batch", leave=False):
                labels.append(batch.pop("labels"))
                inputs = {name: value.to(self.model.device) for name, value in batch.items()}
                logits.append(self.model(**inputs).logits.float().cpu())
        return torch.cat(logits), torch.cat(labels)


def open_saved(name: str, splits: datasets.DatasetDict, data: LookArguments, label_column: str) -> SavedModel:
    """Open a saved model for a dataset: as one of images where the data has an image column, else as one of texts.

    Args:
        name: the model's folder or Hub name.
        splits: the data, as `load_splits` gives it.
        data: the columns.
        label_column: the column with the labels.

    Returns:
        The model and its data.

    Raises:
        ValueError: the model's classes are not the data's.
    """
    names: Sequence[str] = splits["train"].features[label_column].names
    frequencies = ClassFrequencies.from_dataset(splits["train"], label_column, len(names))
    images = isinstance(splits["train"].features.get(data.image_column), datasets.Image)
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    model = auto.from_pretrained(name)
    if model.config.num_labels != len(names):
        raise ValueError(f"{name!r} knows {model.config.num_labels} classes, and the data has {len(names)}.")
    known = [model.config.id2label[index] for index in range(len(names))]
    if set(known) == set(names) and known != list(names):
        raise ValueError(f"{name!r} has its classes in another order ({known[:5]}...) than the data ({names[:5]}...).")
    if images:
        processor = AutoImageProcessor.from_pretrained(name)
        prepared = prepare_images(splits, processor, data, label_column)
    else:
        processor = AutoTokenizer.from_pretrained(data.tokenizer_name or name)
        prepared = prepare_texts(splits, processor, data, label_column)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return SavedModel(name, model.to(device).eval(), processor, prepared, frequencies, label_column)
