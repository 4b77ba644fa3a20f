"""`hf-sharp compare`: train two configs with the same seeds, and report which one is ahead, and by how much."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from hf_sharp.commands.train import launch
from hf_sharp.data.local_paths import shown_command
from hf_sharp.recipe.adapters import AdapterArguments
from hf_sharp.recipe.arguments import ModelArguments
from hf_sharp.recipe.flags import Flags
from hf_sharp.recipe.options import OPTIONS
from hf_sharp.recipe.parser import RecipeParser
from hf_sharp.recipe.planned import check_finished
from hf_sharp.registry.words import quantity
from hf_sharp.reports.figures import duration
from hf_sharp.reports.pairs import Paired, paired
from hf_sharp.reports.plots import plot_recall_by_count
from hf_sharp.reports.results import RESULTS, write_json

# Passes have the same cost only if the model and the length of the texts are the same.
_OF_A_PASS = {item.name for group in (ModelArguments, AdapterArguments) for item in fields(group)} | {"max_length"}
METRICS = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "many classes": "many_accuracy",
    "medium classes": "medium_accuracy",
    "few classes": "few_accuracy",
    "worst class": "worst_class_recall",
}


def seeds_needed(difference: float, deviation: float) -> int | None:
    """Estimate how many seeds are needed for the 95 % interval of a mean difference to exclude 0.

        t_{0.975, n−1} · s / √n < |difference|

    Args:
        difference: the mean difference between paired values.
        deviation: s >= 0, the standard deviation of these differences.

    Returns:
        The smallest n >= 3 that suffices, or None if it is above 1000.

    Example:
        >>> seeds_needed(0.02, 0.02), seeds_needed(0.001, 0.5)
        (7, None)
    """
    for n in range(3, 1001):
        if float(student.ppf(0.975, n - 1)) * deviation / math.sqrt(n) < abs(difference):
            return n
    return None


def verdict(names: tuple[str, str], metrics: dict[str, Paired], cost: float | None, seeds: int = 3) -> str:
    """State in words which of two configs is ahead.

    Args:
        names: names of the two configs.
        metrics: metric label to the result of `paired`.
        cost: the number of passes of the second divided by that of the first; None if unknown.
        seeds: the number of seeds.

    Returns:
        One or two sentences.
    """
    main = metrics["balanced accuracy"]
    gap, interval = 100 * main["difference"], main["interval"]
    ahead = names[1] if gap > 0 else names[0]
    if interval is None:
        said = f"{ahead} is ahead by {abs(gap):.1f} points of balanced accuracy, but one seed cannot tell from chance"
    elif seeds < 3:
        needed = seeds_needed(main["difference"], main["deviation"] or 0.0)
        enough = "even 1000 could not" if needed is None else f"about {needed} could, if the difference stays"
        said = f"{seeds} seeds cannot tell: {names[1]} is {gap:+.1f} points of balanced accuracy; {enough}"
    elif abs(gap) <= 100 * interval:
        said = (
            f"no difference beyond chance: {names[1]} is {gap:+.1f} ± {100 * interval:.1f} points of balanced accuracy"
        )
    else:
        said = f"{ahead} is ahead by {abs(gap):.1f} ± {100 * interval:.1f} points of balanced accuracy"
    if (few := metrics.get("few classes")) is not None:
        spread = "" if few["interval"] is None or seeds < 3 else f" ± {100 * few['interval']:.1f}"
        said += f"; few classes {100 * few['difference']:+.1f}{spread} for {names[1]}"
    return f"{said}." if cost is None else f"{said}; {names[1]} costs {cost:.1f} times {names[0]}, in passes."


def main(argv: list[str]) -> None:
    """Train the runs that are not finished, compare them, and show and save the comparison.

    Args:
        argv: the arguments after `hf-sharp compare`.

    Raises:
        ValueError: there is not at least one seed, both configs have the same name, or the runs used different data.
    """
    parser = Flags(
        prog="hf-sharp compare",
        usage="hf-sharp compare CONFIG_A CONFIG_B [options]",
        description="Train two configs with the same seeds, and compare them seed by seed. Finished runs are not "
        "trained again, except with --overwrite_output_dir. Further flags are passed to both trainings.",
    )
    parser.add_argument("config_a", metavar="CONFIG_A", help="a YAML file of options")
    parser.add_argument("config_b", metavar="CONFIG_B", help="another YAML file of options")
    parser.add_argument("--seeds", type=int, default=3, help="the number of seeds: 0, 1, ... (default: 3)")
    parser.add_argument("--output_dir", "--output", help="the folder for all results (default: outputs/compare/A_B)")
    parser.add_argument("--accelerate", default="single_gpu", help="as for hf-sharp train (default: single_gpu)")
    arguments, flags = parser.parse_known_args(argv)
    configs = (arguments.config_a, arguments.config_b)
    names = (Path(configs[0]).stem, Path(configs[1]).stem)
    if arguments.seeds < 1:
        raise ValueError(f"expected at least one seed, got {arguments.seeds}.")
    if names[0] == names[1]:
        raise ValueError(f"both configs are called {names[0]!r}, which is also the name of a folder. Rename one file.")
    output = Path(arguments.output_dir or f"outputs/compare/{names[0]}_{names[1]}")
    asked = [RecipeParser(OPTIONS, ["--config", config, *flags]).values for config in configs]  # both, before training
    runs = {
        output / name / f"seed_{seed}": (name, config, options | {"seed": seed})
        for seed in range(arguments.seeds)
        for name, config, options in zip(names, configs, asked, strict=True)
    }
    finished = _finished({folder: options for folder, (_, _, options) in runs.items()})
    last = output / names[1] / "seed_0"
    if not finished & {output / names[0] / "seed_0", last}:  # to find mistakes early
        check = ["--compare_with", "none", "--check_only", "true", "--output_dir", str(last)]
        launch(configs[1], [*flags, *check, "--resume_from_checkpoint", "true"], arguments.accelerate)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for folder, (name, config, options) in runs.items():
        if folder not in finished:
            run = ["--seed", str(options["seed"]), "--output_dir", str(folder), "--resume_from_checkpoint", "true"]
            launch(config, [*flags, "--compare_with", "none", *run], arguments.accelerate)
        results[name].append(json.loads((folder / RESULTS).read_text(encoding="utf-8")))
    summary = compare(names, results)
    summary["command"] = shown_command(["hf-sharp", "compare", *argv])
    write_json(output / "comparison.json", summary)
    reports = {name: mean_report([result["report"] for result in results[name]]) for name in names}
    plot_recall_by_count(reports, output / "recall_by_count.png", f"mean over {arguments.seeds} seeds")
    console = Console()
    console.print(comparison(names, summary))
    console.print(summary["verdict"], highlight=False)
    for file in ("comparison.json", "recall_by_count.png"):
        console.print(f"{output / file}", highlight=False, soft_wrap=True)


def _finished(runs: Mapping[Path, Mapping[str, Any]]) -> set[Path]:
    # The folders of the runs that need no training. Their options are checked before the first training starts.
    done = {folder for folder in runs if (folder / RESULTS).is_file() and not runs[folder].get("overwrite_output_dir")}
    for folder in done:
        check_finished(folder, runs[folder], whole=False)
    return done


def compare(names: tuple[str, str], results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Compare the results of two configs, seed by seed.

    Args:
        names: names of the two configs.
        results: config name to the content of `all_results.json`, one for each seed.

    Returns:
        `metrics` (label to the result of `paired`), `cost`, `passes`, `seconds`, `verdict`, `seeds`, `machine`. `cost`
        is the ratio of the passes; None if the results do not record passes (older versions), or if the two configs
        train different models.

    Raises:
        ValueError: the two were trained or evaluated on different data.
    """
    first, second = (results[name] for name in names)
    for result_a, result_b in zip(first, second, strict=True):
        for entry in ("class_counts", "per_class_support"):
            if result_a["report"][entry] != result_b["report"][entry]:
                raise ValueError(f"the {entry.replace('_', ' ')} of the two differ: they did not use the same data.")
    metrics = {}
    for label, metric in METRICS.items():
        values = [[result["report"][metric] for result in runs] for runs in (first, second)]
        if None not in values[0] + values[1]:
            metrics[label] = paired(*values)
    passes = [_passes(runs) for runs in (first, second)]
    one, other = ({name: runs[0].get("options", {}).get(name) for name in _OF_A_PASS} for runs in (first, second))
    cost = passes[1] / passes[0] if passes[0] and passes[1] and one == other else None
    return {
        "configs": list(names),
        "seeds": len(first),
        "metrics": metrics,
        "cost": cost,
        "passes": passes,
        "seconds": [statistics.fmean(run["training"]["train_runtime"] for run in runs) for runs in (first, second)],
        "verdict": verdict(names, metrics, cost, len(first)),
        "machine": first[0]["machine"],
    }


