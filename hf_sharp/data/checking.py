"""Checks every split in one pass before training: missing labels, empty texts and broken images, by split and row."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from hf_sharp.data.label_values import label_values, place
from hf_sharp.data.labels import arrow_column, holds_text
from hf_sharp.data.pictures import fault_of, raw_pictures
from hf_sharp.registry.nearest import check_name
from hf_sharp.registry.words import quantity

logger = logging.getLogger(__name__)

LEVELS = ("full", "fast", "off")
_ROWS = 64  # the number of rows that a thread checks at a time
_NAMED = 3
_DECODED_AT_MOST = 20_000  # images per split, if the check is fast


@dataclass(frozen=True)
class Checks:
    """How thoroughly to check data, and what to do about faults.

    Args:
        level: `full` decodes every image; `fast` decodes the first 20,000 small images of a split and those whose end
            is missing, and reads only header and end of the others; `off` checks labels only.
        skip_broken: leave out rows with faults instead of raising an error.

    Raises:
        ValueError: the level is unknown.
    """

    level: str = "fast"
    skip_broken: bool = False

    def __post_init__(self) -> None:
        check_name("check_data", self.level, LEVELS)


def check_splits(
    splits: Mapping[str, datasets.Dataset],
    label_column: str,
    checks: Checks,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
) -> tuple[datasets.DatasetDict, dict[str, int]]:
    """Find the rows that would make training or evaluation fail.

    Args:
        splits: the splits by name.
        label_column: the column with the labels.
        checks: how thoroughly to check, and what to do about faults.
        image_column: the column with images, if any.
        text_column: the column with texts, if any.

    Returns:
        The splits without the rows that were left out, and the number of those rows by split (no entry for 0).

    Raises:
        ValueError: there are faults, and `skip_broken` is off; the first three are named.
    """
    sound, left_out = {}, {}
    for split, data in splits.items():
        faults: dict[int, str] = {}
        if label_column in data.column_names:
            missing = np.flatnonzero(np.asarray(label_values(data, label_column, split).is_null()))
            if len(missing) < len(data):  # a split without any label is a different mistake, reported elsewhere
                faults |= dict.fromkeys(missing.tolist(), "there is no label")
        if checks.level != "off" and text_column in data.column_names:
            faults |= dict.fromkeys(_empty_texts(data, str(text_column)), "the text is empty")
        if checks.level != "off" and isinstance(data.features.get(image_column), datasets.Image):
            faults |= _broken_pictures(data, str(image_column), split, checks.level == "full")
        if faults and not checks.skip_broken:
            raise ValueError(
                f"{_described(split, faults, data)}. Correct the data, or leave such rows out with --skip_broken true."
            )
        if faults:
            logger.warning("%s: %s left out: %s.", split, _rows(len(faults)), _described(split, faults, data))
            data = data.select(np.setdiff1d(np.arange(len(data)), list(faults)))
            left_out[split] = len(faults)
        sound[split] = data
    return datasets.DatasetDict(sound), left_out


def _described(split: str, faults: Mapping[int, str], data: datasets.Dataset) -> str:
    named = "; ".join(f"{place(split, row, data)}: {faults[row]}" for row in sorted(faults)[:_NAMED])
    rest = f"; and {len(faults) - _NAMED:,} more in this split" if len(faults) > _NAMED else ""
    return f"{named}{rest}"


def _rows(count: int) -> str:
    return quantity(count, "row is", "rows are")


def _empty_texts(data: datasets.Dataset, text_column: str) -> list[int]:
    column = arrow_column(data, text_column)
    if not holds_text(column.type):
        return []
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column.cast(pa.large_string())), ""), True)
    return np.flatnonzero(np.asarray(blank)).tolist()


def _broken_pictures(data: datasets.Dataset, image_column: str, split: str, full: bool) -> dict[int, str]:
    pictures, faults, decoded = raw_pictures(data, image_column), dict[int, str](), 0

    def check(start: int) -> list[tuple[int, str | None, bool]]:
        checked = []
        for row, value in enumerate(pictures[start : start + _ROWS][image_column], start):
            fault, was_decoded = fault_of(value, full, cheap=start < _DECODED_AT_MOST)
            name = os.path.relpath(value["path"]) if value and value["path"] else None
            checked.append((row, f"{name}: {fault}" if fault and name else fault, was_decoded))
        return checked

    starts = range(0, len(pictures), _ROWS)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = pool.map(check, starts)
        for rows in tqdm(checked, f"checking {split}", len(starts), unit=f" x {_ROWS} pictures", leave=False):
            faults |= {row: fault for row, fault, _ in rows if fault}
            decoded += sum(was_decoded for _, _, was_decoded in rows)
    if (unread := len(pictures) - decoded - len(faults)) > 0:
        logger.warning(
            "%s: for %s of %s images, only header and end of file were checked; --check_data full decodes them, too.",
            split,
            f"{unread:,}",
            f"{len(pictures):,}",
        )
    return faults


def check_transform(data: object, kept_columns: Collection[str], which: str) -> None:
    """Check that a transform still finds its columns after the Trainer has removed those that the model does not take.

    Args:
        data: a dataset; anything but a `datasets.Dataset` with a transform is ignored.
        kept_columns: the columns that are kept: parameters of the model's forward, and the label column.
        which: what the dataset is, such as "the training set", for error messages.

    Raises:
        ValueError: the transform reads a column that is removed.

    Example:
        >>> data = datasets.Dataset.from_dict({"x": [1]}).with_transform(lambda batch: {"y": batch["x"]})
        >>> check_transform(data, ["x"], "the training set")
    """
    if not isinstance(data, datasets.Dataset) or data.format["type"] != "custom" or len(data) == 0:
        return
    removed = [name for name in data.column_names if name not in kept_columns]
    if not removed:
        return
    row = data.select([0])
    try:
        row.remove_columns(removed)[0]
    except Exception as error:
        try:
            row[0]
        except Exception:  # an error in the transform itself, which will be raised when the data is used
            return
        read = str(error) if isinstance(error, KeyError) else " or ".join(map(repr, removed))
        raise ValueError(
            f"the transform of {which} reads the column {read}, which the Trainer removes because the model does not "
            "take it. Set remove_unused_columns=False."
        ) from error
