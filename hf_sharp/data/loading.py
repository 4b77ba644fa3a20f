"""One way in for every dataset: embedded, saved on disk, IDX, image folder, CSV / JSON / Parquet, or the Hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow.compute as pc

from hf_sharp.data.embedded import digits
from hf_sharp.data.idx import is_idx_folder, load_idx
from hf_sharp.data.labels import check_same_names, holds_text, no_label_column, read_labels
from hf_sharp.data.split import split_validation

_EMBEDDED = {"digits": digits}
_FILE_LOADERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load(name: str, config: str | None = None) -> datasets.DatasetDict:
    """Load a dataset with all its splits.

    Args:
        name: `digits`; a folder saved with `save_to_disk`, of IDX files, of CSV / JSON / Parquet files, or of images
            in one folder per class; one CSV / JSON / Parquet file; or a name on the Hub.
        config: the Hub dataset's configuration.

    Returns:
        The splits by name. A single file is the split `train`.

    Raises:
        ValueError: a path that is neither of these, or an empty folder.
    """
    if name in _EMBEDDED:
        return _EMBEDDED[name]()
    path = Path(name).expanduser()
    if path.is_file():
        return _load_files(path.suffix, str(path))
    if path.is_dir():
        return _load_folder(path)
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2:
        raise ValueError(
            f"{name!r} does not exist. Expected 'digits', a file or folder of data, or a dataset's name on the Hub."
        )
    return _splits(datasets.load_dataset(name, config))


def _load_folder(path: Path) -> datasets.DatasetDict:
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _splits(datasets.load_from_disk(str(path)))
    if is_idx_folder(path):
        return load_idx(path)
    if not any(path.iterdir()):
        raise ValueError(f"the folder {path} is empty.")
    return _splits(datasets.load_dataset(str(path)))  # images by class, CSV, JSON or Parquet: it looks what is there


def _load_files(suffix: str, file: str) -> datasets.DatasetDict:
    if suffix not in _FILE_LOADERS:
        raise ValueError(f"cannot read {file!r}: expected one of {', '.join(_FILE_LOADERS)}.")
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    return _splits(datasets.load_dataset(_FILE_LOADERS[suffix], data_files=file, **options))


def _splits(loaded: datasets.Dataset | datasets.DatasetDict) -> datasets.DatasetDict:
    return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(train=loaded)


def prepare_splits(
    splits: datasets.DatasetDict,
    label_column: str = "label",
    *,
    train_split: str = "train",
    test_split: str = "test",
    validation_split: str | None = None,
    test_fraction: float | None = None,
    class_names: list[str] | None = None,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Bring a dataset into one form: splits `train`, `test` and maybe `validation`, and labels that have names.

    Args:
        splits: the dataset's own splits.
        label_column: the column with one label per example: ClassLabel, integers or names.
        train_split: which split becomes `train`.
        test_split: which split becomes `test`.
        validation_split: which split becomes `validation`, if any.
        test_fraction: where there is no test split, the share of every class that is held out as one.
        class_names: names of the classes, for integer labels; default: their numbers.
        seed: of the held-out share.

    Returns:
        The splits; the label column is a ClassLabel.

    Raises:
        ValueError: a split or the label column does not exist (those that do are named), or the labels are neither
            integers nor names.
    """
    wanted = {"train": train_split, "test": test_split, "validation": validation_split}
    if test_fraction is not None:
        if test_split in splits:
            raise ValueError(f"test_fraction={test_fraction} is set, but there is a split {test_split!r}. Remove one.")
        del wanted["test"]
    for split in wanted.values():
        if split is not None and split not in splits:
            raise ValueError(
                f"there is no split {split!r}; the splits are {', '.join(map(repr, splits))}. Choose with train_split, "
                "test_split and validation_split, or hold out a test set with test_fraction."
            )
    if test_fraction is None and test_split == train_split:
        raise ValueError(f"train_split and test_split are both {train_split!r}: the report would be on training data.")
    chosen = datasets.DatasetDict({name: splits[split] for name, split in wanted.items() if split is not None})
    for name, split in chosen.items():
        if label_column not in split.column_names:
            raise ValueError(f"split {wanted[name]!r}: {no_label_column(label_column, split.column_names)}")
        if len(split) == 0:
            raise ValueError(f"split {wanted[name]!r} is empty.")
    chosen = _with_class_labels(chosen, label_column, class_names)
    if test_fraction is not None:
        chosen["train"], chosen["test"] = split_validation(
            chosen["train"], test_fraction, seed, label_column=label_column
        )
    return chosen


def _with_class_labels(
    splits: datasets.DatasetDict, label_column: str, class_names: list[str] | None
) -> datasets.DatasetDict:
    feature = splits["train"].features[label_column]
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    if names is None and holds_text(splits["train"].data.schema.field(label_column).type):
        found = {name for split in splits.values() for name in pc.unique(split.data.column(label_column)).to_pylist()}
        names = sorted(name for name in found if name is not None)
    elif names is None:
        largest = max(int(read_labels(split, label_column).max()) for split in splits.values())
        names = class_names or [str(label) for label in range(largest + 1)]
    if class_names is not None and len(class_names) != len(names):
        raise ValueError(f"got {len(class_names)} class_names for {len(names)} classes: {names[:10]}.")
    check_same_names("class_names", class_names or names, names)
    label2id = {name: index for index, name in enumerate(names)}
    for name, split in splits.items():
        feature = split.features[label_column]
        if isinstance(feature, datasets.ClassLabel) and feature.names != names:
            if set(feature.names) != set(names):
                raise ValueError(f"split {name!r} has the classes {feature.names[:10]}, train has {names[:10]}.")
            split = split.align_labels_with_mapping(label2id, label_column)
        read_labels(split, label_column, num_classes=len(names), label2id=label2id)
        split = split.cast_column(label_column, datasets.ClassLabel(names=names))
        if class_names is not None:
            split = split.cast(_renamed(split.features, label_column, class_names))
        splits[name] = split
    return splits


def _renamed(features: datasets.Features, label_column: str, class_names: list[str]) -> datasets.Features:
    return datasets.Features({**features, label_column: datasets.ClassLabel(names=class_names)})
