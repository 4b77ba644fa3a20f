"""A saved model, by folder or Hub name, together with the data to run it on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
from hf_sharp.data.class_names import match_names, real_names, shown
from hf_sharp.data.label_columns import align_dataset
from hf_sharp.data.labels import LabelCollator
from hf_sharp.recipe.arguments import TRUST
from hf_sharp.recipe.boundary import check_writable, discard_if_incomplete
from hf_sharp.recipe.images import ImageArguments, prepare_images, views_of
from hf_sharp.recipe.models import class_for, loading
from hf_sharp.recipe.recorded import from_here, recorded, set_flags, take_over
from hf_sharp.recipe.saved_adapter import base_of_adapter, open_merged
from hf_sharp.recipe.texts import TextArguments, fit_tokenizer, prepare_texts
from hf_sharp.reports.results import task_of

logger = logging.getLogger(__name__)


@dataclass
class LookArguments(ImageArguments, TextArguments):
    """Options of the data, images or texts, that a saved model is run on, and whether the model's code is trusted."""

    label_column: str = field(default="label", metadata={"help": "The column with the labels."})
    batch_size: int = field(default=64, metadata={"help": "Examples per batch; memory grows with it."})
    trust_remote_code: bool = field(default=False, metadata={"help": TRUST})


@dataclass
class HeadArguments(LookArguments):
    """Options of the data, and the name of the head, for commands that change the head."""

    head: str | None = field(
        default=None, metadata={"help": "Name of the layer that computes the logits, if it is not found automatically."}
    )


def choose_data(what: Any, data: LookArguments, model: str, word: str | None, argv: Sequence[str]) -> dict[str, Any]:
    """Set the dataset of a command, and take over the options that the model's training recorded.

    Args:
        what: the command's own options, changed in place.
        data: the options of the data, changed in place.
        model: the model's folder or Hub name.
        word: the dataset given as a positional argument, or None.
        argv: the command line.

    Returns:
        What the training recorded; empty if it recorded nothing.

    Raises:
        ValueError: no dataset is named and none was recorded, or two are named.
    """
    record = recorded(model)
    if word is None and "dataset" not in set_flags(argv):
        word = record.get("options", {}).get("dataset")
        word = word and from_here(record, word)
        if word is None:
            raise ValueError("name the dataset after the model: the class counts are read from its training split.")
        logger.warning("dataset %s, from the training", word)
    elif word is not None and "dataset" in set_flags(argv) and data.dataset != word:
        raise ValueError(f"two datasets are named: {word!r} and --dataset {data.dataset!r}. Keep one.")
    if word is not None:
        data.dataset = word
    take_over(record, (what, data), argv, data.dataset)
    return record


def new_folder(path: str) -> Path:
    """Check that a command can write its results into a folder without overwriting anything.

    Args:
        path: the folder; it may exist if it is empty.

    Returns:
        The folder, not created yet. Ctrl-C and errors remove it.

    Raises:
        ValueError: the path is a file or a folder that is not empty, or the folder cannot be created.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output folder {path!r} is a file. Choose another --output_dir.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"the output folder {path!r} is not empty. Choose another --output_dir.")
    check_writable(folder)
    discard_if_incomplete(folder)
    return folder


@dataclass(frozen=True)
class SavedModel:
    """A model, the processor of its inputs, and the splits prepared for it.

    Attributes:
        name: the folder or Hub name.
        model: the model, in evaluation mode, on the GPU if there is one.
        processor: its image processor or tokenizer.
        splits: `train`, `test` and possibly `validation`.
        frequencies: the class frequencies of the training split.
        data: the options of the data.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    splits: datasets.DatasetDict
    frequencies: ClassFrequencies
    data: LookArguments

    def batches(self, split: str) -> DataLoader:
        """Make a DataLoader of a split: batches of model inputs with `labels`.

        Args:
            split: one of `splits`.

        Returns:
            A DataLoader, in the order of the data.
        """
        return self._batches(self.splits[split])

    def _batches(self, rows: datasets.Dataset) -> DataLoader:
        texts = "input_ids" in rows.column_names
        collate: Any = DataCollatorWithPadding(self.processor) if texts else DefaultDataCollator()
        return DataLoader(
            rows,
            self.data.batch_size,
            collate_fn=LabelCollator(collate, self.data.label_column, None),
        )

    def predict(self, split: str, tta: str = "none") -> tuple[Tensor, Tensor]:
        """Run the model over a split.

        Args:
            split: one of `splits`.
            tta: for images, the views to average the logits over, one of `hf_sharp.data.views.TTA`.

        Returns:
            Logits (N, K) in float32 and labels (N,), on the CPU; the labels are empty, (0,), for unlabelled data.

        Raises:
            ValueError: `tta` is not "none", but the data are texts.
        """
        rows = self.splits[split]
        if tta != "none" and "input_ids" in rows.column_names:
            raise ValueError(f"tta={tta!r} is for images, but the data are texts. Leave it at none.")
        views = views_of(rows, self.processor, self.data, self.data.label_column, tta) if tta != "none" else (rows,)
        predicted = [self._run(view, split) for view in views]
        return torch.stack([logits for logits, _ in predicted]).mean(0), predicted[0][1]

    def _run(self, rows: datasets.Dataset, split: str) -> tuple[Tensor, Tensor]:
        logits, labels = [], []
        with torch.inference_mode():
            for batch in tqdm(self._batches(rows), desc=split, unit="batch", leave=False):
                labels.append(batch.pop("labels", torch.empty(0, dtype=torch.int64)))
                inputs = {name: value.to(self.model.device) for name, value in batch.items()}
                logits.append(self.model(**inputs).logits.float().cpu())
        return torch.cat(logits), torch.cat(labels)


