"""The protocol as code: derives the next runs and the choices made so far from the finished runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import tasks

from study.rows import ADJUSTED, PLAIN, POST_HOC, ROWS, Row, is_available
from study.runs import FINAL_SEEDS, RATE_SEEDS, TUNING_SEEDS, Run, make_run

STAGES = ("rate", "base", "controls", "tune", "final", "further_tune", "further_final")
READS_TEST = ("controls", "final", "further_final")
FINISHED = (*STAGES[STAGES.index("final") + 1 :], "done")  # the stages in which all main rows are finished


class Search:
    """Decides which settings of a row to try, and which one is best.

    Args:
        size: the number of settings. If there are five, the middle three are tried first, and then the outer neighbour
            of the best one if that is at an end of the three. Otherwise all settings are tried.

    Example:
        >>> search = Search(5)
        >>> search.wanted({}), search.wanted({1: 0.3, 2: 0.4, 3: 0.5}), search.wanted({1: 0.3, 2: 0.4, 3: 0.1})
        ([1, 2, 3], [4], [])
    """

    def __init__(self, size: int) -> None:
        self.first = list(range(size)) if size < 5 else [1, 2, 3]
        self.size = size

    def wanted(self, scores: Mapping[int, float]) -> list[int]:
        """List the settings that still have to be run.

        Args:
            scores: setting to its mean validation score over the tuning seeds.

        Returns:
            The settings; empty if the best one is known.
        """
        if missing := [i for i in self.first if i not in scores]:
            return missing
        if self.size == 5 and len(scores) == 3:
            best = self.best(scores)
            return [0] if best == 1 else [4] if best == 3 else []
        return []

    @staticmethod
    def best(scores: Mapping[int, float]) -> int:
        """Return the setting with the highest score; the smallest one in case of a tie."""
        return max(scores, key=lambda i: (scores[i], -i))


def stops(differences: Mapping[int, Sequence[float]]) -> bool:
    """Check whether a row stops after the search, without final runs.

    Args:
        differences: for every setting tried, the validation score minus the reference's, seed by seed.

    Returns:
        Whether the best setting is behind by more than twice the spread: the standard deviation of these differences
        over seeds, pooled over the settings, and at least one point.

    Example:
        >>> stops({0: [-0.05, -0.04], 1: [-0.10, -0.08]}), stops({0: [-0.01, 0.01], 1: [-0.1, -0.1]})
        (True, False)
    """
    best = max(statistics.fmean(values) for values in differences.values())
    variances = [statistics.variance(values) for values in differences.values() if len(values) > 1]
    spread = max(0.01, math.sqrt(statistics.fmean(variances)) if variances else 0.0)
    return best < -2 * spread


@dataclass
class Plan:
    """The state of the protocol, given the finished runs.

    Args:
        task: the task's name.
        wanted: the runs that can start now.
        rates: base, as "tuning/head", to learning rate, as far as chosen.
        base: the better base, once it is chosen.
        chosen: row to the index of its best setting.
        stopped: stopped rows, with the mean validation difference of their best setting.
        waiting: rows whose options the installed hf_sharp does not have.
        stage: the stage of `wanted`; "done" if nothing is left to run.
        validation: row to the mean validation score of each setting tried.
    """

    task: str
    wanted: list[Run] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    base: tuple[str, str] | None = None
    chosen: dict[str, int] = field(default_factory=dict)
    stopped: dict[str, float] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    stage: str = "done"
    validation: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def tunings(self) -> tuple[str, ...]:
        """The kinds of tuning of the task; the first one is in use today."""
        return tuple(tasks.load(self.task).RATES)

    @property
    def today(self) -> tuple[str, str]:
        """The base in use today."""
        return self.tunings[0], "noise"

    @property
    def bases(self) -> list[tuple[str, str]]:
        """All bases, as pairs of tuning and head."""
        heads = ("noise",) if self.tunings == ("scratch",) else ("noise", "class_mean")
        return [(tuning, head) for tuning in self.tunings for head in heads]

    def runs(self, base: tuple[str, str], seeds: Iterable[int], *options: Mapping[str, Any]) -> list[Run]:
        """Make one run per seed on a base, at its learning rate."""
        return [make_run(self.task, base, self.rates["/".join(base)], seed, *options) for seed in seeds]

    def runs_of(self, row: Row, setting: int, seeds: Iterable[int]) -> list[Run]:
        """Make one run per seed with a setting of a row, on the row's base."""
        base = self.today if row.base == "today" or self.base is None else self.base
        return self.runs(base, seeds, row.options, row.tries[setting])


def make_plan(task: str, finished: Mapping[str, Mapping[str, Any]], further: Collection[str] | None = None) -> Plan:
    """Follow the protocol as far as the finished runs allow.

    Args:
        task: the task's name.
        finished: key to the record of a run. Only the balanced accuracy on validation data is used.
        further: names of the further rows to plan; None for all.

    Returns:
        The plan.
    """
    plan = Plan(task, waiting=[name for name, row in ROWS.items() if not is_available(row.options)])
    protocol = _Protocol(plan, finished)
    main = {name: row for name, row in ROWS.items() if not row.further}
    every = {name: row for name, row in ROWS.items() if name in main or further is None or name in further}
    steps: tuple[Callable[[], list[Run]], ...] = (
        protocol.choose_rates,
        protocol.choose_base,
        protocol.run_controls,
        partial(protocol.tune_rows, main),
        partial(protocol.final_runs, main),
        partial(protocol.tune_rows, every),
        partial(protocol.final_runs, every),
    )
    for stage, step in zip(STAGES, steps, strict=True):
        wanted = list(dict.fromkeys(run for run in step() if run.key not in finished))
        if wanted:
            plan.wanted, plan.stage = wanted, stage
            break
    return plan


