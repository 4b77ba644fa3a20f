"""A registry of records by name, which rejects incomplete built-in records."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hf_sharp.registry.citations import Citation
from hf_sharp.registry.nearest import check_name

Record = TypeVar("Record")


class Registry(Mapping[str, Record], Generic[Record]):
    """A mapping of names to records. Built-in records must be fully described; a user's record only needs a name.

    Args:
        kind: what the records are, for messages: "loss", "sharpness method".
        described: the attributes that every built-in record must define.
        defined_by: returns the class or function that defines a record. A second record of the same name counts as a
            rerun of the same definition if both have the same module and qualified name.

    Example:
        >>> from types import SimpleNamespace as Record
        >>> registry = Registry("loss", described=["summary"])
        >>> _ = registry.add_builtin(Record(name="ce", summary="cross-entropy"))
        >>> _ = registry.register(Record(name="mine"))
        >>> list(registry), registry.builtin
        (['ce', 'mine'], ['ce'])
        >>> registry.add_builtin(Record(name="poly"))
        Traceback (most recent call last):
        ValueError: the loss 'poly' has no summary. Every built-in loss defines name, summary.
    """

    def __init__(
        self, kind: str, described: Iterable[str], defined_by: Callable[[Record], Any] = lambda record: record
    ) -> None:
        self.kind, self.described, self.defined_by = kind, ("name", *described), defined_by
        self.builtin: list[str] = []
        self._records: dict[str, Record] = {}

    def add_builtin(self, record: Record) -> Record:
        """Add a record of this package. Usable as a class decorator.

        Args:
            record: the record. It must define every attribute in `described` itself; inherited ones do not count.

        Returns:
            The record.

        Raises:
            ValueError: an attribute is missing, or the name is taken.
        """
        missing = [attribute for attribute in self.described if vars(record).get(attribute) in (None, "")]
        if missing:
            name = getattr(record, "name", None) or record
            raise ValueError(
                f"the {self.kind} {name!r} has no {', '.join(missing)}. Every built-in {self.kind} defines "
                f"{', '.join(self.described)}."
            )
        self.register(record)
        self.builtin.append(record.name)  # type: ignore[attr-defined]
        return record

    def register(self, record: Record) -> Record:
        """Add a user's record. Registering the same definition again, as in a notebook, replaces it.

        Args:
            record: the record, with a `name` that no other record has.

        Returns:
            The record.

        Raises:
            ValueError: the record has no name, or another record has the same name.
        """
        name = getattr(record, "name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"a {self.kind} needs a name, such as name = 'mine'; {record!r} has {name!r}.")
        known = self._records.get(name)
        if name in self.builtin or (known is not None and self._origin(known) != self._origin(record)):
            raise ValueError(f"there is already a {self.kind} named {name!r}. Choose another name.")
        self._records[name] = record
        return record

    def unregister(self, name: str) -> None:
        """Remove a user's record.

        Args:
            name: the name of the record.

        Raises:
            ValueError: the record is built in, or there is no record of that name.
        """
        self.check(name)
        if name in self.builtin:
            raise ValueError(f"the {self.kind} {name!r} is built in.")
        del self._records[name]

    def _origin(self, record: Record) -> tuple[str | None, str | None]:
        definition = self.defined_by(record)
        return getattr(definition, "__module__", None), getattr(definition, "__qualname__", None)

    def __getitem__(self, name: str) -> Record:
        return self._records[name]

    def check(self, name: Any) -> None:
        """Raise a ValueError that lists the registered names, if `name` is not one of them."""
        check_name(self.kind, name, self._records)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


@dataclass(frozen=True)
class Choice:
    """Values of a field that bring further options into effect, or that cite a paper.

    Args:
        field: the field of `SharpTrainingArguments`.
        applies: tells from the values of all options by name, some of which may be missing, whether it is chosen.
        options: the fields that have an effect only with these values.
        citations: the papers to cite for these values.
        summary: a sentence on what these values do, for the model card.
    """

    field: str
    applies: Callable[[Mapping[str, Any]], bool]
    options: tuple[str, ...] = ()
    citations: tuple[Citation, ...] = ()
    summary: str = ""


def option_names(function: Callable, without: Iterable[str] = ()) -> tuple[str, ...]:
    """List the parameters of a function that are options.

    Args:
        function: a function or a class.
        without: the names of parameters that are not options.

    Returns:
        The names, in order.

    Example:
        >>> option_names(lambda counts, gamma=1.0: None, without=["counts"])
        ('gamma',)
    """
    parameters = inspect.signature(function).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return tuple(name for name in named if name not in without)
