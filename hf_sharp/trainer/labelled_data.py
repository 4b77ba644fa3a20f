"""The data given to a trainer: its class frequencies, and datasets whose classes are put into one order, by name.

The order is that of the model's classes if they have names, else that of the training set.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import datasets
import numpy as np
from torch.utils.data import ConcatDataset, Subset

from hf_sharp.data.checking import check_transform
from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.data.class_names import are_indices, match_names, real_names, shown
from hf_sharp.data.label_columns import align_dataset, declared_classes
from hf_sharp.data.labels import find_label_column, no_label_column, read_labels
from hf_sharp.data.split import split_validation
from hf_sharp.registry.words import quantity
from hf_sharp.sharpness.replay import random_state_kept
from hf_sharp.trainer.preflight import STREAMS
from hf_sharp.training_args import SharpTrainingArguments

logger = logging.getLogger(__name__)

_RENAME = (
    "To train for the data's classes, with their names in a list `names`, load the model with from_pretrained(..., "
    "num_labels={k}, id2label=dict(enumerate(names)), label2id={{name: i for i, name in enumerate(names)}}, "
    "ignore_mismatched_sizes=True)."
)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The names of the classes, in the order of the model's outputs.

    Args:
        names: K names; None if neither model nor data name the classes, so that classes are indices.
        owner: where the names come from, such as "the model", for error messages.
        label_column: the column with the labels.
    """

    names: tuple[str, ...] | None
    owner: str
    label_column: str

    @classmethod
    def known(cls, config: Any, train_dataset: Any, given: ClassFrequencies | None, label_column: str) -> Classes:
        """Find the class names: those of the model, else of the training set, else of the given frequencies.

        Args:
            config: the model's config, or None.
            train_dataset: the training set, or None.
            given: the user's class frequencies, or None.
            label_column: the column with the labels.

        Returns:
            The classes.
        """
        names = real_names(getattr(config, "id2label", None), int(getattr(config, "num_labels", 0) or 0))
        declared = declared_classes(_innermost(train_dataset), label_column)
        better = declared is not None and names is not None and are_indices(names) and not {*declared.names} <= {*names}
        if names is not None and not better:
            return cls(tuple(names), "the model", label_column)
        if declared is not None:
            return cls(tuple(declared.names), "the training set", label_column)
        return cls(None if given is None else given.names, "class_frequencies", label_column)

    def align(self, data: Any, which: str, *, training: bool = False) -> Any:
        """Map the labels of a dataset, or of several by name, to the indices of these classes.

        Args:
            data: a dataset of any kind; without declared class names it is returned unchanged.
            which: what the dataset is, such as "the evaluation set", for error messages.
            training: whether the dataset must have every class; in others, missing classes are logged.

        Returns:
            The dataset, or the datasets by name.

        Raises:
            ValueError: the dataset's classes have other names.
        """
        if isinstance(data, dict):
            return {name: self.align(one, f"{which} {name!r}") for name, one in data.items()}
        if type(data) is Subset:
            inner = self.align(data.dataset, which, training=training)
            return data if inner is data.dataset else Subset(inner, data.indices)
        if type(data) is ConcatDataset:
            parts = [self.align(part, which, training=training) for part in data.datasets]
            same = all(part is before for part, before in zip(parts, data.datasets, strict=True))
            return data if same else ConcatDataset(parts)
        declared = declared_classes(data, self.label_column)
        remedy = _RENAME.format(k=len(declared.names)) if declared is not None and training else ""
        aligned = align_dataset(
            data, self.label_column, self.names, which, self.owner, subset=not training, remedy=remedy
        )
        if training and aligned is not data:
            logger.warning("The classes of %s were put into the order of %s, by name.", which, self.owner)
        return aligned

    def name_model(self, config: Any) -> None:
        """Set the class names of a model whose classes are called LABEL_0, LABEL_1, ..., so that it saves them."""
        names = self.names
        if self.owner != "the training set" or names is None or len(names) != getattr(config, "num_labels", None):
            return
        before = real_names(config.id2label, len(names))
        if not are_indices(names) and (before is None or are_indices(before)):
            config.id2label = dict(enumerate(names))
            config.label2id = {name: index for index, name in enumerate(names)}


