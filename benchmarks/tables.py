"""Rewrite the generated tables in README.md and docs/, or check that they are up to date.

python benchmarks/tables.py           # rewrite the text between the markers (make docs)
python benchmarks/tables.py --check   # exit 1 if any page is out of date

This file makes the tables of measurements, from benchmarks/results. reference.py makes those of methods, losses,
options and configs, from their definitions.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reference import REFERENCE_TABLES
from study.claims import confirmation, lets_line, overview, overview_of_default, shorter_trainings
from study.figures import paired
from study.report import make_table
from study.results import finished_results
from tasks import TITLES

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHOWN_SEEDS = 3  # values are shown for each seed up to this number of seeds; with more, only the mean is shown
ROWS = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "many": "many_accuracy",
    "medium": "medium_accuracy",
    "few": "few_accuracy",
    "worst class": "worst_class_recall",
}

# Runs of the configs *_cost.yaml: the options to show, and the method's name in benchmarks/cost.py.
COSTS = {
    "sharpness=none": ('`sharpness="none"`', "none"),
    "sharpness=sam,ascent=momentum": ('`sam`, `ascent="momentum"`', "sam, momentum"),
    "sharpness=sam,sharpness_every=10,looksam_alpha=0.1": ("`sam`, `sharpness_every=10`", "sam, sharpness_every 10"),
    "sharpness=sam,sharpness_every=10,looksam_alpha=0.7": (
        "the same, `looksam_alpha=0.7`",
        "sam, sharpness_every 10",
    ),
    "sharpness=imbsam": ("`imbsam`", "imbsam"),
    "sharpness=sam,ascent_fraction=0.25": ("`sam`, `ascent_fraction=0.25`", "sam, ascent_fraction 1/4"),
    "focal_sampling=stochastic,ascent_fraction=0.25": (
        '`focal_sam`, `focal_sampling="stochastic"`, `ascent_fraction=0.25`',
        "focal_sam, stochastic, ascent_fraction 1/4",
    ),
    "sharpness=sam": ("`sam`", "sam"),
    "focal_sam+logit_adjusted": ("`focal_sam`", "focal_sam"),
}


def results(name: str) -> dict[str, Any]:
    """Read one committed result."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(metric: dict[str, Any]) -> str:
    """Format the mean over seeds in percent, with the standard deviation if there are several seeds."""
    spread = "" if metric["stdev"] is None else f" ± {100 * metric['stdev']:.1f}"
    return f"{100 * metric['mean']:.1f}{spread}"


def cell(row: dict[str, Any], metric: str) -> str:
    """Format mean, standard deviation and, for few seeds, the value of each seed, in percent."""
    if metric not in row:
        return "–"
    if len(row[metric]["per_seed"]) > SHOWN_SEEDS:
        return percent(row[metric])
    values = " / ".join(f"{100 * value:.1f}" for value in row[metric]["per_seed"])
    return values if row[metric]["stdev"] is None else f"{percent(row[metric])} ({values})"


def accuracy_table(name: str) -> str:
    """Make the table of one comparison, with the command that repeats it."""
    result = results(name)
    runs, classes = result["runs"], result["classes"]
    if any("rho" in row for row in runs.values()):
        return f"{radius_table(result)}\n\n{how_it_was_made(name, result)}"
    if len(runs) > 3:
        return f"{loss_table(result)}\n\n{how_it_was_made(name, result)}"
    titles = [title.replace("+", " + ").replace("sharpness=none", result["config"]["loss"]) for title in runs]
    many = len(result["seeds"]) > SHOWN_SEEDS
    lines = [f"| recall in % | {' | '.join(titles)} |{' gain |' * many}", "|---|" + "---|" * (len(runs) + many)]
    for label, metric in ROWS.items():
        group = f" ({classes[label]} class{'' if classes[label] == 1 else 'es'})" if label in classes else ""
        gain = f" {gain_over_first(runs, metric)} |" if many else ""
        lines.append(f"| {label}{group} | " + " | ".join(cell(row, metric) for row in runs.values()) + f" |{gain}")
    lines += ["", how_it_was_made(name, result)]
    if many:
        *_, last = runs.values()
        ours, first = (row["balanced_accuracy"]["per_seed"] for row in (last, next(iter(runs.values()))))
        won = sum(a > b for a, b in zip(ours, first, strict=True))
        lines[-1] += f" Gain: last minus first run, paired by seed, with its 95 % interval; positive in {won} of "
        lines[-1] += f"{len(ours)} seeds for balanced accuracy."
    return "\n".join(lines)


