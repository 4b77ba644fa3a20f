"""Few-shot classification: train backbones per domain, with and without sharpness; then fuse, choose and compare them.

python recipes/few_shot.py --output_dir outputs/few_shot
"""

import json
import logging
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForImageClassification, HfArgumentParser, set_seed

from hf_sharp import SharpTrainingArguments
from hf_sharp.few_shot import (
    Domain,
    DomainNotInstalled,
    EpisodeSampler,
    EpisodeSelection,
    FewShotResult,
    open_domain,
    select_per_episode,
)
from hf_sharp.few_shot.arguments import FewShotArguments, values_by_key
from hf_sharp.few_shot.benchmark import EpisodeBenchmark, StoredBackbone
from hf_sharp.few_shot.fusion import Candidates, Plan, PlannedBackbone, plan_backbones
from hf_sharp.few_shot.report import comparison_rows, differences, few_shot_table, summary
from hf_sharp.few_shot.stages import resume_stage
from hf_sharp.few_shot.training import DomainImages, EpisodeValidation, train_backbone
from hf_sharp.recipe import ModelArguments, read_flags, run_recipe
from hf_sharp.recipe.images import load_image_processor
from hf_sharp.recipe.models import load_model
from hf_sharp.reports.plots import plot_few_shot
from hf_sharp.reports.results import machine_class

logger = logging.getLogger(__name__)

Rows = dict[str, dict[str, FewShotResult]]


@dataclass(frozen=True)
class Parts:
    """A domain, split into parts for training, validation episodes (may be None) and test episodes."""

    train: Domain
    validation: Domain | None
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
        if not isinstance(domain.dataset.features[domain.column], datasets.Image):
            raise ValueError(
                f"{name!r} holds texts, and this recipe trains backbones on images. Evaluate text encoders with "
                "hf_sharp.few_shot.evaluate, as in docs/few_shot.md, or name domains of images."
            )
        short = re.sub(r"[^\w.-]+", "_", Path(name).name)
        if short in parts:
            raise ValueError(f"two domains are called {short!r}: {arguments.domains}. Leave one out, or rename it.")
        domain = Domain(short, domain.dataset, domain.labels, domain.class_names, domain.column, domain.licence)
        train, test = domain.limit(arguments.examples_per_class, arguments.seed).split(arguments.held_out)
        parts[short] = part = split_validation(train, test, arguments)
        shared = np.intersect1d(train.labels, test.labels).size
        classes = f"the same {shared} classes" if shared else f"{len(np.unique(test.labels))} other classes"
        print(
            f"{short} ({domain.licence}): {len(part.train):,} training images"
            f"{f', {len(part.validation):,} for validation' if part.validation else ''}; test episodes from "
            f"{len(test):,} other images of {classes}"
        )
    if not parts:
        raise ValueError(f"none of the domains {', '.join(arguments.domains)} is installed.")
    return parts


def split_validation(train: Domain, test: Domain, arguments: FewShotArguments) -> Parts:
    """Hold out part of the training examples for validation episodes."""
    if not arguments.validation_fraction:
        return Parts(train, None, test)
    train, validation = train.split(arguments.validation_fraction, arguments.seed)
    try:
        EpisodeSampler(validation.labels, arguments.ways, arguments.shots)
    except ValueError as error:
        raise ValueError(
            f"{train.name}: too little data for validation: {error} Raise --validation_fraction, or set it to 0 to "
            "keep the last checkpoint."
        ) from error
    return Parts(train, validation, test)


def train_all(plan: Plan, parts: Mapping[str, Parts], arguments: FewShotArguments) -> dict[str, Path]:
    """Train every backbone of the plan that has not been trained yet, and return their folders."""
    folders = {name: Path(arguments.output_dir) / "backbones" / name for name in plan.backbones}
    keys = [*parts, *(f"{method}/{domain}" for method in arguments.sharpness for domain in parts)]
    rho = values_by_key("rho", arguments.rho, keys)
    pretrained = values_by_key("pretrained", arguments.pretrained, keys)
    stages = {name: training_options(planned, rho, pretrained, arguments) for name, planned in plan.backbones.items()}
    args = {name: training_arguments(folders[name], options, arguments) for name, options in stages.items()}
    for name, planned in plan.backbones.items():
        source = str(folders[planned.source.name]) if planned.source else stages[name]["pretrained"]
        run = partial(train_one, source, stages[name], args[name], parts, arguments)
        resume_stage(folders[name] / "stage.json", stages[name], run)
    return folders


