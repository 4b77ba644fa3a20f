"""Write the tables of the README and of docs/ from the committed results, or check that they are the same.

python benchmarks/tables.py           # rewrite what is between the markers
python benchmarks/tables.py --check   # exit 1 if anything differs
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ROWS = {
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "many": "many_accuracy",
    "medium": "medium_accuracy",
    "few": "few_accuracy",
    "worst class": "worst_class_recall",
}

# A run of the configs *_cost.yaml: its options, and its name in benchmarks/cost.py.
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


def percent(found: dict[str, Any]) -> str:
    """Show the mean over seeds in percent, and with several of them their standard deviation."""
    spread = "" if found["stdev"] is None else f" ± {100 * found['stdev']:.1f}"
    return f"{100 * found['mean']:.1f}{spread}"


def cell(row: dict[str, Any], metric: str) -> str:
    """Show mean and standard deviation in percent, and with three seeds or fewer all of them."""
    if metric not in row:
        return "–"
    values = " / ".join(f"{100 * value:.1f}" for value in row[metric]["per_seed"])
    return values if row[metric]["stdev"] is None else f"{percent(row[metric])} ({values})"


def accuracy_table(name: str) -> str:
    """Make the table of one comparison, with what is needed to repeat it."""
    result = results(name)
    runs, classes = result["runs"], result["classes"]
    if any("rho" in row for row in runs.values()):
        return f"{radius_table(result)}\n\n{how_it_was_made(name, result)}"
    if len(runs) > 3:
        return f"{loss_table(result)}\n\n{how_it_was_made(name, result)}"
    lines = ["| recall in % | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for label, metric in ROWS.items():
        group = f" ({classes[label]} class{'' if classes[label] == 1 else 'es'})" if label in classes else ""
        lines.append(f"| {label}{group} | " + " | ".join(cell(row, metric) for row in runs.values()) + " |")
    lines += ["", how_it_was_made(name, result)]
    return "\n".join(lines)


def loss_table(result: dict[str, Any]) -> str:
    """Make a table with a row per run, of means and standard deviations over the seeds."""
    shown = {label: metric for label, metric in ROWS.items() if any(metric in row for row in result["runs"].values())}
    shown["calibration error"] = "calibration_error"
    lines = ["| in % | " + " | ".join(shown) + " |", "|---|" + "---|" * len(shown)]
    for run, row in result["runs"].items():
        cells = [percent(row[m]) for m in shown.values()]
        lines.append(f"| {run.removeprefix('loss=').replace(',', ', ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def how_it_was_made(name: str, result: dict[str, Any]) -> str:
    """Say how a comparison can be repeated, on what it was made, and how long it took."""
    spans = [row["train_seconds"] for row in result["runs"].values()]
    seconds = ", ".join(f"{run} {min(s):.0f} to {max(s):.0f} s" for run, s in zip(result["runs"], spans, strict=True))
    if len(spans) > 3:
        seconds = f"{min(map(min, spans)):.0f} to {max(map(max, spans)):.0f} s each"
    counts = result["class_counts"]
    shown = f"seeds {', '.join(map(str, result['seeds']))}: mean ± standard deviation"
    if len(result["seeds"]) == 1:
        shown = f"seed {result['seeds'][0]}"
    return (
        f"`{result['command']}` on {result['machine']}, {shown}"
        f"{'' if len(spans) > 3 else ' (each seed)'}; {sum(counts):,} training examples, classes from "
        f"{max(counts):,} down to {min(counts)}; few is n < {result['rare_threshold']}, many is n > "
        f"{result['common_threshold']}. Training: {seconds}. Data: `benchmarks/results/{name}.json`."
    )


def cost_table(quartiles: bool = False) -> str:
    """Make the table of step costs: medians for full training, or all models with quartiles and memory."""
    result = results("cost")
    models = {name: m for name, m in result["models"].items() if quartiles or "LoRA" not in name}
    full = [model for name, model in models.items() if "LoRA" not in name]
    title = {name: name.replace("vit", "ViT").replace("bert", "BERT") for name in models}
    memory = " memory over plain |" if quartiles else ""
    lines = [f"| step | passes (forward + backward) | {' | '.join(title.values())} |{memory}"]
    lines.append("|---|---|" + "---|" * (len(models) + quartiles))
    for method, row in next(iter(models.values()))["methods"].items():
        cells = []
        for model in models.values():
            low, middle, high = model["methods"][method]["ratio_quartiles"]
            cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})" if quartiles else f"{middle:.2f}")
        cells += [" / ".join(f"{round(m['methods'][method]['peak_over_plain'], 1) + 0:.1f}" for m in full)] * quartiles
        passes = row["passes"]
        lines.append(f"| {method} | {passes['forward']:.3g} + {passes['backward']:.3g} | " + " | ".join(cells) + " |")
    rare = 100 * next(iter(models.values()))["rare_share"]
    tiny = result["tiny"]["sam_ms_beyond_two_passes_quartiles"]
    moving = result["tiny"]["of_these_moving_the_weights_quartiles"]
    lines += [
        "",
        f"A step's time as multiple of a plain Trainer's, paired: {'median and quartiles' if quartiles else 'median'}. "
        f"`{result['command']}` on {result['machine']}, torch {result['versions']['torch']}, seed {result['seed']}; "
        f"passes in examples per example of the batch, of which {rare:.0f} % are rare for `imbsam` here. "
        "Data: `benchmarks/results/cost.json`.",
    ]
    if quartiles:
        lora = [model for name, model in models.items() if "LoRA" in name]
        added = [m["methods"]["sam"]["peak_over_plain"] * m["trainable_bytes"] / (4 * m["parameters"]) for m in lora]
        share = 100 * max(added)
        lines += [
            "",
            "Memory: the peak of a step over that of a plain one, in copies of the trainable parameters, ViT / BERT. "
            f"With LoRA SAM adds at most {share:.1f} % of the model's bytes. On a tiny ViT "
            f"({result['tiny']['parameters']:,} parameters in {result['tiny']['tensors']} tensors) a SAM step takes "
            f"{tiny[1]:.1f} ms ({tiny[0]:.1f} to {tiny[2]:.1f}) beyond two plain ones; {moving[1]:.1f} of these move "
            "the weights to w + ε and back, with five kernels on every tensor.",
        ]
    return "\n".join(lines)


def budget_table() -> str:
    """Make the table of what a step costs, and of what it brings on two data sets."""
    cost, names = results("cost"), ("fashion_mnist_lt_cost", "debian_sections_cost")
    images, texts = (results(name) for name in names)
    lines = ["| options | passes | ViT / BERT | Fashion-MNIST-LT: balanced | few | Debian: balanced | few |"]
    lines.append("|---|---|---|---|---|---|---|")
    for run, (options, method) in COSTS.items():
        methods = [cost["models"][kind]["methods"][method] for kind in ("vit", "bert")]
        cells = [f"{methods[0]['passes']['backward']:.3g}"]
        cells.append(" / ".join(f"{found['ratio_quartiles'][1]:.2f}" for found in methods))
        for result in (images, texts):
            cells += [percent(result["runs"][run][f"{group}_accuracy"]) for group in ("balanced", "few")]
        lines.append(f"| {options} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Passes (backward, in examples per example of a batch) and the step's time as multiple of a plain one: as "
        'above. Accuracy in %, all with `loss="logit_adjusted"`.',
    ]
    for name, result in zip(names, (images, texts), strict=True):
        lines += ["", how_it_was_made(name, result)]
    return "\n".join(lines)


def radius_table(result: dict[str, Any]) -> str:
    """Make a table of fixed and learned radii: where they ended, and what it cost."""
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
        lines += ["", f"All fixed radii took {total:.0f} s, the learned one {share:.0f} % of that."]
    return "\n".join(lines)


def geometry_table() -> str:
    """Make the table of how far the unconstrained features model and the ViT are from the prediction."""
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
            found = vit.get((loss, gamma))
            cells.append(f"{found['classifier']:.2f} / {found['centred_embedding']:.2f}" if found else "–")
        lines.append(f"| {gamma:+g} | " + " | ".join(cells) + " |")
    accuracy = min(row["training_accuracy"] for row in result["vit"])
    lines += [
        "",
        "Distance to the prediction from 0 to 2, classifier / embeddings (of the ViT: centred). "
        f"`{result['command']}` on {result['machine']}, seed {result['seed']}; each ViT ends at a training accuracy of "
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
    """Make the table of what each objective of a learned radius sees."""
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
        f"Share of {updates} updates with dU/dρ > 0, that is downwards; a coin toss gives 50 % ± {noise:.0f}. "
        f"`{result['command']}`: {result['config']}, {result['epochs']} epochs, seed {result['seed']}, on "
        f"{result['machine']}. Data: `benchmarks/results/radius_signal.json`.",
    ]
    return "\n".join(lines)


def few_shot_table() -> str:
    """Make the tables of backbones on domains that they were trained on, and that they were not."""
    result = results("few_shot")
    arguments, blocks = result["arguments"], []
    for adaptation, found in result["adaptations"].items():
        domains = [name for name in next(iter(found["seen"].values())) if name != "average"]
        columns = [*domains, "average"]
        for which in ("seen", "unseen"):
            lines = [f"| {which}, `{adaptation}` | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
            for name, row in found[which].items():
                cells = [f"{100 * row[c]['accuracy']:.1f} ± {100 * row[c]['interval']:.1f}" for c in columns]
                lines.append(f"| {name} | {' | '.join(cells)} |")
            for name, row in found[f"{which}_differences"].items():
                cells = [f"{100 * row[c]['difference']:+.1f} ± {100 * row[c]['interval']:.1f}" for c in columns]
                lines.append(f"| *{name}* | {' | '.join(cells)} |")
            blocks.append("\n".join(lines))
    blocks.append(
        f"Accuracy in % over {arguments['episodes']} episodes ± 95 %; in italics paired differences, in points. "
        f"`{result['command']}` on {result['machine']}, seed {arguments['seed']}: one training of each backbone, so "
        "the intervals say nothing of other trainings. Data: `benchmarks/results/few_shot.json`."
    )
    return "\n\n".join(blocks)


def speed_table() -> str:
    """Make the table of how many few-shot tasks a second takes."""
    result = results("speed")
    widths = result["episodes_per_second"]
    lines = ["| episodes a second | " + " | ".join(f"{dim} features" for dim in widths) + " |"]
    lines.append("|---|" + "---|" * len(widths))
    for adaptation in next(iter(widths.values())):
        lines.append(
            f"| `{adaptation}` | " + " | ".join(f"{found[adaptation]:.0f}" for found in widths.values()) + " |"
        )
    lines += [
        "",
        f"`{result['command']}` on {result['machine']}: 1,200 examples of 60 classes, Meta-Dataset's tasks. Data: "
        "`benchmarks/results/speed.json`.",
    ]
    return "\n".join(lines)


def small_passes() -> str:
    """Say what passes of few examples take."""
    result = results("speed")
    *sizes, last = result["small_passes"]
    *shares, of_last = (f"{share:.2f}" for share in result["small_passes"].values())
    return (
        f"A forward and backward pass of {', '.join(sizes)} and {last} images takes {', '.join(shares)} and {of_last} "
        f"of one of 32 (the ViT above; `{result['command']}` on {result['machine']}, paired medians; data: "
        "`benchmarks/results/speed.json`)."
    )


def curvature_speed() -> str:
    """Say how long measuring the curvature takes."""
    result = results("speed")
    found = result["curvature"]
    return (
        f"A ViT of {found['parameters'] / 1e6:.1f} M parameters, trained on digits of 28 × 28 pixels, takes "
        f"{found['seconds']:.0f} s with the command's defaults: {found['examples']:,} examples, "
        f"{found['hessian_examples']} of them for the Hessian (`{result['command']}` on {result['machine']}; data: "
        "`benchmarks/results/speed.json`)."
    )


def filled(text: str) -> str:
    """Replace every block between `<!-- NAME -->` and `<!-- end -->` by the table of that name."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        special = {
            "cost": cost_table,
            "cost_full": lambda: cost_table(True),
            "budget": budget_table,
            "radius_signal": signal_table,
            "geometry": geometry_table,
            "few_shot": few_shot_table,
            "few_shot_speed": speed_table,
            "curvature_speed": curvature_speed,
            "small_passes": small_passes,
        }
        other = head_table if name.endswith("_head") else accuracy_table
        table = special[name]() if name in special else other(name)
        return f"<!-- {name} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def main() -> int:
    """Rewrite or check the tables of every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    differing = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text()
        made = filled(text)
        if made != text and arguments.check:
            print(f"{page.name} differs from benchmarks/results: run python benchmarks/tables.py")
            differing = 1
        elif made != text:
            page.write_text(made)
    return differing


if __name__ == "__main__":
    sys.exit(main())