def label_column_of(train_dataset: Any, eval_dataset: Any, label_column: str) -> str:
    """Find the label column of the training set or, without one, of the (first) evaluation set.

    Args:
        train_dataset: the training set, or None.
        eval_dataset: one evaluation set, several by name, or None.
        label_column: the requested name.

    Returns:
        The column's name; see `find_label_column`.
    """
    data = train_dataset if train_dataset is not None else eval_dataset
    if isinstance(data, Mapping) and data:
        data = next(iter(data.values()))
    return find_label_column(_innermost(data), label_column)


def selected(data: Any) -> Any:
    """Replace a `Subset` of a `datasets.Dataset` by the selected rows, so that only their labels are read."""
    if type(data) is Subset and isinstance(inner := selected(data.dataset), datasets.Dataset):
        return inner.select(list(data.indices))
    return data


def _innermost(data: Any) -> Any:
    while type(data) in (Subset, ConcatDataset):
        data = data.dataset if isinstance(data, Subset) else data.datasets[0]
    return data


class Understood(NamedTuple):
    """A trainer's data: the classes, the datasets with labels in their order, and the class frequencies."""

    classes: Classes
    train_dataset: Any
    eval_dataset: Any
    frequencies: ClassFrequencies


def understand(
    train_dataset: Any, eval_dataset: Any, given: ClassFrequencies | None, args: SharpTrainingArguments, config: Any
) -> Understood:
    """Bring classes, datasets and class frequencies into one order, and check that they fit one another.

    Args:
        train_dataset: the training set, or None.
        eval_dataset: one evaluation set, several by name, or None.
        given: the user's class frequencies, or None.
        args: the label column, and the thresholds of the groups.
        config: the model's config, which gets the class names if it has none; or None.

    Returns:
        The classes, the two datasets and the frequencies.

    Raises:
        ValueError: names, numbers of classes or labels do not fit one another.
    """
    classes = Classes.known(config, train_dataset, given, args.label_column)
    train_dataset = classes.align(train_dataset, "the training set", training=True)
    eval_dataset = classes.align(eval_dataset, "the evaluation set")
    classes.name_model(config)
    frequencies = class_frequencies_of(train_dataset, given, args, config, classes)
    check_labels(train_dataset, eval_dataset, frequencies, args.label_column, config)
    return Understood(classes, train_dataset, eval_dataset, frequencies)


def hold_out(
    train_dataset: Any, rho_dataset: Any, args: SharpTrainingArguments, label2id: Mapping[str, int] | None = None
) -> tuple[Any, Any]:
    """Hold out validation examples for the learned radius from the training set, unless `rho_dataset` is set.

    Args:
        train_dataset: the training set, or None.
        rho_dataset: the examples that the radius is learned on, or None.
        args: whether the radius is learned, and the fraction to hold out.
        label2id: class name to index, from the model's config.

    Returns:
        The examples to train on, and those that the radius is learned on.

    Raises:
        ValueError: `rho_dataset` has no effect, or the training set cannot be split.
    """
    if not args.learns_rho:
        if rho_dataset is not None:
            raise ValueError("rho_dataset has no effect without rho_schedule='learned'. Leave it out, or learn rho.")
        return train_dataset, None
    if rho_dataset is not None or train_dataset is None:
        return train_dataset, rho_dataset
    if not isinstance(train_dataset, datasets.Dataset):
        raise ValueError(
            f"rho_schedule='learned' can hold out validation examples of a datasets.Dataset only; train_dataset is "
            f"{type(train_dataset).__name__}. Split it yourself, and pass the validation part as rho_dataset=."
        )
    return split_validation(
        train_dataset,
        args.rho_validation_fraction,
        args.seed_of_data,
        label_column=args.label_column,
        label2id=label2id,
    )


