"""The tables of comparisons on one data set: losses, radii, corrections of the head, few-shot tasks and geometry."""

from collections.abc import Callable
from typing import Any

from study.figures import paired

from pages.formatting import made_by, percent, results, table

SHOWN_SEEDS = 3  # values are shown for each seed up to this number of seeds; with more, only the mean is shown
ROWS = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "many": "many_accuracy",
    "medium": "medium_accuracy",
    "few": "few_accuracy",
    "worst class": "worst_class_recall",
}


def comparison(name: str) -> str:
    """Make the table of one comparison, with the command that repeats it."""
    result = results(name)
    runs, classes = result["runs"], result["classes"]
    if any("rho" in row for row in runs.values()):
        return f"{_radius_table(result)}\n\n{how_it_was_made(name)}"
    if len(runs) > 3:
        return f"{_loss_table(result)}\n\n{how_it_was_made(name)}"
    titles = [title.replace("+", " + ").replace("sharpness=none", result["config"]["loss"]) for title in runs]
    many = len(result["seeds"]) > SHOWN_SEEDS
    rows = []
    for label, metric in ROWS.items():
        group = f" ({classes[label]} class{'' if classes[label] == 1 else 'es'})" if label in classes else ""
        gain = [_gain_over_first(runs, metric)] if many else []
        rows.append([f"{label}{group}", *(_cell(row, metric) for row in runs.values()), *gain])
    shown = table(["recall in %", *titles, *["gain"] * many], rows)
    return f"{shown}\n\n{how_it_was_made(name)}{_wins(runs) if many else ''}"


def _cell(row: dict[str, Any], metric: str) -> str:
    # Mean, standard deviation and, for few seeds, the value of each seed, in percent.
    if metric not in row:
        return "–"
    if len(row[metric]["per_seed"]) > SHOWN_SEEDS:
        return percent(row[metric])
    values = " / ".join(f"{100 * value:.1f}" for value in row[metric]["per_seed"])
    return values if row[metric]["stdev"] is None else f"{percent(row[metric])} ({values})"


def _gain_over_first(runs: dict[str, Any], metric: str) -> str:
    # The mean paired difference between the last and the first run in points, with its 95 % interval.
    first, *_, last = runs.values()
    if metric not in first or metric not in last:
        return "–"
    found = paired(last[metric]["per_seed"], first[metric]["per_seed"])
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} … {high:+.1f})"


def _wins(runs: dict[str, Any]) -> str:
    first, *_, last = (row["balanced_accuracy"]["per_seed"] for row in runs.values())
    won = sum(a > b for a, b in zip(last, first, strict=True))
    others = dict(list(runs.items())[1:])
    step = f" The last run minus the one before it: {_gain_over_first(others, 'balanced_accuracy')}." * (
        len(others) > 1
    )
    return (
        f" Gain: last minus first run, paired by seed, with its 95 % interval; positive in {won} of {len(last)} seeds "
        f"for balanced accuracy.{step}"
    )


def _loss_table(result: dict[str, Any]) -> str:
    # Means and standard deviations over seeds, with one row per run.
    shown = {label: metric for label, metric in ROWS.items() if any(metric in row for row in result["runs"].values())}
    shown["calibration error"] = "calibration_error"
    rows = (
        (run.removeprefix("loss=").replace(",", ", "), *(percent(row[metric]) for metric in shown.values()))
        for run, row in result["runs"].items()
    )
    return table(("in %", *shown), rows)


def _radius_table(result: dict[str, Any]) -> str:
    # Fixed and learned radii, with the final radii and the training times.
    seconds = {name: sum(row["train_seconds"]) / len(row["train_seconds"]) for name, row in result["runs"].items()}
    chosen = {
        name: result["config"] | dict(part.split("=") for part in name.split(",") if "=" in part)
        for name in result["runs"]
    }
    rows = []
    for name, row in sorted(result["runs"].items(), key=lambda run: ("rho" in run[1], float(chosen[run[0]]["rho"]))):
        ends = ", ".join(f"{curve['rho'][-1]:.3g}" for curve in row["rho"].values()) if "rho" in row else "fixed"
        start = f"{'learned, from ' if 'rho' in row else ''}{chosen[name]['rho']}"
        metrics = (percent(row[metric]) for metric in ("balanced_accuracy", "worst_class_recall"))
        rows.append([start, ends, *metrics, f"{seconds[name]:.0f} s"])
    shown = table(("ρ", "ρ at the end", "balanced accuracy", "worst class", "training time"), rows)
    fixed = [name for name, row in result["runs"].items() if "rho" not in row]
    if len(fixed) < 2:
        return shown
    total = sum(seconds[name] for name in fixed)
    (learned,) = (name for name in result["runs"] if name not in fixed)
    share = 100 * seconds[learned] / total
    return f"{shown}\n\nAll fixed radii together took {total:.0f} s, the learned one {share:.0f} % of that."