def load_saved(name: str, images: bool, data: LookArguments) -> tuple[Any, Any]:
    """Load a saved classifier and the processor of its inputs.

    Args:
        name: the model's folder or Hub name. An adapter in a folder is merged into its base model.
        images: whether it classifies images; otherwise it classifies texts.
        data: the tokenizer's name; its `max_length` is reduced if the model has fewer positions.

    Returns:
        The model, on the CPU, and its image processor or tokenizer.

    Raises:
        ValueError: model or processor cannot be loaded, or the tokenizer does not belong to the model.
    """
    auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
    with loading(name):
        trusted: dict[str, Any] = {"trust_remote_code": True} if data.trust_remote_code else {}
        if (base := base_of_adapter(name)) is None:
            kind, config = class_for(auto, name, data.trust_remote_code)
            model = kind.from_pretrained(name, **trusted)
        else:
            model = open_merged(auto, name, base, data.trust_remote_code)
            config = model.config
        if images:
            return model, AutoImageProcessor.from_pretrained(name, **trusted)
        tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_name or name, config=config, **trusted)
    fit_tokenizer(tokenizer, model.config, name, data)
    return model, tokenizer


def takes_images(name: str, trust_remote_code: bool = False) -> bool:
    """Tell from its config whether a saved model classifies images; raise a ValueError if neither images nor texts."""
    with loading(name):
        base = base_of_adapter(name)
        config = class_for(None, base or name, trust_remote_code)[1]
    tasks = {task_of(architecture) for architecture in config.architectures or ()}
    if base is not None:  # the base model itself may be for another task
        tasks = {recorded(name).get("model", {}).get("task")} - {None} or tasks
    if not tasks & {"image-classification", "text-classification"}:
        raise ValueError(
            f"the model {name!r} is a {', '.join(config.architectures or ['model'])}, which does not classify images "
            "or texts. Name one that was trained to classify."
        )
    return "image-classification" in tasks


def open_saved(
    name: str,
    splits: datasets.DatasetDict,
    data: LookArguments,
    *,
    subset: bool = True,
    counts: Sequence[int] | None = None,
) -> SavedModel:
    """Open a saved model, and prepare a dataset for it: images if it has an image column, else texts.

    Args:
        name: the model's folder or Hub name.
        splits: the data, as returned by `load_splits`; its classes are aligned with the model's, by name.
        data: the columns.
        subset: whether the data may lack classes of the model.
        counts: (K,) the class counts of the training, for data without the split `train`.

    Returns:
        The model, with its processor and the prepared splits.

    Raises:
        ValueError: the model cannot be loaded, or its classes are not those of the data.
    """
    images = isinstance(_first(splits).features.get(data.image_column), datasets.Image)
    model, processor = load_saved(name, images, data)
    splits = _aligned(name, model.config, splits, data.label_column, subset)
    names: Sequence[str] = _first(splits).features[data.label_column].names
    if "train" in splits:
        frequencies = ClassFrequencies.from_dataset(splits["train"], data.label_column, len(names))
    else:
        frequencies = ClassFrequencies.from_counts(counts, names=names)
    prepare: Any = prepare_images if images else prepare_texts
    prepared = prepare(splits, processor, data, data.label_column)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return SavedModel(name, model.to(device).eval(), processor, prepared, frequencies, data)


def _first(splits: datasets.DatasetDict) -> datasets.Dataset:
    return next(iter(splits.values()))


def _aligned(
    name: str, config: Any, splits: datasets.DatasetDict, label_column: str, subset: bool
) -> datasets.DatasetDict:
    names = _first(splits).features[label_column].names
    known = real_names(config.id2label, config.num_labels)
    remedy = "To rename the data's classes use --class_names, with the names in the order of the data's classes."
    order = match_names(names, known, "the data", f"the model {name!r}", subset=subset, remedy=remedy)
    if order is None and config.num_labels != len(names):
        raise ValueError(f"{name!r} has {config.num_labels} classes, but the data has {len(names)}: {shown(names)}.")
    return datasets.DatasetDict(
        {
            split: align_dataset(rows, label_column, known, f"the {split} split", f"the model {name!r}", subset=subset)
            for split, rows in splits.items()
        }
    )