def class_frequencies_of(
    train_dataset: Any, given: ClassFrequencies | None, args: SharpTrainingArguments, config: Any, classes: Classes
) -> ClassFrequencies:
    """Use the class frequencies that the user passed, or read them from the training set.

    Args:
        train_dataset: the training set, or None.
        given: the user's class frequencies, or None.
        args: the label column, and the thresholds of the groups.
        config: the model's config: the number of classes, their names and `label2id`.
        classes: the classes; the user's frequencies are put into their order.

    Returns:
        The frequencies, with the thresholds of `args`, and with class names if these are known.

    Raises:
        ValueError: there is no dataset to count, the thresholds of `given` differ from those of `args`, or `given`
            belongs to other classes.
    """
    if given is None:
        if train_dataset is None:
            raise ValueError(
                "without a train_dataset the class counts are unknown: pass class_frequencies=ClassFrequencies."
                "from_counts([...]), with the counts of the model's training set."
            )
        if isinstance(train_dataset, STREAMS):
            raise ValueError(
                "the class counts of an iterable train_dataset are unknown before it is read: pass class_frequencies="
                "ClassFrequencies.from_counts([...]), or ClassFrequencies.from_dataset(dataset) for one pass over it."
            )
        num_classes, label2id = getattr(config, "num_labels", None), getattr(config, "label2id", None)
        data = selected(train_dataset)
        given = ClassFrequencies.from_dataset(data, args.label_column, num_classes, label2id=label2id)
    for name in ("rare_threshold", "common_threshold"):
        if getattr(given, name) not in (getattr(ClassFrequencies, name), getattr(args, name)):
            raise ValueError(
                f"class_frequencies has {name}={getattr(given, name)}, the arguments have {getattr(args, name)}: set "
                "it in SharpTrainingArguments."
            )
    counts, order = given.counts, match_names(given.names, classes.names, "class_frequencies", classes.owner)
    if order is not None:
        counts = np.zeros_like(given.counts)
        counts[order] = given.counts
    names = classes.names if classes.names is not None and len(classes.names) == len(counts) else given.names
    return dataclasses.replace(
        given,
        counts=counts,
        names=names or _names(config, given.num_classes),
        rare_threshold=args.rare_threshold,
        common_threshold=args.common_threshold,
    )


def check_labels(
    train_dataset: Any, eval_dataset: Any, frequencies: ClassFrequencies, label_column: str, config: Any
) -> None:
    """Check that the head, the class counts and the labels of every dataset agree on the classes.

    Args:
        train_dataset: the training set, or None.
        eval_dataset: one evaluation set, several by name, or None.
        frequencies: the class frequencies of the training set.
        label_column: the column with the labels.
        config: the model's config.

    Raises:
        ValueError: the number of classes differs, or a label is outside the classes.
    """
    outputs = getattr(config, "num_labels", None)
    if outputs not in (None, frequencies.num_classes):
        raise ValueError(_head_mismatch("the training set or class_frequencies", outputs, frequencies.num_classes))
    sets = {"the training set": train_dataset, **_named_sets(eval_dataset)}
    for which, data in sets.items():
        feature, trains = declared_classes(_innermost(data), label_column), data is train_dataset
        named = frequencies.num_classes if feature is None else feature.num_classes
        if named > frequencies.num_classes or (trains and named != frequencies.num_classes):
            raise ValueError(_head_mismatch(which, frequencies.num_classes, named))
        dataset = selected(data)
        if not isinstance(dataset, datasets.Dataset):
            continue
        if len(dataset) == 0:
            raise ValueError(f"{which} is empty. Leave it out, or give it examples.")
        if label_column not in dataset.column_names:
            logger.warning(
                "%s is evaluated without labels: %s", which, no_label_column(label_column, dataset.column_names)
            )
            continue
        label2id = getattr(config, "label2id", None)
        read_labels(dataset, label_column, num_classes=frequencies.num_classes, label2id=label2id)
    absent = np.flatnonzero(frequencies.counts == 0)
    if len(absent):
        noun = quantity(len(absent), "class has", "classes have")
        logger.warning("%s no training examples: %s.", noun, shown([*map(frequencies.name, absent.tolist())]))


def _names(config: Any, num_classes: int) -> tuple[str, ...] | None:
    id2label = getattr(config, "id2label", None) or {}
    return tuple(id2label[i] for i in range(num_classes)) if set(id2label) == set(range(num_classes)) else None


def _named_sets(eval_dataset: Any) -> dict[str, Any]:
    named = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
    return {f"the evaluation set {name!r}" if name else "the evaluation set": data for name, data in named.items()}


def _head_mismatch(which: str, outputs: int | None, classes: int) -> str:
    return (
        f"the model's head has {outputs} outputs, but there are {classes} classes in {which}. If these are the right "
        f"classes, load the model with from_pretrained(..., num_labels={classes}, ignore_mismatched_sizes=True)."
    )


def check_transforms(sets: Mapping[str, Any], kept_columns: Collection[str]) -> None:
    """Raise a ValueError if a transform reads a column that the Trainer removes.

    Args:
        sets: description, such as "the training set", to a dataset or several by name.
        kept_columns: the columns that the Trainer keeps.
    """
    with random_state_kept([]):  # transforms draw random numbers, which must not change those of the training
        for which, data in sets.items():
            for name, one in data.items() if isinstance(data, dict) else [("", data)]:
                check_transform(one, kept_columns, f"{which} {name!r}" if name else which)