def how_it_was_made(name: str) -> str:
    """Say how a comparison was made, on which machine, and how long it took."""
    result = results(name)
    spans = [row["train_seconds"] for row in result["runs"].values()]
    seconds = ", ".join(f"{run} {min(s):.0f} to {max(s):.0f} s" for run, s in zip(result["runs"], spans, strict=True))
    if len(spans) > 3:
        seconds = f"{min(map(min, spans)):.0f} to {max(map(max, spans)):.0f} s each"
    counts = result["class_counts"]
    seeds = f"seeds {', '.join(map(str, result['seeds']))}: mean ± standard deviation"
    if len(result["seeds"]) == 1:
        seeds = f"seed {result['seeds'][0]}"
    each = " (each seed)" if len(spans) <= 3 and len(result["seeds"]) <= SHOWN_SEEDS else ""
    return made_by(
        name,
        f", {seeds}{each}; {sum(counts):,} training examples, classes from {max(counts):,} down to {min(counts)}; few "
        f"means n < {result['rare_threshold']}, many n > {result['common_threshold']}. Training: {seconds}",
    )


def head_corrections(name: str) -> str:
    """Make the table of losses and corrections after training."""
    result = results(name)
    shown = {"balanced accuracy": "balanced_accuracy", "medium": "medium_accuracy", "few": "few_accuracy"}
    shown |= {"worst class": "worst_class_recall", "calibration error": "calibration_error"}
    shown = {
        k: m for k, m in shown.items() if any(m in row for rows in result["runs"].values() for row in rows.values())
    }
    rows = []
    for run, corrections in result["runs"].items():
        for method, row in corrections.items():
            strengths = "" if method == "as trained" else f" ({', '.join(f'{s:g}' for s in row['strengths'])})"
            cells = (percent(row[metric]) for metric in shown.values())
            rows.append([run.replace(",", ", "), f"{method}{strengths}", *cells])
    counts = result["class_counts"]
    how = made_by(
        name,
        f", seeds {', '.join(map(str, result['seeds']))}: mean ± standard deviation in %; {sum(counts):,} training "
        f"examples, classes from {max(counts):,} down to {min(counts)}",
    )
    return f"{table(('training', 'correction (strengths)', *shown), rows)}\n\n{how}"


def radius_signal() -> str:
    """Make the table of the updates that each objective of a learned radius gives."""
    result = results("radius_signal")
    objectives = list(result["rows"][0]["objectives"])
    rows = (
        (
            str(row["rho"]),
            f"{100 * row['balanced_accuracy']:.1f}",
            *(f"{100 * row['objectives'][name]['share_downwards']:.0f} %" for name in objectives),
        )
        for row in result["rows"]
    )
    updates = result["rows"][0]["updates"]
    noise = 100 * 0.5 / updates**0.5
    return (
        f"{table(('fixed ρ', 'balanced accuracy', *(f'`{name}`: down' for name in objectives)), rows)}\n\n"
        f"Share of {updates} updates that point down (dU/dρ > 0); a coin toss gives 50 % ± {noise:.0f}. "
        f"`{result['command']}`: {result['config']}, {result['epochs']} epochs, seed {result['seed']}, on "
        f"{result['machine']}. Data: `benchmarks/results/radius_signal.json`."
    )


def radii() -> str:
    """Make the table of each radius's gain over no sharpness, for training from scratch, full fine-tuning and LoRA."""
    result = results("radii")
    plain = {row["base"]: row["mean"] for row in result["rows"] if row["ascent"] == "none"}
    blocks = []
    for ascent, title in (("gradient", "SAM"), ("momentum", "momentum-SAM")):
        found = sorted((row for row in result["rows"] if row["ascent"] == ascent), key=lambda row: row["rho"])
        rows = []
        for base, reference in plain.items():
            cells = []
            for row in (row for row in found if row["base"] == base):
                unfitted = f" ({100 * row['train_accuracy']:.0f} %)" if row["train_accuracy"] < 0.99 else ""
                cells.append(f"{100 * (row['mean'] - reference):+.1f}{unfitted}")
            rows.append([base, *cells])
        tried = dict.fromkeys(f"{row['rho']:g}" for row in found)
        blocks.append(table((f"{title}, ρ", *tried), rows))
    seeds = " and ".join(map(str, result["seeds"]))
    blocks.append(
        "Balanced accuracy on validation data minus that of logit adjustment without sharpness, in points; in brackets "
        f"the training accuracy where it is below 99 %. Means of seeds {seeds}: differences of two points are noise. "
        f"{made_by('radii')}"
    )
    return "\n\n".join(blocks)