class _Protocol:
    """The stages. Each method returns the runs that it needs, and updates the plan once they are finished."""

    def __init__(self, plan: Plan, finished: Mapping[str, Mapping[str, Any]]) -> None:
        self.plan, self.finished = plan, finished

    def score(self, run: Run) -> float:
        return cast(float, self.finished[run.key]["validation"]["balanced_accuracy"])

    def search(self, name: str, candidates: Sequence[Sequence[Run]]) -> list[Run]:
        """Search among settings, each of which has one run per tuning seed."""
        scores = {
            index: statistics.fmean(map(self.score, runs))
            for index, runs in enumerate(candidates)
            if all(run.key in self.finished for run in runs)
        }
        self.plan.validation[name] = scores
        wanted = Search(len(candidates)).wanted(scores)
        if not wanted:
            self.plan.chosen[name] = Search.best(scores)
        return [run for index in wanted for run in candidates[index]]

    def choose_rates(self) -> list[Run]:
        """Choose the learning rate of each base, with cross-entropy."""
        wanted: list[Run] = []
        for base in self.plan.bases:
            name, rates = "/".join(base), tasks.load(self.plan.task).RATES[base[0]]
            search = f"learning rate, {name}"
            wanted += self.search(
                search, [[make_run(self.plan.task, base, rate, seed, PLAIN) for seed in RATE_SEEDS] for rate in rates]
            )
            if search in self.plan.chosen:
                self.plan.rates[name] = rates[self.plan.chosen[search]]
        return wanted

    def choose_base(self) -> list[Run]:
        """Choose the base, with logit adjustment."""
        bases = self.plan.bases
        wanted = self.search("base", [self.plan.runs(base, TUNING_SEEDS, ADJUSTED) for base in bases])
        if not wanted:
            self.plan.base = bases[self.plan.chosen["base"]]
        return wanted

    def _duplicates(self, row: Row) -> bool:
        if row.base != "today" or self.plan.base != self.plan.today:
            return False
        others = [other for other in ROWS.values() if other.base != "today" and len(other.tries) == 1]
        return any(other.options == row.options for other in others)

    def run_controls(self) -> list[Run]:
        """List the runs with the final seeds of the bases, and of the main controls with nothing to choose."""
        wanted = [run for base in self.plan.bases for run in self.plan.runs(base, FINAL_SEEDS, ADJUSTED)]
        for name, row in ROWS.items():
            if row.control and len(row.tries) == 1 and not row.further and not self._duplicates(row):
                self.plan.chosen[name] = 0
                wanted += self.plan.runs_of(row, 0, FINAL_SEEDS)
        return sorted(wanted, key=lambda run: run.seed)

    def tune_rows(self, rows: Mapping[str, Row]) -> list[Run]:
        """Choose the settings of every row, and stop rows that are far behind."""
        wanted: list[Run] = []
        for name, row in rows.items():
            if name in self.plan.waiting or self._duplicates(row):
                continue
            # A control without settings has nothing to choose, and is never stopped.
            if len(row.tries) == 1 and row.control:
                self.plan.chosen[name] = 0
                continue
            missing = self.search(
                name, [self.plan.runs_of(row, index, TUNING_SEEDS) for index in range(len(row.tries))]
            )
            wanted += missing
            if not missing and not row.control:
                self._stop_if_behind(name, row)
        # These are used to choose the strength of the correction after training.
        for row in (ROWS[name] for name in POST_HOC.values()):
            if not self._duplicates(row):
                wanted += self.plan.runs_of(row, 0, TUNING_SEEDS)
        return wanted

    def _stop_if_behind(self, name: str, row: Row) -> None:
        assert self.plan.base is not None
        reference = [self.score(run) for run in self.plan.runs(self.plan.base, TUNING_SEEDS, ADJUSTED)]
        differences = {
            index: [
                self.score(run) - score
                for run, score in zip(self.plan.runs_of(row, index, TUNING_SEEDS), reference, strict=True)
            ]
            for index in self.plan.validation[name]
        }
        if stops(differences):
            self.plan.stopped[name] = max(statistics.fmean(values) for values in differences.values())

    def final_runs(self, rows: Mapping[str, Row]) -> list[Run]:
        """List the runs with the final seeds of all controls and of the rows that did not stop."""
        wanted: list[Run] = []
        for name, row in rows.items():
            if name in self.plan.chosen and name not in self.plan.stopped:
                wanted += self.plan.runs_of(row, self.plan.chosen[name], FINAL_SEEDS)
        # Ordered by seed, so that comparisons are complete for the first seeds early on.
        return sorted(wanted, key=lambda run: run.seed)
