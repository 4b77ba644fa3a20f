"""The tables of docs/evidence.md, and README's."""

import json
from collections.abc import Callable

from study import RESULTS
from study.claims import confirmation, lets_line, overview, overview_of_default, price, shorter_trainings
from study.report import make_table
from study.results import finished_results
from tasks import TITLES

from pages.formatting import results


def tasks() -> str:
    """Show the rows of every task."""
    return "\n\n".join(f"### {TITLES[task]}\n\n{make_table(result)}" for task, result in finished_results().items())


def fresh_seeds() -> str:
    """Make the table of the confirmation on fresh seeds."""
    files = {task: RESULTS / f"confirmation_{task}.json" for task in finished_results()}
    found = [json.loads(file.read_text()) for file in files.values() if file.exists()]
    machines = "; ".join(dict.fromkeys(result["machine"] for result in found))
    return f"{confirmation(found)}\n\n`python benchmarks/confirm.py all` on {machines}, seeds from 100 on."


def duration() -> str:
    """Compare momentum-SAM with logit adjustment alone in shorter trainings."""
    result = results("duration")
    return f"{shorter_trainings(result)}\n\n`{result['command']}` on {result['machine']}, seeds from 100 on."


def lets() -> str:
    """Compare the learned radius with the best fixed one."""
    return "\n".join(f"- {line}" for result in finished_results().values() if (line := lets_line(result)))


EVIDENCE_TABLES: dict[str, Callable[[], str]] = {
    "evidence_overview": lambda: overview(list(finished_results().values())),
    "evidence_default": lambda: overview_of_default(list(finished_results().values())),
    "evidence_price": lambda: price(list(finished_results().values())),
    "evidence_tasks": tasks,
    "evidence_confirmation": fresh_seeds,
    "evidence_duration": duration,
    "evidence_lets": lets,
}
