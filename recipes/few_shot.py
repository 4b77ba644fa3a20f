"""Few-shot classification: train a backbone per domain with and without sharpness, fuse, choose and compare them.

python recipes/few_shot.py --output_dir outputs/few_shot
"""

import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForImageClassification, HfArgumentParser, set_seed

from hf_sharp import SharpTrainingArguments
from hf_sharp.few_shot import (
    ADAPTATIONS,
    DOMAINS,
    Backbone,
    Domain,
    DomainNotInstalled,
    FewShotResult,
    embed,
    evaluate,
    load_backbone,
    open_domain,
    select_backbone,
)
from hf_sharp.few_shot.fusion import Plan, PlannedBackbone, plan_backbones
from hf_sharp.few_shot.report import comparison_rows, differences, few_shot_table, summary
from hf_sharp.few_shot.stages import resume_stage
from hf_sharp.few_shot.training import DomainImages, train_backbone
from hf_sharp.recipe import ModelArguments, read_flags, run_recipe
from hf_sharp.recipe.images import load_image_processor
from hf_sharp.recipe.models import load_model
from hf_sharp.reports.plots import plot_few_shot
from hf_sharp.reports.results import machine_class

logger = logging.getLogger(__name__)

Rows = dict[str, dict[str, FewShotResult]]


