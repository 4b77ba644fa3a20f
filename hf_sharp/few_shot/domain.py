"""A domain: labelled examples of one kind, from which episodes are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from hf_sharp.data.labels import find_label_column, holds_text, no_label_column, read_labels
from hf_sharp.data.loading import load
from hf_sharp.data.split import check_is_dataset
from hf_sharp.few_shot.episodes import MIN_WAYS
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.words import brief

# Domains with at least this many classes are split by class, smaller ones by example.
CLASSES_TO_HOLD_OUT = 20
PREPARED_COLUMNS = ("pixel_values", "input_ids")


@dataclass(frozen=True, eq=False)
class Domain:
    """Labelled images or texts.

    Attributes:
        name: the name that tables show.
        dataset: the examples.
        labels: (N,) int64 class of every example.
        class_names: name of every class.
        column: the column with the images or texts, or with `pixel_values` or `input_ids` that are ready for a model.
        licence: the licence of the data.
    """

    name: str
    dataset: datasets.Dataset
    labels: np.ndarray
    class_names: Sequence[str]
    column: str
    licence: str = "not stated"

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Any) -> Domain:
        """Return some of the examples as a domain.

        Args:
            rows: row numbers, or a boolean mask.

        Returns:
            A domain with the same class numbers.
        """
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return Domain(
            self.name, self.dataset.select(rows), self.labels[rows], self.class_names, self.column, self.licence
        )

    def limit(self, per_class: int, seed: int = 0) -> Domain:
        """Limit the number of examples per class.

        Args:
            per_class: the largest number of examples per class.
            seed: seed of the draw.

        Returns:
            The smaller domain; the domain itself if no class is larger.

        Raises:
            ValueError: `per_class` is below 2, the fewest that an episode needs.
        """
        if per_class < 2:
            raise ValueError(f"a class needs one support and one query example; got {per_class} examples per class.")
        rng = np.random.default_rng(seed)
        of_class = [np.flatnonzero(self.labels == c) for c in np.unique(self.labels)]
        if all(len(rows) <= per_class for rows in of_class):
            return self
        kept = [rows if len(rows) <= per_class else rng.choice(rows, per_class, replace=False) for rows in of_class]
        return self.select(np.sort(np.concatenate(kept)))

    def split(self, held_out: float = 0.3, seed: int = 0) -> tuple[Domain, Domain]:
        """Split into a part to train on and a part for episodes.

        Domains with at least 20 classes are split by class, as in Meta-Dataset, so that the classes of episodes are new
        to every backbone. Smaller domains are split by example within every class; so are domains in which the share
        of the classes would be too few for an episode.

        Args:
            held_out: the share of the classes, or of every class's examples, that goes to the part for episodes.
            seed: seed of the split.

        Returns:
            The part to train on and the part for episodes; they have no example in common.

        Raises:
            ValueError: the share is not between 0 and 1.
        """
        check_number("held_out", held_out, above=0, below=1, share=True)
        rng = np.random.default_rng(seed)
        classes = np.unique(self.labels)
        count = round(held_out * len(classes))
        if len(classes) >= CLASSES_TO_HOLD_OUT and count >= MIN_WAYS:
            chosen = np.isin(self.labels, rng.choice(classes, count, replace=False))
        else:
            chosen = np.zeros(len(self), dtype=bool)
            for c in classes:
                rows = np.flatnonzero(self.labels == c)
                chosen[rng.choice(rows, round(held_out * len(rows)), replace=False)] = True
        return self.select(np.flatnonzero(~chosen)), self.select(np.flatnonzero(chosen))


def make_domain(
    dataset: datasets.Dataset,
    name: str,
    label_column: str = "label",
    column: str | None = None,
    licence: str = "not stated",
) -> Domain:
    """Make a domain from a dataset.

    Args:
        dataset: a dataset with one label per example, and images, texts or prepared inputs.
        name: the name that tables show.
        label_column: the column with the labels: class numbers or names.
        column: the column with images or texts; None takes the first one.
        licence: the licence of the data.

    Returns:
        The domain.

    Raises:
        ValueError: another kind of dataset, there is no label column, an example has no label, or there is no column of
            images or texts.

    Example:
        >>> data = datasets.Dataset.from_dict({"text": ["so", "so so"], "label": ["good", "bad"]})
        >>> domain = make_domain(data, "reviews")
        >>> domain.column, domain.labels.tolist(), domain.class_names
        ('text', [1, 0], ['bad', 'good'])
    """
    check_is_dataset(dataset, "make a domain of")
    label_column = find_label_column(dataset, label_column)
    if label_column not in dataset.column_names:
        raise ValueError(f"{name!r} cannot be a few-shot domain: {no_label_column(label_column, dataset.column_names)}")
    feature = dataset.features[label_column]
    label2id, names = None, list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    if names is None and holds_text(dataset.data.schema.field(label_column).type):
        names = sorted(label for label in dataset.unique(label_column) if label is not None)
        label2id = {label: index for index, label in enumerate(names)}
    labels = read_labels(dataset, label_column, label2id=label2id)
    if names is None:
        names = [str(label) for label in range(int(labels.max(initial=-1)) + 1)]
    column = column or _input_column(dataset, label_column)
    if column is None or column not in dataset.column_names:
        wanted = "no column of images or texts" if column is None else f"no column {column!r}"
        columns = brief(dataset.features, 600)
        raise ValueError(f"{name!r} has {wanted}; the columns are {columns}. Name the column with column=.")
    return Domain(name, dataset, labels, names, column, licence)


def load_domain(
    name: str,
    config: str | None = None,
    splits: Sequence[str] | None = None,
    label_column: str = "label",
    column: str | None = None,
    licence: str = "see the dataset's card",
) -> Domain:
    """Load any dataset on the Hub, folder of images, or file as a domain.

    Args:
        name: the name of the data, as for `hf_sharp.datasets.load`.
        config: the Hub dataset's configuration.
        splits: the splits to use; None uses all. Leave out splits without public labels.
        label_column: the column with the labels.
        column: the column with images or texts; None takes the first one.
        licence: the licence of the data.

    Returns:
        The domain.

    Raises:
        ValueError: a split does not exist; or as for `make_domain`.
    """
    loaded = load(name, config)
    wanted = list(splits) if splits is not None else list(loaded)
    if missing := [split for split in wanted if split not in loaded]:
        raise ValueError(f"{name!r} has no split {missing[0]!r}; the splits are {', '.join(map(repr, loaded))}.")
    parts = [loaded[split] for split in wanted]
    whole = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    return make_domain(whole, name, label_column, column, licence)


def _input_column(dataset: datasets.Dataset, label_column: str) -> str | None:
    for ready in PREPARED_COLUMNS:
        if ready in dataset.column_names:
            return ready
    kinds = (
        lambda name: isinstance(dataset.features[name], datasets.Image),
        lambda name: holds_text(dataset.data.schema.field(name).type),
    )
    others = [name for name in dataset.column_names if name != label_column]
    return next((name for is_kind in kinds for name in others if is_kind(name)), None)