def training_options(
    planned: PlannedBackbone, rho: Mapping[str, str], pretrained: Mapping[str, str], arguments: FewShotArguments
) -> dict[str, Any]:
    """Return the options that a backbone's weights depend on."""
    fused, domain = planned.source is not None, planned.domains[0] if len(planned.domains) == 1 else ""
    places = (f"{planned.sharpness}/{domain}", domain, "")
    sharpness = planned.sharpness if not fused or arguments.fuse_with_sharpness else "none"
    radius = next((float(rho[place]) for place in places if place in rho), None)
    model = None if fused else next((pretrained[place] for place in places if place in pretrained), None)
    steps = arguments.fuse_steps if fused else arguments.train_steps
    if not steps and not model:
        raise ValueError(f"train_steps=0, and --pretrained has no model for {planned.name}.")
    vit = ("image_size", "patch_size", "hidden_size", "layers", "heads")
    validation = ("validation_fraction", "validation_episodes", "validations", "features", "ways", "shots")
    return {
        "domains": list(planned.domains),
        "source": planned.source.domains[0] if planned.source else None,
        "pretrained": model,
        "sharpness": sharpness,
        "rho": None if sharpness == "none" else radius,
        "steps": steps,
        "learning_rate": arguments.fuse_learning_rate if fused else arguments.learning_rate,
        **arguments.pick("seed", "examples_per_class", "held_out", "batch_size", "weight_decay", *vit),
        **(arguments.pick(*validation) if arguments.validation_fraction else {}),
        **({"lora_rank": arguments.fuse_lora_rank} if fused and arguments.fuse_lora_rank else {}),
    }


def train_one(
    source: str | None,
    options: Mapping[str, Any],
    args: SharpTrainingArguments,
    parts: Mapping[str, Parts],
    arguments: FewShotArguments,
) -> dict[str, Any]:
    """Train one backbone, from scratch or from a pretrained one."""
    folder = Path(str(args.output_dir))
    print(f"training {folder.parent.name}/{folder.name}")
    # The other domains have their own classes.
    model_arguments = ModelArguments(source, None if source else vit_config(arguments), new_head=source is not None)
    processor = load_image_processor(model_arguments)
    trained_on = [parts[domain] for domain in options["domains"]]
    images = DomainImages([part.train for part in trained_on], processor)
    set_seed(arguments.seed)
    model = load_model(AutoModelForImageClassification, model_arguments, images.class_names)
    if not options["steps"]:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return {}
    validation = None
    if sets := [part.validation for part in trained_on if part.validation]:
        every = options["steps"] // arguments.validations
        chosen = arguments.pick("seed", "ways", "shots", "features")
        validation = EpisodeValidation(sets, processor, every, arguments.validation_episodes, **chosen)
    return train_backbone(model, images, processor, args, validation, options.get("lora_rank", 0))


