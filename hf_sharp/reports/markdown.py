"""Text from outside, as Markdown that shows it and is nothing but text."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_LONGEST_NAME = 200
_JOINERS = "\u200c\u200d"  # format characters that writing and emoji need; the others only hide or reorder text
_ENTITIES = {character: f"&#{ord(character)};" for character in "\\|`$@{"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|(?<=token=)\S+|(?<=token )\S{16,}")


def one_line(value: Any, longest: int = _LONGEST_NAME) -> str:
    r"""Make one printable line of any text: white space is one space; control, hidden and unpaired characters go.

    Args:
        value: anything; its `str` is meant. What looks like a token is left out.
        longest: how many characters may stay.

    Returns:
        At most `longest` characters.

    Example:
        >>> one_line(" a\n---\tb\u202e ")
        'a --- b'
    """
    spaced = " ".join(str(value).split())
    kept = (c for c in spaced if c in _JOINERS or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Cn", "Co"))
    line = _SECRET.sub("…", "".join(kept).strip())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def escaped(value: Any, longest: int = _LONGEST_NAME) -> str:
    r"""Make text from outside into Markdown that shows it, and is nothing but text: in a table's cell or a line.

    Args:
        value: anything; its `str` is meant.
        longest: how many characters may stay.

    Returns:
        Markdown, `(no name)` where nothing is left to show.

    Example:
        >>> escaped("snow_leopard | <b>[x](y)</b>")
        'snow_leopard &#124; &lt;b&gt;\\[x\\](y)&lt;/b&gt;'
    """
    text = "".join(_ENTITIES.get(character, character) for character in one_line(value, longest))
    text = re.sub(r"([*\[\]~]|(?<!&)#|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    return re.sub(r"(?i)(?<=\bwww)\.|:(?=//)", lambda found: f"&#{ord(found[0])};", text) or "(no name)"


def code(value: Any, longest: int = _LONGEST_NAME) -> str:
    """Show a value from outside as code, in a table's cell or a line.

    Args:
        value: anything; its `str` is meant.
        longest: how many characters may stay.

    Returns:
        A code span; `<code>` around escaped text where a span would end too early or split a table.

    Example:
        >>> code("focal_sam"), code("a|b")
        ('`focal_sam`', '<code>a&#124;b</code>')
    """
    line = one_line(value, longest)
    return f"<code>{escaped(value, longest)}</code>" if not line or "`" in line or "|" in line else f"`{line}`"
