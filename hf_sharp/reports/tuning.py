"""The result of a search: noise, the effect of every option, and a summary in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_sharp.registry.words import quantity
from hf_sharp.reports.figures import Z_95, half_width

# The states of an ended run: at its last step; because it fell behind; because losses or weights were not finite.
FINISHED, ENDED_EARLY, NOT_FINITE = "finished", "ended early", "not finite"
_FEWEST = 4  # the fewest finished runs from which the effect of an option is estimated
_CHEAPER = 0.95  # a run that costs at most this share of the best run is mentioned


class Effect(NamedTuple):
    """The effect of an option on the balanced accuracy.

    Attributes:
        size: the mean of the best group of runs minus the mean of the worst group.
        noise: the standard error of this difference.
        best: the group with the highest mean, in words.
    """

    size: float
    noise: float
    best: str

    @property
    def matters(self) -> bool:
        """Whether the size is more than twice the noise."""
        return self.size > 2 * self.noise


class Costs(NamedTuple):
    """The costs of runs, in one unit for all runs.

    Attributes:
        of: run number to cost.
        what: the description of the cost, with its unit.
        share: the format string that says that a run costs a share of another.
    """

    of: dict[int, float]
    what: str
    share: str


def costs_of(runs: Sequence[Mapping[str, Any]]) -> Costs:
    """Return the costs of the finished runs: the passes of a training step, which do not depend on the machine.

    Args:
        runs: the runs, with `state`, `number`, `passes` and `seconds`.

    Returns:
        The costs. If some runs have no `passes`, because an older version began the search: the time of each run,
        relative to the first.
    """
    finished = [run for run in runs if run["state"] == FINISHED]
    if all(run["passes"] for run in finished):
        of = {run["number"]: run["passes"] for run in finished}
        return Costs(of, "cost of a training step (plain step = 1)", "at {:.0%} of the cost of a step")
    unit = max(finished[0]["seconds"], 1e-9)
    of = {run["number"]: run["seconds"] / unit for run in finished}
    return Costs(of, "training time (first run = 1)", "in {:.0%} of the time")


def best_of(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Choose the finished run with the highest balanced accuracy; the first of them in case of a tie."""
    return max((run for run in runs if run["state"] == FINISHED), key=lambda run: (run["value"], -run["number"]))


def effects(runs: Sequence[Mapping[str, Any]]) -> dict[str, Effect]:
    """Compare groups of finished runs that differ in an option.

    Runs are grouped by the choices of an option, or by the lower, middle and higher third of its numbers. Groups may
    differ in other options, too, so the effects are only hints.

    Args:
        runs: the runs, with `state`, `value` and `params`.

    Returns:
        Option to effect, the largest first; options with fewer than 4 runs or a single group are left out.
    """
    finished = [run for run in runs if run["state"] == FINISHED]
    found = {}
    for name in sorted({name for run in finished for name in run["params"]}):
        having = [run for run in finished if name in run["params"]]
        groups = _groups(name, having)
        if len(having) < _FEWEST or len(groups) < 2:
            continue
        means = {label: float(np.mean(values)) for label, values in groups.items()}
        degrees = len(having) - len(groups)
        within = sum(float(np.var(values)) * len(values) for values in groups.values())
        deviation = math.sqrt(within / degrees) if degrees > 0 else math.inf
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        noise = deviation * math.sqrt(1 / len(groups[best]) + 1 / len(groups[worst]))
        found[name] = Effect(means[best] - means[worst], noise, best)
    return dict(sorted(found.items(), key=lambda item: -item[1].size))


def _groups(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    values = [run["params"][name] for run in runs]
    if isinstance(values[0], str):
        labels = [str(value) for value in values]
    else:
        low, high = np.quantile(values, [1 / 3, 2 / 3])
        words = [f"up to {low:.3g}", f"{low:.3g} to {high:.3g}", f"above {high:.3g}"]
        labels = [words[0] if value <= low else words[2] if value > high else words[1] for value in values]
    groups: dict[str, list[float]] = {}
    for label, run in zip(labels, runs, strict=True):
        groups.setdefault(label, []).append(run["value"])
    return groups


def paragraph(runs: Sequence[Mapping[str, Any]], examples: int, free: Mapping[str, Any] | None) -> str:
    """Summarize in words which options mattered, which did not, and how large the noise is.

    Args:
        runs: all runs.
        examples: the number of validation examples.
        free: `strength` and `value` of a correction of the first run after training; or None.

    Returns:
        One paragraph.
    """
    best, first = best_of(runs), runs[0]
    report = best["report"]
    noise = (half_width(report["per_class_recall"], report["per_class_support"]) or 0.0) / Z_95
    finished = [run for run in runs if run["state"] == FINISHED]
    broken = sum(run["state"] == NOT_FINITE for run in runs)
    ended = f"{len(runs) - len(finished) - broken} ended early"
    if broken:
        ended += f", {broken} {'was' if broken == 1 else 'were'} not finite"
    said = [
        f"Of {quantity(len(runs), 'run', 'runs')} ({ended}), run {best['number']} is "
        f"best: balanced accuracy {100 * best['value']:.1f} on {examples:,} validation examples, "
        f"{100 * (best['value'] - first['value']):+.1f} points against the first run ({_described(first)})."
    ]
    said.append(
        f"So few examples leave a balanced accuracy uncertain by ± {100 * noise:.1f} points (standard error); other "
        "seeds add to that."
    )
    costs = costs_of(runs)
    share = {run["number"]: costs.of[run["number"]] / costs.of[best["number"]] for run in finished}
    near = [run for run in finished if best["value"] - run["value"] <= noise and share[run["number"]] <= _CHEAPER]
    if near:
        cheap = min(near, key=lambda run: (share[run["number"]], -run["value"]))
        said.append(
            f"Within this noise, run {cheap['number']} ({_described(cheap)}) does as well "
            f"{costs.share.format(share[cheap['number']])}."
        )
    if free is not None and free["strength"] > 0:
        said.append(
            "A correction of the first run without training (`hf-sharp adjust`, strength "
            f"{free['strength']:g}) reaches {100 * free['value']:.1f}."
        )
    return " ".join([*said, *_of_effects(effects(runs))])


def _described(run: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in run["params"].items()
    )


def _of_effects(found: Mapping[str, Effect]) -> list[str]:
    if not found:
        return ["Too few runs were finished to tell which options matter."]
    said = []
    mattered = [
        f"{name} ({100 * effect.size:.1f} points between its best values, {effect.best}, and its worst)"
        for name, effect in found.items()
        if effect.matters
    ]
    rest = [
        f"{name} ({100 * effect.size:.1f} ± {100 * effect.noise:.1f} points)"
        if math.isfinite(effect.noise)
        else f"{name} (too few runs)"
        for name, effect in found.items()
        if not effect.matters
    ]
    if mattered:
        said.append(f"What mattered: {'; '.join(mattered)}.")
    if rest:
        said.append(f"What made no difference beyond the noise between runs: {'; '.join(rest)}.")
    return said
