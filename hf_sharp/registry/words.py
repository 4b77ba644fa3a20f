"""Words of messages and tables."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST = 100  # characters that are shown of one value
_LONGEST_LIST = 600


def quantity(number: int, singular: str, plural: str) -> str:
    """Format a number with its noun.

    Example:
        >>> quantity(1, "class", "classes"), quantity(2000, "class", "classes")
        ('1 class', '2,000 classes')
    """
    return f"{number:,} {singular if number == 1 else plural}"


def brief(text: object, longest: int = _LONGEST) -> str:
    """Cut a text, a value or a type for a message.

    Args:
        text: anything that can be converted to a text.
        longest: the number of characters to show.

    Returns:
        The text; if it is longer, its beginning and an ellipsis.

    Example:
        >>> brief("abc"), brief("abcdef", 4)
        ('abc', 'abc…')
    """
    whole = str(text)
    return whole if len(whole) <= longest else f"{whole[: longest - 1]}…"


def quoted(names: Iterable[object]) -> str:
    """Format names, such as those of columns, for a message.

    Example:
        >>> quoted(["text", "label"])
        "'text', 'label'"
    """
    return brief(", ".join(brief(repr(name)) for name in names), _LONGEST_LIST)