def _passes(runs: Sequence[Mapping[str, Any]]) -> float | None:
    # The mean number of plain passes over the training data; None if a run did not record it.
    each = [run["training"].get("passes", 0) * run["training"].get("epochs", 0) for run in runs]
    return statistics.fmean(each) if all(each) else None


def comparison(names: tuple[str, str], summary: dict[str, Any]) -> Table:
    """Show the comparison: a `rich` table of means, differences and intervals, in percent.

    Args:
        names: names of the two configs.
        summary: the result of `compare`.

    Returns:
        The table, with the training costs as its last rows.
    """
    table = Table(
        title=f"recall in %, mean over {quantity(summary['seeds'], 'seed', 'seeds')}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    for name in (*names, "difference (95 %)"):
        table.add_column(name, justify="right", overflow="fold")
    for label, row in summary["metrics"].items():
        spread = "" if row["interval"] is None or summary["seeds"] < 3 else f" ± {100 * row['interval']:.1f}"
        difference = f"{100 * row['difference']:+.1f}{spread}"
        table.add_row(label, f"{100 * row['first']:.1f}", f"{100 * row['second']:.1f}", difference)
    costs = {"training time": [duration(seconds) for seconds in summary["seconds"]]}
    if None not in summary["passes"]:
        costs = {"passes over the data (plain)": [f"{passes:.3g}" for passes in summary["passes"]]} | costs
    table.add_section()
    for label, cells in costs.items():
        table.add_row(label, *cells, "")
    return table


def mean_report(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the recalls of several reports on the same classes, for plotting.

    Args:
        reports: long-tail reports.

    Returns:
        The first report, with the mean recall of every class and the mean balanced accuracy.
    """
    recalls = np.array([[np.nan if r is None else r for r in report["per_class_recall"]] for report in reports])
    mean = [None if np.isnan(value) else float(value) for value in recalls.mean(0)]
    balanced = statistics.fmean(report["balanced_accuracy"] for report in reports)
    return reports[0] | {"per_class_recall": mean, "balanced_accuracy": balanced}
