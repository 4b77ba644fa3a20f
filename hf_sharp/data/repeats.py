"""Finds examples that a split shares with the training split, which make its report too optimistic."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_sharp.data.labels import arrow_column, holds_text
from hf_sharp.data.pictures import raw_pictures

logger = logging.getLogger(__name__)

_READ_AT_MOST = 20_000  # image files whose size occurs in both splits


def warn_of_repeats(
    splits: Mapping[str, datasets.Dataset],
    text_column: str | None,
    image_column: str | None,
    held_out: Mapping[str, bool],
) -> None:
    """Log how many rows of each other split are also training rows, with the same text or the same image file.

    Args:
        splits: `train` and the other splits.
        text_column: the column with texts, if any.
        image_column: the column with images, if any; they are not decoded.
        held_out: for each other split, whether it was held out from the training split.
    """
    for split in (name for name in held_out if name in splits):
        parts = splits["train"], splits[split]
        texts, pictures = (0 if column is None else repeats(*parts, column) for column in (text_column, image_column))
        if texts or pictures:
            remedy = "Remove them from one of the two."
            if texts and held_out[split]:
                remedy = f"--unique_column {text_column} leaves repeats out."
            logger.warning(
                "%s of %s %s rows are training rows too (the same %s): a report on them is too good. %s",
                f"{texts or pictures:,}",
                f"{len(splits[split]):,}",
                split,
                "text" if texts else "picture",
                remedy,
            )


def repeats(train: datasets.Dataset, other: datasets.Dataset, column: str) -> int:
    """Count the rows whose text or image is also in the training split.

    Args:
        train: the training split.
        other: another split.
        column: a column of texts, compared without surrounding white space, or of images, compared as files. Other
            columns are not compared.

    Returns:
        The number of such rows of `other`; 0 for other columns, or if more than 20,000 images would have to be read.

    Example:
        >>> rows = datasets.Dataset.from_dict({"text": ["a", "b", " a"]})
        >>> repeats(rows.select([0]), rows.select([1, 2]), "text")
        1
    """
    if column not in train.column_names or column not in other.column_names:
        return 0
    if isinstance(other.features[column], datasets.Image):
        return _same_pictures(raw_pictures(train, column), raw_pictures(other, column))
    known, asked = (arrow_column(data, column) for data in (train, other))
    if not (holds_text(known.type) and holds_text(asked.type)):
        return 0
    known, asked = (pc.utf8_trim_whitespace(texts.cast(pa.large_string())) for texts in (known, asked))
    return pc.sum(pc.is_in(asked, value_set=known)).as_py() or 0


def _same_pictures(train: datasets.Dataset, other: datasets.Dataset) -> int:
    # Files of different sizes are different, so only files whose size occurs in both splits are read.
    known, asked = _sizes(train), _sizes(other)
    rows = [np.flatnonzero(np.isin(a, b) & (a > 0)) for a, b in ((known, asked), (asked, known))]
    if sum(map(len, rows)) > _READ_AT_MOST:
        return 0
    seen = set(_digests(train.select(rows[0])))
    return sum(digest in seen for digest in _digests(other.select(rows[1])))


def _sizes(pictures: datasets.Dataset) -> np.ndarray:
    files = pictures.data.column(pictures.column_names[0])  # the whole table, so that no bytes are copied
    lengths = np.asarray(pc.fill_null(pc.binary_length(pc.struct_field(files, "bytes")), -1)).astype(np.int64)
    paths = np.asarray(pc.struct_field(files, "path"), object)
    if pictures._indices is not None:
        rows = pictures._indices.column(0).to_numpy()
        lengths, paths = lengths[rows], paths[rows]
    for row in np.flatnonzero(lengths < 0):
        with suppress(OSError, TypeError):  # no path, or not a local one
            lengths[row] = os.path.getsize(paths[row])
    return lengths


def _digests(pictures: datasets.Dataset) -> list[bytes]:
    column = pictures.column_names[0]
    values = (value for batch in pictures.iter(batch_size=64) for value in batch[column])
    contents = (Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"] for value in values)
    return [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
