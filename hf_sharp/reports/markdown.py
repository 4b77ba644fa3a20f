"""Makes untrusted text, such as class names and paths, safe to publish and to insert into Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from hf_sharp.data.local_paths import without_paths

_LONGEST_NAME = 200
_JOINERS = "\u200c\u200d"  # the format characters that scripts and emoji need; all others hide or reorder text
_ENTITIES = {character: f"&#{ord(character)};" for character in "\\|`$@{"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SECRET = re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}|(?<=token=)\S+|(?<=token )\S{16,}")


def one_line(value: Any, longest: int = _LONGEST_NAME) -> str:
    r"""Convert a value to one printable line: collapse white space; drop control, hidden and unpaired characters.

    Args:
        value: anything; its `str` is used. Anything that looks like an access token is removed.
        longest: the maximum number of characters.

    Returns:
        At most `longest` characters.

    Example:
        >>> one_line(" a\n---\tb\u202e "), one_line("a \x02 b")
        ('a --- b', 'a b')
    """
    spaced = " ".join(str(value).split())
    kept = (c for c in spaced if c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn", "Co"))
    line = _SECRET.sub("…", " ".join("".join(kept).split()))  # what was dropped may have stood between spaces
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def published(value: Any, name: str = "") -> Any:
    """Copy options for publication: without access tokens and without absolute paths.

    Args:
        value: JSON-like data.
        name: the option's name.

    Returns:
        The copy; every string in it is one printable line.

    Example:
        >>> published({"dataset": "/srv/ann/photos", "hub_token": "secret", "seed": 1})
        {'dataset': 'photos', 'seed': 1}
    """
    if isinstance(value, Mapping):
        copied = {one_line(key): published(item, str(key)) for key, item in value.items()}
        return {key: item for key, item in copied.items() if not key.endswith("token")}
    if isinstance(value, (list, tuple)):
        return [published(item) for item in value]
    return without_paths(one_line(value)) if isinstance(value, str) else value


def escaped(value: Any, longest: int = _LONGEST_NAME) -> str:
    r"""Escape text for Markdown, so that it is shown literally in a line or in the cell of a table.

    Args:
        value: anything; its `str` is used.
        longest: the maximum number of characters.

    Returns:
        Markdown; `(no name)` for an empty text.

    Example:
        >>> escaped("snow_leopard | <b>[x](y)</b>")
        'snow_leopard &#124; &lt;b&gt;\\[x\\](y)&lt;/b&gt;'
    """
    text = "".join(_ENTITIES.get(character, character) for character in one_line(value, longest))
    text = re.sub(r"([*\[\]~]|(?<!&)#|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    return re.sub(r"(?i)(?<=\bwww)\.|:(?=//)", lambda match: f"&#{ord(match[0])};", text) or "(no name)"


def code(value: Any, longest: int = _LONGEST_NAME) -> str:
    """Format an untrusted value as code, for a line or a table cell.

    Args:
        value: anything; its `str` is used.
        longest: the maximum number of characters.

    Returns:
        A code span; or `<code>` around escaped text if a span would end early or split the table.

    Example:
        >>> code("focal_sam"), code("a|b")
        ('`focal_sam`', '<code>a&#124;b</code>')
    """
    line = one_line(value, longest)
    return f"<code>{escaped(value, longest)}</code>" if not line or "`" in line or "|" in line else f"`{line}`"
