"""Takes local paths and the access token out of what is published: absolute paths shrink to their last component."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_ROOT = r"(?:file://)?(?:/|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\)"
_WHOLE_PATH = re.compile(rf"{_ROOT}(?!.*\s{_ROOT}).*")
# An absolute path of at least two components, at the start of a text or after a space, a quote or a bracket.
_PATH = re.compile(rf"""(?<![^\s'"=(,\[]){_ROOT}(?:(?<=[~\\:]/)|(?<=\\)|[^\s/'",;]+/)[^\s'",;)]+""")

_TOKEN = ("--hub_token", "--hub-token")


def without_paths(text: str) -> str:
    r"""Shorten every absolute path in a text to its last component.

    Args:
        text: any text; a path may contain spaces only if it is the whole text.

    Returns:
        The text with shortened paths.

    Example:
        >>> without_paths("train.py --dataset /srv/ann/photos --output_dir=C:\\runs\\a"), without_paths("user/model")
        ('train.py --dataset photos --output_dir=a', 'user/model')
    """
    if _WHOLE_PATH.fullmatch(text):
        return _last_part(text)
    return _PATH.sub(lambda match: _last_part(match[0]), text)


def shortened(value: Any, name: str = "") -> Any:
    """Copy options with absolute paths shortened; everything else, including class names, is unchanged.

    Args:
        value: JSON-like data.
        name: the option's name.

    Returns:
        The copy.

    Example:
        >>> shortened({"dataset": "/srv/ann/photos", "class_names": ["/m/01g317"], "seed": 1})
        {'dataset': 'photos', 'class_names': ['/m/01g317'], 'seed': 1}
    """
    if name in ("class_names", "class_importance"):
        return value
    if isinstance(value, Mapping):
        return {key: shortened(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [shortened(item) for item in value]
    return without_paths(value) if isinstance(value, str) else value


def shown_command(words: Sequence[str]) -> str:
    """Join the words of a command, for a shell, without the access token of the Hub.

    Example:
        >>> shown_command(["python", "train.py", "--hub-token", "hf_secret", "--output_dir", "my model"])
        "python train.py --hub-token '…' --output_dir 'my model'"
    """
    shown = [re.sub(r"^(--hub[-_]token=).*", r"\1…", word, flags=re.DOTALL) for word in words]
    return shlex.join("…" if before in _TOKEN else word for before, word in zip(["", *words], shown, strict=False))


def shortened_command(command: str) -> str:
    """Shorten the absolute paths in a shell command.

    Example:
        >>> shortened_command("python train.py --dataset '/srv/ann lee/photos'")
        'python train.py --dataset photos'
    """
    try:
        return shlex.join(map(without_paths, shlex.split(command)))
    except ValueError:  # not a valid shell command: an unpaired quote
        return without_paths(command)


def _last_part(path: str) -> str:
    windows = "\\" in path or re.match(r"[A-Za-z]:", path)
    return (PureWindowsPath(path) if windows else PurePosixPath(path)).name or path