def gain_over_first(runs: dict[str, Any], metric: str) -> str:
    """Show the mean paired difference between the last and the first run in points, with its 95 % interval."""
    first, *_, last = runs.values()
    if metric not in first or metric not in last:
        return "–"
    found = paired(last[metric]["per_seed"], first[metric]["per_seed"])
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    return f"{mean:+.1f} ({low:+.1f} … {high:+.1f})"


def loss_table(result: dict[str, Any]) -> str:
    """Make a table of means and standard deviations over seeds, with one row per run."""
    shown = {label: metric for label, metric in ROWS.items() if any(metric in row for row in result["runs"].values())}
    shown["calibration error"] = "calibration_error"
    lines = ["| in % | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
    for run, row in result["runs"].items():
        cells = [percent(row[m]) for m in shown.values()]
        lines.append(f"| {run.removeprefix('loss=').replace(',', ', ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def how_it_was_made(name: str, result: dict[str, Any]) -> str:
    """Say how a comparison was made, on which machine, and how long it took."""
    spans = [row["train_seconds"] for row in result["runs"].values()]
    seconds = ", ".join(f"{run} {min(s):.0f} to {max(s):.0f} s" for run, s in zip(result["runs"], spans, strict=True))
    if len(spans) > 3:
        seconds = f"{min(map(min, spans)):.0f} to {max(map(max, spans)):.0f} s each"
    counts = result["class_counts"]
    seeds = f"seeds {', '.join(map(str, result['seeds']))}: mean ± standard deviation"
    if len(result["seeds"]) == 1:
        seeds = f"seed {result['seeds'][0]}"
    each = " (each seed)" if len(spans) <= 3 and len(result["seeds"]) <= SHOWN_SEEDS else ""
    return (
        f"`{result['command']}` on {result['machine']}, {seeds}{each}; {sum(counts):,} training examples, classes from "
        f"{max(counts):,} down to {min(counts)}; few means n < {result['rare_threshold']}, many n > "
        f"{result['common_threshold']}. Training: {seconds}. Data: `benchmarks/results/{name}.json`."
    )


def cost_table() -> str:
    """Make the table of step costs, with quartiles and memory."""
    result = results("cost")
    models = result["models"]
    full = [model for name, model in models.items() if "LoRA" not in name]
    titles = [name.replace("vit", "ViT").replace("bert", "BERT") for name in models]
    lines = [f"| step | passes (forward + backward) | {' | '.join(titles)} | memory over plain |"]
    lines.append("|---|---|" + "---|" * (len(models) + 1))
    for method, row in next(iter(models.values()))["methods"].items():
        cells = ["{forward:.3g} + {backward:.3g}".format(**row["passes"])]
        for model in models.values():
            low, middle, high = model["methods"][method]["ratio_quartiles"]
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        cells.append(" / ".join(f"{round(m['methods'][method]['peak_over_plain'], 1) + 0:.1f}" for m in full))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    rare = 100 * next(iter(models.values()))["rare_share"]
    tiny = result["tiny"]
    low, middle, high = tiny["sam_ms_beyond_two_passes_quartiles"]
    moving = tiny["of_these_moving_the_weights_quartiles"][1]
    lora = [model for name, model in models.items() if "LoRA" in name]
    added = [m["methods"]["sam"]["peak_over_plain"] * m["trainable_bytes"] / (4 * m["parameters"]) for m in lora]
    lines += [
        "",
        "The time of a step as a multiple of a plain Trainer's, from paired measurements: median and quartiles. "
        f"`{result['command']}` on {result['machine']}, torch {result['versions']['torch']}, seed {result['seed']}; "
        f"passes are in examples per example of the batch; {rare:.0f} % of the examples are rare for `imbsam` here. "
        "Data: `benchmarks/results/cost.json`.",
        "",
        "Memory: the peak of a step minus that of a plain one, in copies of the trainable parameters, ViT / BERT. "
        f"With LoRA, SAM adds at most {100 * max(added):.1f} % of the model's bytes. On a tiny ViT "
        f"({tiny['parameters']:,} parameters in {tiny['tensors']} tensors) a SAM step takes {middle:.1f} ms "
        f"({low:.1f} to {high:.1f}) longer than two plain ones; {moving:.1f} ms of these move the weights to w + ε and "
        "back, with five kernels per tensor.",
    ]
    return "\n".join(lines)


def cost_gpu_table() -> str:
    """Make the table of step costs on a GPU, in float32 and in bfloat16."""
    measured = {"float32": results("cost_gpu"), "bfloat16": results("cost_gpu_bf16")}
    columns = {
        f"{name.replace('vit', 'ViT').replace('bert', 'BERT')}, {precision}": model
        for precision, result in measured.items()
        for name, model in result["models"].items()
    }
    lines = [f"| step | passes (forward + backward) | {' | '.join(columns)} | memory over plain |"]
    lines.append("|" + "---|" * (len(columns) + 3))
    for method, row in next(iter(columns.values()))["methods"].items():
        timings = [model["methods"][method] for model in columns.values()]
        cells = ["{forward:.3g} + {backward:.3g}".format(**row["passes"])]
        cells += ["{1:.2f} ({0:.2f} to {2:.2f})".format(*timing["ratio_quartiles"]) for timing in timings]
        cells.append(" / ".join(f"{round(timing['peak_over_plain'], 1) + 0:.1f}" for timing in timings))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    steps = ", ".join(f"{model['plain_step_ms']:.0f} ms ({name})" for name, model in columns.items())
    sources = "; ".join(
        f"`{result['command']}` on {result['machine']}, torch {result['versions']['torch']}, transformers "
        f"{result['versions']['transformers']}, seed {result['seed']} ({result['note']})"
        for result in measured.values()
    )
    lines += [
        "",
        f"ViT-B/16 and BERT-base from configs, batches of {next(iter(columns.values()))['batch_size']}. A plain step "
        f"took {steps}. {sources}. Data: `benchmarks/results/cost_gpu.json` and `cost_gpu_bf16.json`.",
    ]
    return "\n".join(lines)


def budget_table() -> str:
    """Make the table of the cost of a step, and of the accuracy on two data sets."""
    cost, names = results("cost"), ("fashion_mnist_lt_cost", "debian_sections_cost")
    images, texts = (results(name) for name in names)
    lines = ["| options | backward passes | ViT / BERT | Fashion-MNIST-LT: balanced | few | Debian: balanced | few |"]
    lines.append("|---|---|---|---|---|---|---|")
    for run, (options, method) in COSTS.items():
        methods = [cost["models"][kind]["methods"][method] for kind in ("vit", "bert")]
        cells = [f"{methods[0]['passes']['backward']:.3g}"]
        cells.append(" / ".join(f"{timing['ratio_quartiles'][1]:.2f}" for timing in methods))
        for result in (images, texts):
            cells += [percent(result["runs"][run][f"{group}_accuracy"]) for group in ("balanced", "few")]
        lines.append(f"| {options} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Backward passes and the time of a step are those of the table above. Accuracy in %, all with "
        '`loss="logit_adjusted"`.',
    ]
    for name, result in zip(names, (images, texts), strict=True):
        lines += ["", how_it_was_made(name, result)]
    return "\n".join(lines)


def radius_table(result: dict[str, Any]) -> str:
    """Make a table of fixed and learned radii, with the final radii and the training times."""
    shown = ("balanced_accuracy", "worst_class_recall")
    lines = ["| ρ | ρ at the end | balanced accuracy | worst class | training time |", "|---|---|---|---|---|"]
    seconds = {name: sum(row["train_seconds"]) / len(row["train_seconds"]) for name, row in result["runs"].items()}
    chosen = {
        name: result["config"] | dict(part.split("=") for part in name.split(",") if "=" in part)
        for name in result["runs"]
    }
    order = sorted(result["runs"].items(), key=lambda item: ("rho" in item[1], float(chosen[item[0]]["rho"])))
    for name, row in order:
        options = chosen[name]
        ends = ", ".join(f"{curve['rho'][-1]:.3g}" for curve in row["rho"].values()) if "rho" in row else "fixed"
        cells = [percent(row[m]) for m in shown]
        kind = "learned, from " if "rho" in row else ""
        lines.append(f"| {kind}{options['rho']} | {ends} | {' | '.join(cells)} | {seconds[name]:.0f} s |")
    fixed = [name for name, row in result["runs"].items() if "rho" not in row]
    if len(fixed) > 1:
        total = sum(seconds[name] for name in fixed)
        (learned,) = (name for name in result["runs"] if name not in fixed)
        share = 100 * seconds[learned] / total
        lines += ["", f"All fixed radii together took {total:.0f} s, the learned one {share:.0f} % of that."]
    return "\n".join(lines)


def geometry_table() -> str:
    """Make the table of distances from the predicted geometry, for the unconstrained features model and the ViT."""
    result = results("geometry")
    ridges = sorted({row["ridge"] for row in result["ufm"]}, reverse=True)
    lines = ["| γ | " + " | ".join(f"CDT, ridge {r:g} | LDT, ridge {r:g}" for r in ridges) + " | CDT, ViT | LDT, ViT |"]
    lines.append("|---|" + "---|" * (2 * len(ridges) + 2))
    vit = {(row["loss"], row["gamma"]): row["distances"] for row in result["vit"]}
    vit |= {("ldt", 0.0): vit["cdt", 0.0]} if ("cdt", 0.0) in vit else {}
    ufm = {(row["loss"], row["gamma"], row["ridge"]): row["distances"] for row in result["ufm"]}
    for gamma in sorted({row["gamma"] for row in result["ufm"]}):
        cells = ["{:.3f} / {:.3f}".format(*ufm[loss, gamma, r]) for r in ridges for loss in ("cdt", "ldt")]
        for loss in ("cdt", "ldt"):
            distances = vit.get((loss, gamma))
            cells.append(f"{distances['classifier']:.2f} / {distances['centred_embedding']:.2f}" if distances else "–")
        lines.append(f"| {gamma:+g} | " + " | ".join(cells) + " |")
    accuracy = min(row["training_accuracy"] for row in result["vit"])
    lines += [
        "",
        "Distance to the prediction, from 0 to 2: classifier / embeddings (centred for the ViT). "
        f"`{result['command']}` on {result['machine']}, seed {result['seed']}; each ViT reaches a training accuracy of "
        f"{'' if accuracy == 1 else 'at least '}{100 * accuracy:.1f} %. Data: `benchmarks/results/geometry.json`.",
    ]
    return "\n".join(lines)


def head_table(name: str) -> str:
    """Make the table of losses and corrections after training."""
    result = results(name)
    shown = {"balanced accuracy": "balanced_accuracy", "medium": "medium_accuracy", "few": "few_accuracy"}
    shown |= {"worst class": "worst_class_recall", "calibration error": "calibration_error"}
    shown = {
        k: m for k, m in shown.items() if any(m in row for rows in result["runs"].values() for row in rows.values())
    }
    lines = ["| training | correction (strengths) | " + " | ".join(shown) + " |", "|---|---|" + "---|" * len(shown)]
    for run, rows in result["runs"].items():
        for method, row in rows.items():
            strengths = "" if method == "as trained" else f" ({', '.join(f'{s:g}' for s in row['strengths'])})"
            cells = [percent(row[m]) for m in shown.values()]
            lines.append(f"| {run.replace(',', ', ')} | {method}{strengths} | " + " | ".join(cells) + " |")
    counts = result["class_counts"]
    lines += [
        "",
        f"`{result['command']}` on {result['machine']}, seeds {', '.join(map(str, result['seeds']))}: mean ± standard "
        f"deviation in %; {sum(counts):,} training examples, classes from {max(counts):,} down to {min(counts)}. Data: "
        f"`benchmarks/results/{name}.json`.",
    ]
    return "\n".join(lines)


def signal_table() -> str:
    """Make the table of the updates that each objective of a learned radius gives."""
    result = results("radius_signal")
    objectives = list(result["rows"][0]["objectives"])
    lines = ["| fixed ρ | balanced accuracy | " + " | ".join(f"`{name}`: down" for name in objectives) + " |"]
    lines.append("|---|---|" + "---|" * len(objectives))
    for row in result["rows"]:
        shares = [f"{100 * row['objectives'][name]['share_downwards']:.0f} %" for name in objectives]
        lines.append(f"| {row['rho']} | {100 * row['balanced_accuracy']:.1f} | " + " | ".join(shares) + " |")
    updates = result["rows"][0]["updates"]
    noise = 100 * 0.5 / updates**0.5
    lines += [
        "",
        f"Share of {updates} updates that point down (dU/dρ > 0); a coin toss gives 50 % ± {noise:.0f}. "
        f"`{result['command']}`: {result['config']}, {result['epochs']} epochs, seed {result['seed']}, on "
        f"{result['machine']}. Data: `benchmarks/results/radius_signal.json`.",
    ]
    return "\n".join(lines)


def few_shot_table() -> str:
    """Make the tables of backbones on domains seen and not seen in training."""
    result = results("few_shot")
    arguments, blocks = result["arguments"], []
    for adaptation, scores in result["adaptations"].items():
        domains = [name for name in next(iter(scores["seen"].values())) if name != "average"]
        columns = [*domains, "average"]
        for which in ("seen", "unseen"):
            lines = [f"| {which}, `{adaptation}` | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
            for name, row in scores[which].items():
                cells = [f"{100 * row[c]['accuracy']:.1f} ± {100 * row[c]['interval']:.1f}" for c in columns]
                lines.append(f"| {name} | {' | '.join(cells)} |")
            for name, row in scores[f"{which}_differences"].items():
                cells = [f"{100 * row[c]['difference']:+.1f} ± {100 * row[c]['interval']:.1f}" for c in columns]
                lines.append(f"| *{name}* | {' | '.join(cells)} |")
            blocks.append("\n".join(lines))
    blocks.append(
        f"Accuracy in % over {arguments['episodes']} episodes, ± 95 % intervals; paired differences in points are in "
        f"italics. `{result['command']}` on {result['machine']}, seed {arguments['seed']}: one training per backbone, "
        "so the intervals do not cover other trainings. Data: `benchmarks/results/few_shot.json`."
    )
    return "\n\n".join(blocks)


def speed_table() -> str:
    """Make the table of few-shot tasks per second."""
    result = results("speed")
    widths = result["episodes_per_second"]
    lines = ["| episodes per second | " + " | ".join(f"{dim} features" for dim in widths) + " |"]
    lines.append("|---|" + "---|" * len(widths))
    for adaptation in next(iter(widths.values())):
        lines.append(
            f"| `{adaptation}` | " + " | ".join(f"{rates[adaptation]:.0f}" for rates in widths.values()) + " |"
        )
    lines += [
        "",
        f"`{result['command']}` on {result['machine']}: 1,200 examples of 60 classes, tasks as in Meta-Dataset. Data: "
        "`benchmarks/results/speed.json`.",
    ]
    return "\n".join(lines)


def small_passes() -> str:
    """Say how long passes over few examples take."""
    result = results("speed")
    *sizes, last = result["small_passes"]
    *shares, of_last = (f"{share:.2f}" for share in result["small_passes"].values())
    return (
        f"A forward and backward pass over {', '.join(sizes)} and {last} images takes {', '.join(shares)} and "
        f"{of_last} of the time for 32 (the ViT above; `{result['command']}` on {result['machine']}, paired medians; "
        "data: `benchmarks/results/speed.json`)."
    )


def curvature_speed() -> str:
    """Say how long measuring the curvature takes."""
    result = results("speed")
    timing = result["curvature"]
    return (
        f"A ViT of {timing['parameters'] / 1e6:.1f} M parameters, trained on digits of 28 × 28 pixels, takes "
        f"{timing['seconds']:.0f} s with the command's defaults: {timing['examples']:,} examples, "
        f"{timing['hessian_examples']} of them for the Hessian (`{result['command']}` on {result['machine']}; data: "
        "`benchmarks/results/speed.json`)."
    )


def asam_table() -> str:
    """Make the table of where ASAM's perturbation lies, and of the radius that makes it as strong as SAM's."""
    result = results("asam_scope")
    lines = ["| model | metric | share of ‖ε‖² in matrices | radius as strong as SAM's 0.05 |", "|---|---|---|---|"]
    for model, metrics in result["models"].items():
        for metric, row in metrics.items():
            lines.append(f"| {model} | {metric} | {100 * row['matrix_share']:.3g} % | {row['rho']:.2g} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {result['batches']} batches, seed {result['seeds'][0]}: `{result['command']}` on "
            f"{result['machine']}. Data: `benchmarks/results/asam_scope.json`.",
        ]
    )


def ascent_costs() -> str:
    """Make the table of the costs of the one-pass ascent, a late sharp phase and an initialized head."""
    result = results("ascent_costs")
    rows = {
        **{f"a step of {name}, against a plain step": row for name, row in result["steps"].items() if name != "none"},
        "a run of SAM with `sharpness_after=0.8`, against a plain run": result["sharpness_after=0.8"],
        '`head_init="class_mean"`, against the forward passes of one epoch': result["head_init=class_mean"],
    }
    lines = ["| | median | quartiles |", "|---|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['median']:.2f} | {row['lower_quartile']:.2f} to {row['upper_quartile']:.2f} |")
    note = f"{result['model']}; interleaved ratios of {result['rounds']} rounds. `{result['command']}` on "
    return "\n".join([*lines, "", f"{note}{result['machine']}. Data: `benchmarks/results/ascent_costs.json`."])


def radii_table() -> str:
    """Make the table of each radius's gain over no sharpness, for training from scratch, full fine-tuning and LoRA."""
    result = results("radii")
    plain = {row["base"]: row["mean"] for row in result["rows"] if row["ascent"] == "none"}
    blocks = []
    for ascent, title in (("gradient", "SAM"), ("momentum", "momentum-SAM")):
        rows = [row for row in result["rows"] if row["ascent"] == ascent]
        radii = sorted({row["rho"] for row in rows})
        lines = [f"| {title}, ρ | {' | '.join(f'{rho:g}' for rho in radii)} |", "|---|" + "---|" * len(radii)]
        for base, reference in plain.items():
            cells = []
            for row in sorted((row for row in rows if row["base"] == base), key=lambda row: row["rho"]):
                unfitted = f" ({100 * row['train_accuracy']:.0f} %)" if row["train_accuracy"] < 0.99 else ""
                cells.append(f"{100 * (row['mean'] - reference):+.1f}{unfitted}")
            lines.append(f"| {base} | {' | '.join(cells)} |")
        blocks.append("\n".join(lines))
    blocks.append(
        "Balanced accuracy on validation data minus that of logit adjustment without sharpness, in points; in brackets "
        "the training accuracy where it is below 99 %. Means of seeds "
        f"{' and '.join(map(str, result['seeds']))}: differences of two points are noise. `{result['command']}` on "
        f"{result['machine']}. Data: `benchmarks/results/radii.json`."
    )
    return "\n\n".join(blocks)


def evidence_overview() -> str:
    """Compare the best row of every task with today's common practice."""
    return overview(list(finished_results().values()))


def evidence_default() -> str:
    """Compare hf_sharp's default with today's common practice."""
    return overview_of_default(list(finished_results().values()))


def evidence_tasks() -> str:
    """Show the rows of every task."""
    return "\n\n".join(f"### {TITLES[task]}\n\n{make_table(result)}" for task, result in finished_results().items())


def evidence_confirmation() -> str:
    """Make the table of the confirmation on fresh seeds."""
    files = {task: RESULTS / f"confirmation_{task}.json" for task in finished_results()}
    found = [json.loads(file.read_text()) for file in files.values() if file.exists()]
    machines = "; ".join(dict.fromkeys(result["machine"] for result in found))
    return f"{confirmation(found)}\n\n`python benchmarks/confirm.py all` on {machines}, seeds from 100 on."


def evidence_duration() -> str:
    """Compare momentum-SAM with logit adjustment alone in shorter trainings."""
    result = results("duration")
    return f"{shorter_trainings(result)}\n\n`{result['command']}` on {result['machine']}, seeds from 100 on."


def evidence_lets() -> str:
    """Compare the learned radius with the best fixed one."""
    return "\n".join(f"- {line}" for result in finished_results().values() if (line := lets_line(result)))


TABLES: dict[str, Callable[[], str]] = {
    **REFERENCE_TABLES,
    "cost_full": cost_table,
    "cost_gpu": cost_gpu_table,
    "budget": budget_table,
    "radius_signal": signal_table,
    "asam_scope": asam_table,
    "ascent_costs": ascent_costs,
    "radii": radii_table,
    "geometry": geometry_table,
    "few_shot": few_shot_table,
    "few_shot_speed": speed_table,
    "curvature_speed": curvature_speed,
    "small_passes": small_passes,
    "evidence_overview": evidence_overview,
    "evidence_default": evidence_default,
    "evidence_tasks": evidence_tasks,
    "evidence_confirmation": evidence_confirmation,
    "evidence_duration": evidence_duration,
    "evidence_lets": evidence_lets,
}


def fill(text: str) -> str:
    """Replace every block between `<!-- NAME -->` and `<!-- end -->` by the table of that name."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name in TABLES:
            table = TABLES[name]()
        else:
            table = head_table(name) if name.endswith("_head") else accuracy_table(name)
        return f"<!-- {name} -->\n{table}\n<!-- end -->"

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
