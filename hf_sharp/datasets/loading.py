"""One way in for every dataset: embedded, saved on disk, IDX, image folder, CSV / JSON / Parquet, or the Hub."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow.compute as pc

from hf_sharp.datasets.embedded import digits
from hf_sharp.datasets.idx import is_idx_folder, load_idx
from hf_sharp.datasets.split import split_validation
from hf_sharp.labels import holds_text, read_labels

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
    suffixes = {file.suffix for file in path.rglob("*") if file.is_file()} & set(_FILE_LOADERS)
    if len(suffixes) == 1 and not any(child.is_dir() for child in path.iterdir()):
        return _splits(datasets.load_dataset(_FILE_LOADERS[suffixes.pop()], data_dir=str(path)))
    if not any(path.iterdir()):
        raise ValueError(f"the folder {path} is empty.")
    return _splits(datasets.load_dataset("imagefolder", data_dir=str(path)))


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
    chosen = datasets.DatasetDict({name: splits[split] for name, split in wanted.items() if split is not None})
    chosen = _with_class_labels(chosen, label_column, class_names)
    if test_fraction is not None:
        chosen["train"], chosen["test"] = split_validation(
            chosen["train"], test_fraction, seed, label_column=label_column
        )
    return chosen


def _with_class_labels(
    splits: datasets.DatasetDict, label_column: str, class_names: list[str] | None
) -> datasets.DatasetDict:
    feature = splits["train"].features.get(label_column)
    if isinstance(feature, datasets.ClassLabel):
        return splits
    if feature is not None and holds_text(splits["train"].data.schema.field(label_column).type):
        found = {name for split in splits.values() for name in pc.unique(split.data.column(label_column)).to_pylist()}
        names = class_names or sorted(name for name in found if name is not None)
    else:
        largest = max(int(read_labels(split, label_column).max(initial=0)) for split in splits.values())
        names = class_names or [str(label) for label in range(largest + 1)]
    for name, split in splits.items():
        read_labels(split, label_column, num_classes=len(names), label2id={n: i for i, n in enumerate(names)})
        splits[name] = split.cast_column(label_column, datasets.ClassLabel(names=names))
    return splits
