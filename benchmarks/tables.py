"""Rewrite the generated tables in README.md and docs/, or check that they are up to date.

python benchmarks/tables.py           # rewrite the text between the markers (make docs)
python benchmarks/tables.py --check   # exit 1 if any page is out of date

The tables are made in benchmarks/pages/: those of measurements from benchmarks/results, those of methods, losses,
options and configs from their definitions.
"""

import argparse
import re
import sys

from pages.accuracy import ACCURACY_TABLES, comparison, head_corrections
from pages.costs import COST_TABLES
from pages.evidence import EVIDENCE_TABLES
from pages.reference import REFERENCE_TABLES
from study import ROOT

TABLES = REFERENCE_TABLES | ACCURACY_TABLES | COST_TABLES | EVIDENCE_TABLES


def fill(text: str) -> str:
    """Replace every block between `<!-- NAME -->` and `<!-- end -->` by the table of that name."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name in TABLES:
            made = TABLES[name]()
        else:
            made = head_corrections(name) if name.endswith("_head") else comparison(name)
        return f"<!-- {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> int:
    """Rewrite or check the tables of every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if any page is out of date")
    check = parser.parse_args().check
    stale = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        filled = fill(text)
        if filled != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(filled)
    for page in stale:
        print(f"{page} is out of date. Run `make docs`." if check else f"{page} rewritten")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