def training_arguments(folder: Path, options: Mapping[str, Any], arguments: FewShotArguments) -> SharpTrainingArguments:
    """Return the training arguments of a backbone."""
    return SharpTrainingArguments(
        str(folder),
        sharpness=options["sharpness"],
        loss="cross_entropy",  # only the sizes of domains differ, not those of classes
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
    """Return the config of a ViT to train from scratch."""
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
    plan: Plan, folders: Mapping[str, Path], parts: Mapping[str, Parts], arguments: FewShotArguments
) -> tuple[dict[str, Rows], dict[str, dict[str, Any]]]:
    """Evaluate every backbone on the same episodes of every domain, and compute PARC scores of the candidates.

    Returns:
        The results by adaptation, backbone and domain; and the PARC scores of all episodes by backbone and domain.
    """
    results: dict[str, Rows] = {adaptation: {name: {} for name in folders} for adaptation in arguments.adaptations}
    scores: dict[str, dict[str, Any]] = {name: {} for name in folders}
    data = arguments.pick("examples_per_class", "held_out")
    episodes = arguments.pick("episodes", "seed", "ways", "shots")
    benchmark = EpisodeBenchmark(Path(arguments.output_dir) / "results", **episodes, options=data)
    for name, folder in folders.items():
        stored = StoredBackbone(name, folder, arguments.features)
        for domain, part in parts.items():
            for adaptation in arguments.adaptations:
                seen = domain in plan.backbones[name].seen
                results[adaptation][name][domain] = benchmark.evaluate(stored, part.test, adaptation, seen)
            if any(name in cells[domain] and len(cells[domain]) > 1 for cells in plan.unseen.values()):
                probe = part.train if arguments.parc_on == "domain" else None
                components = arguments.parc_components or None
                chosen_on = (components, probe, arguments.parc_examples)
                scores[name][domain] = benchmark.parc_scores(stored, part.test, *chosen_on)
    return results, scores


def choose(
    rows: Candidates, results: Rows, scores: Mapping[str, Mapping[str, Any]], episodes: int
) -> dict[str, dict[str, EpisodeSelection]]:
    """Choose among the candidates for every cell of a table; return the selections by row and domain."""
    equal = np.zeros(episodes)
    return {
        row: {
            domain: select_per_episode(
                {name: results[name][domain] for name in names},
                {name: scores[name].get(domain, equal) for name in names},
            )
            for domain, names in cells.items()
        }
        for row, cells in rows.items()
    }


def describe_choices(
    selections: Mapping[str, Mapping[str, EpisodeSelection]], rows: Candidates, scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return each candidate's mean PARC score and share of chosen episodes, for the JSON file."""
    choices: dict[str, Any] = {row: {} for row in rows}
    for row, cells in rows.items():
        for domain, candidates in cells.items():
            if len(candidates) > 1:
                chosen = selections[row][domain].names
                choices[row][domain] = {
                    "scores": {name: mean_score(scores[name][domain]) for name in candidates},
                    "shares": {name: chosen.count(name) / len(chosen) for name in candidates},
                }
    return choices


def mean_score(scores: np.ndarray) -> float | None:
    """Return the mean of the scores that are defined, or None if there are none."""
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if len(defined) else None


def report(adaptation: str, results: Rows, tables: Mapping[str, Any], arguments: FewShotArguments) -> dict[str, Any]:
    """Show the tables and pictures of one adaptation, and return its figures for the JSON file."""
    console = Console()
    console.print(few_shot_table(results, f"{adaptation}: every backbone on every domain"))
    figures: dict[str, Any] = {"backbones": summary(results)}
    for which, selections in tables.items():
        rows = {row: {domain: chosen.result for domain, chosen in cells.items()} for row, cells in selections.items()}
        if not rows:
            continue
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
    fusion = arguments.fusion if arguments.fuse_steps else ()
    plan = plan_backbones(sizes, arguments.sharpness, fusion, arguments.source, arguments.fuse_with_source)
    folders = train_all(plan, parts, arguments)
    results, scores = evaluate_all(plan, folders, parts, arguments)
    tables = {
        adaptation: {
            which: choose(rows, of_adaptation, scores, arguments.episodes)
            for which, rows in (("seen", plan.seen), ("unseen", plan.unseen))
        }
        for adaptation, of_adaptation in results.items()
    }
    figures = {
        "command": shlex.join(["python", "recipes/few_shot.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine_class(),
        "arguments": asdict(arguments),
        "licences": {name: part.test.licence for name, part in parts.items()},
        "chosen_by_parc": describe_choices(next(iter(tables.values()))["unseen"], plan.unseen, scores),
        "adaptations": {name: report(name, of_it, tables[name], arguments) for name, of_it in results.items()},
    }
    file = Path(arguments.output_dir) / "few_shot.json"
    file.write_text(json.dumps(figures, indent=1) + "\n")
    Console().print(f"figures  {file}", soft_wrap=True)
    return figures


if __name__ == "__main__":
    sys.exit(run_recipe(main, "the same command goes on after the last finished part"))
