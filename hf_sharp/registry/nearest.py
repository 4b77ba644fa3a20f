"""Finds the known name that a user probably meant. Works without torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# The names of these options in other programs and libraries.
_ELSEWHERE = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "model": "model_name_or_path",
    "data": "dataset",
    "output": "output_dir",
    "labels": "label_column",
    "label": "label_column",
    "text": "text_column",
    "image": "image_column",
    "classes": "class_names",
    "optimizer": "optim",
}


def nearest(name: object, known: Iterable[object]) -> str | None:
    """Find the known name that is most similar to a name.

    Args:
        name: the name that the user wrote.
        known: the names that exist.

    Returns:
        The same name in other capitalization, else the name for which it is an alias in other libraries, else the one
        that is spelled most similarly; None if there is no such name.

    Example:
        >>> nearest("lr", ["learning_rate", "loss"]), nearest("Label", ["text", "label"]), nearest("x", ["loss"])
        ('learning_rate', 'label', None)
    """
    names = {str(other).casefold(): str(other) for other in known}
    written = str(name).casefold()
    for same in (written, _ELSEWHERE.get(written.replace("-", "_"))):
        if same in names:
            return names[same]
    close = difflib.get_close_matches(written, names, n=1)
    return names[close[0]] if close else None


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return a question that suggests the nearest known name, to end a message with; empty if there is none.

    Example:
        >>> did_you_mean("crossentropy", ["cross_entropy", "focal"])
        " Did you mean 'cross_entropy'?"
    """
    near = nearest(name, known)
    return "" if near is None else f" Did you mean {near!r}?"


def check_name(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise a ValueError for an unknown name, which lists the known names and suggests the nearest."""
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; expected one of {', '.join(known)}.{did_you_mean(name, known)}")