@dataclass
class FewShotArguments:
    """The domains, the backbones, and how they are compared."""

    output_dir: str = field(
        default="outputs/few_shot",
        metadata={"help": "Folder for backbones, results and pictures. Finished stages in it are reused."},
    )
    domains: list[str] = field(
        default_factory=lambda: list(DOMAINS),
        metadata={"help": f"Any of {', '.join(DOMAINS)}; or a dataset on the Hub, a folder or a file."},
    )
    examples_per_class: int = field(default=300, metadata={"help": "Larger classes are cut down to this size."})
    held_out: float = field(
        default=0.3,
        metadata={
            "help": "Share of the classes (below 20 classes: of the examples) that test episodes are drawn from."
        },
    )
    sharpness: list[str] = field(default_factory=lambda: ["none", "sam"], metadata={"help": "Methods to compare."})
    rho: float = field(default=0.05, metadata={"help": "Radius of the sharpness methods."})
    image_size: int = field(default=32, metadata={"help": "ViT from scratch: image side in pixels."})
    patch_size: int = field(default=4, metadata={"help": "ViT from scratch: patch side in pixels."})
    hidden_size: int = field(default=96, metadata={"help": "ViT from scratch: width."})
    layers: int = field(default=4, metadata={"help": "ViT from scratch: layers."})
    heads: int = field(default=4, metadata={"help": "ViT from scratch: attention heads."})
    train_steps: int = field(default=1500, metadata={"help": "Optimizer steps of a domain's backbone."})
    fuse_steps: int = field(default=1500, metadata={"help": "Optimizer steps of a fused backbone; 0: no fusion."})
    batch_size: int = field(default=64, metadata={"help": "Examples per step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of a domain's backbone."})
    fuse_learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of fusion."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of both."})
    source: str | None = field(
        default=None,
        metadata={"help": "The domain whose backbone fusion starts from; default: the one with most examples."},
    )
    fuse_with_source: bool = field(
        default=False, metadata={"help": "Joint fusion: train on the source's examples as well."}
    )
    fuse_with_sharpness: bool = field(
        default=False, metadata={"help": "Fuse with the backbone's sharpness method; default: without."}
    )
    fuse_lora_rank: int = field(
        default=0, metadata={"help": "Fuse with LoRA adapters of this rank, merged afterwards; 0: all weights."}
    )
    adaptations: list[str] = field(
        default_factory=lambda: ["prototype", "affine"], metadata={"help": f"Any of {', '.join(ADAPTATIONS)}."}
    )
    features: str | None = field(
        default=None, metadata={"help": "pooled, class_token or mean; default: pooled if trained, else class_token."}
    )
    episodes: int = field(default=600, metadata={"help": "Test episodes per domain."})
    ways: int | None = field(default=None, metadata={"help": "Fixed number of classes; default: Meta-Dataset's."})
    shots: int | None = field(default=None, metadata={"help": "Fixed number of examples; default: Meta-Dataset's."})
    parc_examples: int = field(default=500, metadata={"help": "Size of the probe set that PARC is computed on."})
    seed: int = field(default=0, metadata={"help": "Seed of everything."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU even if there is a GPU."})

    def __post_init__(self) -> None:
        if unknown := [name for name in self.adaptations if name not in ADAPTATIONS]:
            raise ValueError(f"unknown adaptation {unknown[0]!r}; the adaptations are {', '.join(ADAPTATIONS)}.")

    def pick(self, *names: str) -> dict[str, Any]:
        """Return some of the options, as a mapping."""
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Parts:
    """A domain, split into a part for training and a part for test episodes."""

    train: Domain
    test: Domain


def open_domains(arguments: FewShotArguments) -> dict[str, Parts]:
    """Open and split the domains; a domain that is not installed is skipped with a warning."""
    parts: dict[str, Parts] = {}
    for name in arguments.domains:
        try:
            domain = open_domain(name)
        except DomainNotInstalled as reason:
            logger.warning("skipping %s: %s", name, reason)
            continue
        short = re.sub(r"[^\w.-]+", "_", Path(name).name)
        if short in parts:
            raise ValueError(f"two domains are called {short!r}: {arguments.domains}.")
        domain = Domain(short, domain.dataset, domain.labels, domain.class_names, domain.column, domain.licence)
        train, test = domain.limit(arguments.examples_per_class, arguments.seed).split(arguments.held_out)
        parts[short] = Parts(train, test)
        shared = np.intersect1d(train.labels, test.labels).size
        classes = f"the same {shared} classes" if shared else f"{len(np.unique(test.labels))} other classes"
        print(
            f"{short} ({domain.licence}): {len(train):,} training images; test episodes from {len(test):,} other "
            f"images of {classes}"
        )
    if not parts:
        raise ValueError(f"none of the domains {', '.join(arguments.domains)} is installed.")
    return parts


def train_all(plan: Plan, parts: Mapping[str, Parts], arguments: FewShotArguments) -> dict[str, Path]:
    """Train every backbone of the plan that has not been trained yet, and return their folders."""
    folders = {name: Path(arguments.output_dir) / "backbones" / name for name in plan.backbones}
    for name, planned in plan.backbones.items():
        options = training_options(planned, arguments)
        source = folders[planned.source.name] if planned.source else None
        run = partial(train_one, folders[name], source, options, parts, arguments)
        resume_stage(folders[name] / "stage.json", options, run)
    return folders


def train_one(
    folder: Path,
    source: Path | None,
    options: Mapping[str, Any],
    parts: Mapping[str, Parts],
    arguments: FewShotArguments,
) -> dict[str, float]:
    """Train one backbone, from scratch or from the backbone in another folder."""
    print(f"training {folder.parent.name}/{folder.name}")
    start = {"model_name_or_path": str(source)} if source else {"model_config": vit_config(arguments)}
    model_arguments = ModelArguments(**start)
    processor = load_image_processor(model_arguments)
    images = DomainImages([parts[domain].train for domain in options["domains"]], processor)
    set_seed(arguments.seed)
    model = load_model(AutoModelForImageClassification, model_arguments, images.class_names)
    args = training_arguments(folder, options, arguments)
    return train_backbone(model, images, processor, args, options.get("lora_rank", 0))


def training_options(planned: PlannedBackbone, arguments: FewShotArguments) -> dict[str, Any]:
    """Return the options that a backbone's weights depend on."""
    fused = planned.source is not None
    sharpness = planned.sharpness if not fused or arguments.fuse_with_sharpness else "none"
    names = ("seed", "image_size", "patch_size", "hidden_size", "layers", "heads", "examples_per_class", "held_out")
    return {
        "domains": list(planned.domains),
        "source": planned.source.domains[0] if planned.source else None,
        "sharpness": sharpness,
        "rho": None if sharpness == "none" else arguments.rho,
        "steps": arguments.fuse_steps if fused else arguments.train_steps,
        "learning_rate": arguments.fuse_learning_rate if fused else arguments.learning_rate,
        **arguments.pick(*names, "batch_size", "weight_decay"),
        **({"lora_rank": arguments.fuse_lora_rank} if fused and arguments.fuse_lora_rank else {}),
    }


def training_arguments(folder: Path, options: Mapping[str, Any], arguments: FewShotArguments) -> SharpTrainingArguments:
    """Return the training arguments of a backbone."""
    return SharpTrainingArguments(
        str(folder),
        sharpness=options["sharpness"],
        **({} if options["rho"] is None else {"rho": options["rho"]}),
        max_steps=options["steps"],
        per_device_train_batch_size=arguments.batch_size,
        learning_rate=options["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=options["steps"] // 20,
        weight_decay=arguments.weight_decay,
        save_strategy="no",
        report_to="none",
        seed=arguments.seed,
        use_cpu=arguments.use_cpu,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available() and not arguments.use_cpu,
    )


def vit_config(arguments: FewShotArguments) -> dict[str, Any]:
    """Return the config of a ViT from scratch."""
    return {
        "model_type": "vit",
        "image_size": arguments.image_size,
        "patch_size": arguments.patch_size,
        "hidden_size": arguments.hidden_size,
        "intermediate_size": 2 * arguments.hidden_size,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
    }


def evaluate_all(
    folders: Mapping[str, Path], parts: Mapping[str, Parts], arguments: FewShotArguments
) -> dict[str, Rows]:
    """Evaluate every backbone on the same episodes of every domain: adaptation to backbone to domain to result."""
    options = arguments.pick("episodes", "ways", "shots", "seed", "features", "examples_per_class", "held_out")
    results: dict[str, Rows] = {adaptation: {name: {} for name in folders} for adaptation in arguments.adaptations}
    for name, folder in folders.items():
        load = cache(partial(load_backbone, folder, features=arguments.features))
        for domain, part in parts.items():
            features = cache(partial(load_and_embed, load, part.test))
            for adaptation in arguments.adaptations:
                run = partial(evaluate_one, name, load, features, part.test, adaptation, arguments)
                file = Path(arguments.output_dir) / "results" / name / f"{domain}-{adaptation}.json"
                results[adaptation][name][domain] = FewShotResult.from_dict(resume_stage(file, options, run))
    return results


def load_and_embed(load: Callable[[], Backbone], domain: Domain) -> Tensor:
    """Embed a domain by a backbone that is loaded when it is needed."""
    return embed(load(), domain, progress_bar=True)


def evaluate_one(
    name: str,
    load: Callable[[], Backbone],
    features: Callable[[], Tensor],
    domain: Domain,
    adaptation: str,
    arguments: FewShotArguments,
) -> dict[str, Any]:
    """Evaluate one backbone with one adaptation on one domain."""
    options = arguments.pick("episodes", "seed", "ways", "shots")
    result = evaluate(load(), domain, adaptation, **options, features=features(), progress_bar=True)
    print(f"{name} on {domain.name}, {adaptation}: {result.accuracy:.1%} ± {result.interval:.1%}")
    return result.as_dict()


def choose_all(
    plan: Plan, folders: Mapping[str, Path], parts: Mapping[str, Parts], arguments: FewShotArguments
) -> dict[str, dict[str, Any]]:
    """Choose a backbone by PARC for every unseen cell with several candidates: row to domain to name and scores."""
    options = arguments.pick("parc_examples", "seed", "features", "examples_per_class", "held_out")
    chosen: dict[str, dict[str, Any]] = {row: {} for row in plan.unseen}
    for row, cells in plan.unseen.items():
        for domain, candidates in cells.items():
            if len(candidates) > 1:
                file = Path(arguments.output_dir) / "results" / "parc" / row / f"{domain}.json"
                run = partial(choose_one, [folders[name] for name in candidates], candidates, parts[domain], arguments)
                choice = resume_stage(file, options | {"candidates": candidates}, run)
                chosen[row][domain] = {"name": choice["name"], "scores": choice["scores"]}
            else:
                chosen[row][domain] = {"name": candidates[0], "scores": {}}
    return chosen


def choose_one(
    folders: Sequence[Path], names: Sequence[str], part: Parts, arguments: FewShotArguments
) -> dict[str, Any]:
    """Choose a backbone by PARC on a domain's training part."""
    backbones = {
        name: load_backbone(folder, features=arguments.features) for name, folder in zip(names, folders, strict=True)
    }
    return select_backbone(backbones, part.train, arguments.parc_examples, arguments.seed, components=32)._asdict()


def gather(plan: Plan, chosen: Mapping[str, Mapping[str, Any]], results: Rows) -> dict[str, Rows]:
    """Return the rows of the tables of seen and unseen domains."""
    tables = {
        "seen": {row: {d: results[c[0]][d] for d, c in cells.items()} for row, cells in plan.seen.items()},
        "unseen": {
            row: {d: results[choice["name"]][d] for d, choice in cells.items()} for row, cells in chosen.items()
        },
    }
    return {name: rows for name, rows in tables.items() if rows}


def report(adaptation: str, results: Rows, tables: Mapping[str, Rows], arguments: FewShotArguments) -> dict[str, Any]:
    """Show the tables and pictures of one adaptation, and return its figures for the JSON file."""
    console = Console()
    console.print(few_shot_table(results, f"{adaptation}: every backbone on every domain"))
    figures: dict[str, Any] = {"backbones": summary(results)}
    for which, rows in tables.items():
        console.print(few_shot_table(rows, f"{adaptation}: {which} domains, {arguments.episodes} episodes each"))
        compared = differences(rows)
        if compared:
            console.print(comparison_rows(compared))
        picture = Path(arguments.output_dir) / f"{adaptation}_{which}.png"
        plot_few_shot(rows, picture, f"few-shot accuracy on {which} domains, {adaptation}")
        console.print(f"picture  {picture}", soft_wrap=True)
        figures[which] = summary(rows)
        figures[f"{which}_differences"] = {
            name: {domain: comparison._asdict() for domain, comparison in row.items()} for name, row in compared.items()
        }
    return figures


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, fuse, choose and evaluate; show the results and write them to few_shot.json."""
    classes: Any = FewShotArguments
    (arguments,) = read_flags(HfArgumentParser(classes), argv)
    parts = open_domains(arguments)
    sizes = {name: len(part.train) for name, part in parts.items()}
    fusion = ("joint",) if arguments.fuse_steps else ()
    plan = plan_backbones(sizes, arguments.sharpness, fusion, arguments.source, arguments.fuse_with_source)
    folders = train_all(plan, parts, arguments)
    chosen = choose_all(plan, folders, parts, arguments)
    results = evaluate_all(folders, parts, arguments)
    figures = {
        "command": shlex.join(["python", "recipes/few_shot.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine_class(),
        "arguments": asdict(arguments),
        "licences": {name: part.test.licence for name, part in parts.items()},
        "chosen_by_parc": chosen,
        "adaptations": {
            adaptation: report(adaptation, rows, gather(plan, chosen, rows), arguments)
            for adaptation, rows in results.items()
        },
    }
    file = Path(arguments.output_dir) / "few_shot.json"
    file.write_text(json.dumps(figures, indent=1) + "\n")
    Console().print(f"figures  {file}", soft_wrap=True)
    return figures


if __name__ == "__main__":
    sys.exit(run_recipe(main))
