"""Loads datasets of every kind: embedded, saved to disk, IDX, image folder, CSV / JSON / Parquet, or from the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from hf_sharp.data.embedded import digits
from hf_sharp.data.files import load_file, load_folder
from hf_sharp.data.idx import is_idx_folder, load_idx
from hf_sharp.data.label_columns import name_classes
from hf_sharp.data.label_values import label_values
from hf_sharp.data.labels import no_label_column
from hf_sharp.data.listed import load_listed
from hf_sharp.data.local_names import refuse_missing, refuse_model
from hf_sharp.data.split import split_validation
from hf_sharp.registry.words import quoted

EMBEDDED = {"digits": digits}


def load(
    name: str, config: str | None = None, separator: str | None = None, lists: Mapping[str, str] | None = None
) -> datasets.DatasetDict:
    """Load a dataset with all its splits.

    Args:
        name: `digits`; a folder saved with `save_to_disk`, of IDX files, of CSV / JSON / Parquet files, or of images
            in one folder per class; one CSV / JSON / Parquet file; or a name on the Hub.
        config: the configuration of a dataset on the Hub.
        separator: the column separator of CSV files; None for a comma, or a tab in TSV files.
        lists: split name to text file that lists its images in the folder `name`; see `load_listed`.

    Returns:
        The splits by name. A single file is the split `train`.

    Raises:
        ValueError: the path does not exist or has no data, or a table cannot be read.

    Example:
        >>> {split: len(rows) for split, rows in load("digits").items()}
        {'train': 1257, 'test': 540}
    """
    if lists:
        return load_listed(name, lists)
    if name in EMBEDDED:
        return EMBEDDED[name]()
    path = Path(name).expanduser()
    if path.is_file():
        return load_file(path, separator)
    if path.is_dir():
        refuse_model(name)
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _splits(datasets.load_from_disk(str(path)))
        if is_idx_folder(path):
            return load_idx(path)
        if not any(path.iterdir()):
            raise ValueError(f"the folder {name!r} is empty.")
        return load_folder(path, separator)
    refuse_missing(name, "Expected 'digits', a file or folder of data, or a dataset's name on the Hub.")
    return _splits(datasets.load_dataset(name, config))


def _splits(loaded: datasets.Dataset | datasets.DatasetDict) -> datasets.DatasetDict:
    return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(train=loaded)


def pool_splits(splits: datasets.DatasetDict, name: str) -> datasets.DatasetDict:
    """Join splits, with the syntax of `datasets`.

    Args:
        splits: the splits by name.
        name: the splits to join, such as `train+validation`; without a plus, nothing is joined.

    Returns:
        The splits, with the joined split of that name instead of its parts.

    Raises:
        ValueError: one of the splits to join does not exist.

    Example:
        >>> rows = datasets.Dataset.from_dict({"label": [0, 1]})
        >>> pool_splits(datasets.DatasetDict(train=rows, test=rows), "train+test").num_rows
        {'train+test': 4}
    """
    if name in splits or "+" not in name:
        return splits
    parts = name.split("+")
    for part in parts:
        if part not in splits:
            raise ValueError(f"{name!r}: {no_split(part, splits)}")
    rest = {split: rows for split, rows in splits.items() if split not in parts}
    return datasets.DatasetDict({**rest, name: datasets.concatenate_datasets([splits[part] for part in parts])})


def no_split(split: str, splits: Iterable[str]) -> str:
    """Describe a missing split, with the existing ones."""
    return f"there is no split {split!r}; the splits are {quoted(splits)}."


def _has_labels(data: datasets.Dataset, label_column: str, split: str) -> bool:
    if label_column not in data.column_names:
        return False
    column = label_values(data, label_column, split)
    if pa.types.is_integer(column.type):
        column = pc.if_else(pc.less(column, 0), None, column)  # -1: unlabelled, on the Hub
    return column.null_count < len(column)


def prepare_splits(
    splits: datasets.DatasetDict,
    label_column: str = "label",
    *,
    train_split: str = "train",
    test_split: str = "test",
    validation_split: str | None = None,
    test_fraction: float | None = None,
    class_names: list[str] | None = None,
    group_column: str | None = None,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Convert a dataset to a common form: splits `train`, `test` and, if any, `validation`, with named classes.

    Args:
        splits: the dataset's own splits.
        label_column: the column with one label per example; see `name_classes` for the supported types.
        train_split: which split becomes `train`.
        test_split: which split becomes `test`.
        validation_split: which split becomes `validation`, if any.
        test_fraction: the share of every class, in (0, 0.5], to hold out as the test split, if there is none.
        class_names: the class names, in the order of the class indices; see `name_classes`.
        group_column: as for `split_validation`.
        seed: the seed for holding out examples.

    Returns:
        The splits; the label column is a ClassLabel.

    Raises:
        ValueError: a split or the label column does not exist (the error lists the existing ones), a split is empty,
            or the labels cannot be used as classes.

    Example:
        >>> mails = datasets.Dataset.from_dict({"text": list("abcdefgh"), "label": ["ham"] * 6 + ["spam"] * 2})
        >>> splits = prepare_splits(datasets.DatasetDict(train=mails), test_fraction=0.5)
        >>> {split: len(rows) for split, rows in splits.items()}, splits["train"].features["label"].names
        ({'train': 4, 'test': 4}, ['ham', 'spam'])
    """
    wanted = {"train": train_split, "test": test_split, "validation": validation_split}
    if test_fraction is not None:
        if test_split in splits and _has_labels(splits[test_split], label_column, test_split):
            raise ValueError(
                f"--test_fraction {test_fraction} is set, but there is a split {test_split!r}. Leave out the one, or "
                "name another --test_split."
            )
        del wanted["test"]
    for split in wanted.values():
        if split is not None and split not in splits:
            raise ValueError(
                f"{no_split(split, splits)} Choose with --train_split, --test_split and --validation_split, or hold "
                "out a test set with --test_fraction."
            )
    if test_fraction is None and test_split == train_split:
        raise ValueError(
            f"--train_split and --test_split are both {train_split!r}: the model would be tested on its training data."
        )
    chosen = datasets.DatasetDict({name: splits[split] for name, split in wanted.items() if split is not None})
    for name, split in chosen.items():
        if label_column not in split.column_names:
            raise ValueError(
                f"split {wanted[name]!r}: {no_label_column(label_column, split.column_names, '--label_column')}"
            )
        if len(split) == 0:
            raise ValueError(f"split {wanted[name]!r} is empty.")
    chosen = name_classes(chosen, label_column, class_names)
    if test_fraction is not None:
        chosen["train"], chosen["test"] = split_validation(
            chosen["train"], test_fraction, seed, label_column=label_column, group_column=group_column, part="test"
        )
    return chosen
