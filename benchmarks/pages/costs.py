"""The tables of docs/cost.md, and other times."""

from collections.abc import Callable, Mapping
from typing import Any

from pages.accuracy import how_it_was_made
from pages.formatting import made_by, percent, results, table

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
STEP = ("step", "passes (forward + backward)")


def titled(model: str) -> str:
    """Write a model's name as its authors do."""
    return model.replace("vit", "ViT").replace("bert", "BERT")


def steps_table(columns: Mapping[str, Mapping[str, Any]], memory: Mapping[str, Mapping[str, Any]]) -> str:
    """Make a table of step times as multiples of a plain step, with quartiles and the memory beyond a plain step."""
    rows = []
    for method, of_first in next(iter(columns.values()))["methods"].items():
        cells = [method, "{forward:.3g} + {backward:.3g}".format(**of_first["passes"])]
        for model in columns.values():
            cells.append("{1:.2f} ({0:.2f} to {2:.2f})".format(*model["methods"][method]["ratio_quartiles"]))
        added = (model["methods"][method]["peak_over_plain"] for model in memory.values())
        rows.append([*cells, " / ".join(f"{round(copies, 1) + 0:.1f}" for copies in added)])
    return table((*STEP, *columns, "memory over plain"), rows)


def on_cpu() -> str:
    """Make the table of step costs, with quartiles and memory."""
    result = results("cost")
    models = {titled(name): model for name, model in result["models"].items()}
    lora = [model for name, model in models.items() if "LoRA" in name]
    rare = 100 * next(iter(models.values()))["rare_share"]
    tiny = result["tiny"]
    low, middle, high = tiny["sam_ms_beyond_two_passes_quartiles"]
    moving = tiny["of_these_moving_the_weights_quartiles"][1]
    added = [m["methods"]["sam"]["peak_over_plain"] * m["trainable_bytes"] / (4 * m["parameters"]) for m in lora]
    paragraphs = (
        steps_table(models, {name: model for name, model in models.items() if "LoRA" not in name}),
        "The time of a step as a multiple of a plain Trainer's, from paired measurements: median and quartiles. "
        f"`{result['command']}` on {result['machine']}, torch {result['versions']['torch']}, seed {result['seed']}; "
        f"passes are in examples per example of the batch; {rare:.0f} % of the examples are rare for `imbsam` here. "
        "Data: `benchmarks/results/cost.json`.",
        "Memory: the peak of a step minus that of a plain one, in copies of the trainable parameters, ViT / BERT. "
        f"With LoRA, SAM adds at most {100 * max(added):.1f} % of the model's bytes. On a tiny ViT "
        f"({tiny['parameters']:,} parameters in {tiny['tensors']} tensors) a SAM step takes {middle:.1f} ms "
        f"({low:.1f} to {high:.1f}) longer than two plain ones; {moving:.1f} ms of these move the weights to w + ε and "
        "back, with five kernels per tensor.",
    )
    return "\n\n".join(paragraphs)


def on_gpu() -> str:
    """Make the table of step costs on a GPU, in float32 and in bfloat16."""
    measured = {"float32": results("cost_gpu"), "bfloat16": results("cost_gpu_bf16")}
    columns = {
        f"{titled(name)}, {precision}": model
        for precision, result in measured.items()
        for name, model in result["models"].items()
    }
    steps = ", ".join(f"{model['plain_step_ms']:.0f} ms ({name})" for name, model in columns.items())
    sources = "; ".join(
        f"`{result['command']}` on {result['machine']}, torch {result['versions']['torch']}, transformers "
        f"{result['versions']['transformers']}, seed {result['seed']} ({result['note']})"
        for result in measured.values()
    )
    return (
        f"{steps_table(columns, columns)}\n\nViT-B/16 and BERT-base from configs, batches of "
        f"{next(iter(columns.values()))['batch_size']}. A plain step took {steps}. {sources}. Data: "
        "`benchmarks/results/cost_gpu.json` and `cost_gpu_bf16.json`."
    )


def budget() -> str:
    """Make the table of the cost of a step, and of the accuracy on two data sets."""
    cost, names = results("cost"), ("fashion_mnist_lt_cost", "debian_sections_cost")
    rows = []
    for run, (options, method) in COSTS.items():
        methods = [cost["models"][kind]["methods"][method] for kind in ("vit", "bert")]
        times = " / ".join(f"{timing['ratio_quartiles'][1]:.2f}" for timing in methods)
        found = (results(name)["runs"][run][f"{group}_accuracy"] for name in names for group in ("balanced", "few"))
        rows.append([options, f"{methods[0]['passes']['backward']:.3g}", times, *map(percent, found)])
    columns = ("options", "backward passes", "ViT / BERT", "Fashion-MNIST-LT: balanced", "few")
    paragraphs = (
        table((*columns, "Debian: balanced", "few"), rows),
        "Backward passes and the time of a step are those of the table above. Accuracy in %, all with "
        '`loss="logit_adjusted"`.',
        *(how_it_was_made(name) for name in names),
    )
    return "\n\n".join(paragraphs)


def other_costs() -> str:
    """Make the table of the costs of the one-pass ascent, a late sharp phase and an initialized head."""
    result = results("ascent_costs")
    timings = {
        **{f"a step of {name}, against a plain step": row for name, row in result["steps"].items() if name != "none"},
        "a run of SAM with `sharpness_after=0.8`, against a plain run": result["sharpness_after=0.8"],
        '`head_init="class_mean"`, against the forward passes of one epoch': result["head_init=class_mean"],
    }
    rows = (
        (name, f"{timing['median']:.2f}", f"{timing['lower_quartile']:.2f} to {timing['upper_quartile']:.2f}")
        for name, timing in timings.items()
    )
    note = f"{result['model']}; interleaved ratios of {result['rounds']} rounds."
    return f"{table(('cost', 'median', 'quartiles'), rows)}\n\n{note} {made_by('ascent_costs')}"


def episodes_per_second() -> str:
    """Make the table of few-shot tasks per second."""
    widths = results("speed")["episodes_per_second"]
    rows = (
        (f"`{adaptation}`", *(f"{rates[adaptation]:.0f}" for rates in widths.values()))
        for adaptation in next(iter(widths.values()))
    )
    shown = table(("episodes per second", *(f"{dim} features" for dim in widths)), rows)
    return f"{shown}\n\n{made_by('speed', ': 1,200 examples of 60 classes, tasks as in Meta-Dataset')}"


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


def curvature() -> str:
    """Say how long measuring the curvature takes."""
    result = results("speed")
    timing = result["curvature"]
    return (
        f"A ViT of {timing['parameters'] / 1e6:.1f} M parameters, trained on digits of 28 × 28 pixels, takes "
        f"{timing['seconds']:.0f} s with the command's defaults: {timing['examples']:,} examples, "
        f"{timing['hessian_examples']} of them for the Hessian (`{result['command']}` on {result['machine']}; data: "
        "`benchmarks/results/speed.json`)."
    )


COST_TABLES: dict[str, Callable[[], str]] = {
    "cost_full": on_cpu,
    "cost_gpu": on_gpu,
    "budget": budget,
    "ascent_costs": other_costs,
    "few_shot_speed": episodes_per_second,
    "small_passes": small_passes,
    "curvature_speed": curvature,
}
