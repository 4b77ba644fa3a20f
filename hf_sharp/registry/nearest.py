"""The name that someone meant who wrote another one. Works without torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# What other programs and libraries call these options.
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
    """Find the known name that is most like a name; None where none is.

    Args:
        name: what was written.
        known: the names that exist.

    Returns:
        The same name in other capitals, what other libraries call so, or one with few other letters.

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
    """Ask for the nearest known name, as the end of a message: empty where none is near.

    Example:
        >>> did_you_mean("crossentropy", ["cross_entropy", "focal"])
        " Did you mean 'cross_entropy'?"
    """
    near = nearest(name, known)
    return "" if near is None else f" Did you mean {near!r}?"


def check_name(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise a ValueError for a name that is not known, with the known ones and the nearest of them."""
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; expected one of {', '.join(known)}.{did_you_mean(name, known)}")
