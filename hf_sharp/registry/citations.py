"""Papers to cite."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Citation:
    """A paper.

    Args:
        authors: full names, separated by " and ", as in BibTeX.
        title: the title.
        year: the year of the first version.
        arxiv: the arXiv number, or None.
        venue: where it appeared, for a paper without an arXiv number.

    Example:
        >>> paper = Citation("Ada Lovelace and Charles Babbage", "Notes on the Engine", 1843, venue="Memoirs")
        >>> paper.text
        'Lovelace and Babbage, *Notes on the Engine*, Memoirs 1843'
        >>> print(paper.bibtex)
        @article{lovelace1843notes,
          author = {Ada Lovelace and Charles Babbage},
          title = {{Notes on the Engine}},
          journal = {Memoirs},
          year = {1843}
        }
    """

    authors: str
    title: str
    year: int
    arxiv: str | None = None
    venue: str | None = None

    @property
    def text(self) -> str:
        """The paper in one line of Markdown."""
        names = [name.split()[-1] for name in self.authors.split(" and ")]
        short = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        where = (
            f"[arXiv {self.arxiv}](https://arxiv.org/abs/{self.arxiv})" if self.arxiv else f"{self.venue} {self.year}"
        )
        return f"{short}, *{self.title}*, {where}"

    @property
    def key(self) -> str:
        """The BibTeX key: first author, year, first word of the title."""
        first = self.authors.split(" and ")[0].split()[-1]
        return "".join(re.findall("[a-z0-9]", f"{first}{self.year}{self.title.split()[0]}".lower()))

    @property
    def bibtex(self) -> str:
        """The BibTeX entry."""
        journal = f"arXiv preprint arXiv:{self.arxiv}" if self.arxiv else self.venue
        fields = {"author": self.authors, "title": f"{{{self.title}}}", "journal": journal, "year": str(self.year)}
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@article{{{self.key},\n{lines}\n}}"
