"""Words of messages and tables."""

from __future__ import annotations


def quantity(number: int, singular: str, plural: str) -> str:
    """Format a number with its noun.

    Example:
        >>> quantity(1, "class", "classes"), quantity(2000, "class", "classes")
        ('1 class', '2,000 classes')
    """
    return f"{number:,} {singular if number == 1 else plural}"