def asam_scope() -> str:
    """Make the table of where ASAM's perturbation lies, and of the radius that makes it as strong as SAM's."""
    result = results("asam_scope")
    rows = (
        (model, metric, f"{100 * row['matrix_share']:.3g} %", f"{row['rho']:.2g}")
        for model, metrics in result["models"].items()
        for metric, row in metrics.items()
    )
    shown = table(("model", "metric", "share of ‖ε‖² in matrices", "radius as strong as SAM's 0.05"), rows)
    return f"{shown}\n\nMedians of {result['batches']} batches, seed {result['seeds'][0]}: {made_by('asam_scope')}"


def geometry() -> str:
    """Make the table of distances from the predicted geometry, for the unconstrained features model and the ViT."""
    result = results("geometry")
    ridges = sorted({row["ridge"] for row in result["ufm"]}, reverse=True)
    vit = {(row["loss"], row["gamma"]): row["distances"] for row in result["vit"]}
    vit |= {("ldt", 0.0): vit["cdt", 0.0]} if ("cdt", 0.0) in vit else {}
    ufm = {(row["loss"], row["gamma"], row["ridge"]): row["distances"] for row in result["ufm"]}
    rows = []
    for gamma in sorted({row["gamma"] for row in result["ufm"]}):
        cells = ["{:.3f} / {:.3f}".format(*ufm[loss, gamma, r]) for r in ridges for loss in ("cdt", "ldt")]
        for loss in ("cdt", "ldt"):
            distances = vit.get((loss, gamma))
            cells.append(f"{distances['classifier']:.2f} / {distances['centred_embedding']:.2f}" if distances else "–")
        rows.append([f"{gamma:+g}", *cells])
    of_ufm = [f"{loss}, ridge {ridge:g}" for ridge in ridges for loss in ("CDT", "LDT")]
    accuracy = min(row["training_accuracy"] for row in result["vit"])
    return (
        f"{table(('γ', *of_ufm, 'CDT, ViT', 'LDT, ViT'), rows)}\n\n"
        "Distance to the prediction, from 0 to 2: classifier / embeddings (centred for the ViT). "
        f"`{result['command']}` on {result['machine']}, seed {result['seed']}; each ViT reaches a training accuracy of "
        f"{'' if accuracy == 1 else 'at least '}{100 * accuracy:.1f} %. Data: `benchmarks/results/geometry.json`."
    )


def few_shot() -> str:
    """Make the tables of backbones on domains seen and not seen in training."""
    result = results("few_shot")
    arguments, blocks = result["arguments"], []
    for adaptation, scores in result["adaptations"].items():
        columns = [*(name for name in next(iter(scores["seen"].values())) if name != "average"), "average"]
        for which in ("seen", "unseen"):
            rows = [
                [name, *(f"{100 * row[c]['accuracy']:.1f} ± {100 * row[c]['interval']:.1f}" for c in columns)]
                for name, row in scores[which].items()
            ]
            rows += [
                [f"*{name}*", *(f"{100 * row[c]['difference']:+.1f} ± {100 * row[c]['interval']:.1f}" for c in columns)]
                for name, row in scores[f"{which}_differences"].items()
            ]
            blocks.append(table((f"{which}, `{adaptation}`", *columns), rows))
    seeds = f", seed {arguments['seed']}: one training per backbone, so the intervals do not cover other trainings"
    blocks.append(
        f"Accuracy in % over {arguments['episodes']} episodes, ± 95 % intervals; paired differences in points are in "
        f"italics. {made_by('few_shot', seeds)}"
    )
    return "\n\n".join(blocks)


ACCURACY_TABLES: dict[str, Callable[[], str]] = {
    "radius_signal": radius_signal,
    "asam_scope": asam_scope,
    "radii": radii,
    "geometry": geometry,
    "few_shot": few_shot,
}
