"""One way in for every dataset: embedded, saved on disk, IDX, image folder, CSV / JSON / Parquet, or the Hub."""

from __future__ import annotations

from pathlib import Path

import datasets

from hf_sharp.datasets.embedded import digits
from hf_sharp.datasets.idx import is_idx_folder, load_idx

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
