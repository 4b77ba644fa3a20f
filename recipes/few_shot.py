"""Few-shot classification: backbones of every domain, with and without sharpness, fused, chosen, and compared.

python recipes/few_shot.py --output_dir outputs/few_shot
"""

import importlib
import json
import logging
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForImageClassification, HfArgumentParser, set_seed

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.few_shot import (
    ADAPTATIONS,
    DOMAINS,
    Backbone,
    Domain,
    DomainNotInstalled,
    FewShotResult,
    average,
    compare,
    embed,
    evaluate,
    load_backbone,
    open_domain,
    select_backbone,
)
from hf_sharp.few_shot.report import comparison_rows, few_shot_table
from hf_sharp.recipe import ModelArguments, read_flags, run_recipe
from hf_sharp.recipe.images import load_image_processor
from hf_sharp.recipe.models import load_model
from hf_sharp.reports.plots import plot_few_shot
from hf_sharp.reports.results import machine_class

logger = logging.getLogger(__name__)

Rows = dict[str, dict[str, FewShotResult]]
FUSED = "fused"


@dataclass
class FewShotArguments:
    """Which domains, which backbones, and how they are compared."""

    output_dir: str = field(
        default="outputs/few_shot",
        metadata={"help": "Where backbones, results and pictures go. What is there is kept."},
    )
    domains: list[str] = field(
        default_factory=lambda: list(DOMAINS),
        metadata={"help": f"Of {', '.join(DOMAINS)}, or of one's own: a Hub dataset, a folder or a file."},
    )
    examples_per_class: int = field(default=300, metadata={"help": "A larger class is cut down to so many examples."})
    held_out: float = field(
        default=0.3, metadata={"help": "The share of classes (of examples, below 20 classes) that episodes come from."}
    )
    sharpness: list[str] = field(default_factory=lambda: ["none", "sam"], metadata={"help": "Methods to compare."})
    rho: float = field(default=0.05, metadata={"help": "Radius, where there is sharpness."})
    image_size: int = field(default=32, metadata={"help": "The ViT: pixels of a side."})
    patch_size: int = field(default=4, metadata={"help": "The ViT: pixels of a patch's side."})
    hidden_size: int = field(default=96, metadata={"help": "The ViT: width."})
    layers: int = field(default=4, metadata={"help": "The ViT: layers."})
    heads: int = field(default=4, metadata={"help": "The ViT: attention heads."})
    train_steps: int = field(default=1500, metadata={"help": "Optimizer steps of a domain's backbone."})
    fuse_steps: int = field(default=1500, metadata={"help": "Optimizer steps of fusion; 0: no fusion."})
    batch_size: int = field(default=64, metadata={"help": "Examples in a step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of a domain's backbone."})
    fuse_learning_rate: float = field(default=3e-4, metadata={"help": "Of fusion."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of both."})
    source: str | None = field(
        default=None,
        metadata={"help": "The domain whose backbone fusion starts from; default: the one with most data."},
    )
    fuse_with_source: bool = field(
        default=False, metadata={"help": "Fuse on the source's data too, not the others' alone."}
    )
    fuse_with_sharpness: bool = field(
        default=False, metadata={"help": "Fuse with the backbone's sharpness, not plainly."}
    )
    fuse_lora_rank: int = field(
        default=0, metadata={"help": "Fuse with LoRA adapters of this rank, merged afterwards; 0: all weights."}
    )
    adaptations: list[str] = field(
        default_factory=lambda: ["prototype", "affine"], metadata={"help": f"Of {', '.join(ADAPTATIONS)}."}
    )
    features: str | None = field(default=None, metadata={"help": "pooled, class_token or mean; default: see the docs."})
    episodes: int = field(default=600, metadata={"help": "Tasks of every domain."})
    ways: int | None = field(default=None, metadata={"help": "Fixed number of classes; default: Meta-Dataset's."})
    shots: int | None = field(default=None, metadata={"help": "Fixed number of examples; default: Meta-Dataset's."})
    parc_examples: int = field(default=500, metadata={"help": "Examples that a backbone is chosen by."})
    seed: int = field(default=0, metadata={"help": "Of everything."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU even where there is a GPU."})

    def __post_init__(self) -> None:
        if unknown := [name for name in self.adaptations if name not in ADAPTATIONS]:
            raise ValueError(f"unknown adaptation {unknown[0]!r}; the adaptations are {', '.join(ADAPTATIONS)}.")


@dataclass(frozen=True)
class Parts:
    """A domain's two parts: what backbones learn from, and what episodes are drawn from."""

    train: Domain
    test: Domain


class Pixels(torch.utils.data.Dataset):
    """Training images of one or more domains, ready for the model, in memory."""

    def __init__(self, domains: Sequence[Domain], processor: Any) -> None:
        pixels, targets = [], []
        self.class_names: list[str] = []
        for domain in domains:
            classes, labels = np.unique(domain.labels, return_inverse=True)
            targets.append(labels + len(self.class_names))
            self.class_names += [f"{domain.name}/{domain.class_names[c]}" for c in classes]
            for start in range(0, len(domain), 256):
                images = [image.convert("RGB") for image in domain.dataset[start : start + 256][domain.column]]
                pixels.append(processor(images=images, return_tensors="pt")["pixel_values"])
        self.pixels, self.targets = torch.cat(pixels), np.concatenate(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self.pixels[row], "label": int(self.targets[row])}


def open_domains(arguments: FewShotArguments) -> dict[str, Parts]:
    """Open and split the domains; one that is not installed is left out, with the reason."""
    found: dict[str, Parts] = {}
    for name in arguments.domains:
        try:
            domain = open_domain(name)
        except DomainNotInstalled as reason:
            logger.warning("%s is left out: %s", name, reason)
            continue
        short = re.sub(r"[^\w.-]+", "_", Path(name).name)
        if short in found:
            raise ValueError(f"two domains are called {short!r}: {arguments.domains}.")
        domain = Domain(short, domain.dataset, domain.labels, domain.class_names, domain.column, domain.licence)
        found[short] = Parts(*domain.limit(arguments.examples_per_class, arguments.seed).split(arguments.held_out))
        train, test = found[short].train, found[short].test
        shared = np.intersect1d(train.labels, test.labels).size
        which = f"the same {shared}" if shared else f"{len(np.unique(test.labels))} other"
        print(
            f"{short} ({domain.licence}): trains on {len(train):,} images, episodes from {len(test):,} others "
            f"of {which} classes"
        )
    if not found:
        raise ValueError(f"none of the domains {', '.join(arguments.domains)} is installed.")
    return found


def is_done(file: Path, options: Mapping[str, Any]) -> bool:
    """Say whether a stage was finished with these options; with others, it is an error."""
    if not file.exists():
        return False
    then = json.loads(file.read_text())["options"]
    now = json.loads(json.dumps(options))
    if then != now:
        differ = ", ".join(
            f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in now | then if then.get(k) != now.get(k)
        )
        raise ValueError(f"{str(file.parent)!r} was made with other options ({differ}). Choose another output_dir.")
    return True


def finish(file: Path, options: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write a stage's results: whole, or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps({"options": options, **found}, indent=1) + "\n")
    unfinished.replace(file)


def train_backbone(
    folder: Path, domains: Sequence[Domain], sharpness: str, arguments: FewShotArguments, source: Path | None = None
) -> None:
    """Train a backbone on domains, from scratch or from the one in another folder, unless it is there already."""
    rank = arguments.fuse_lora_rank if source else 0
    options = {
        "domains": [domain.name for domain in domains],
        "source": source.name if source else None,
        "sharpness": sharpness,
        "rho": None if sharpness == "none" else arguments.rho,
        "steps": arguments.fuse_steps if source else arguments.train_steps,
        "learning_rate": arguments.fuse_learning_rate if source else arguments.learning_rate,
        "seed": arguments.seed,
        **{name: getattr(arguments, name) for name in ("image_size", "patch_size", "hidden_size", "layers", "heads")},
        **{name: getattr(arguments, name) for name in ("examples_per_class", "held_out", "batch_size", "weight_decay")},
        **({"lora_rank": rank} if rank else {}),
    }
    if is_done(folder / "stage.json", options):
        print(f"{folder.parent.name}/{folder.name} is there already")
        return
    print(f"training {folder.parent.name}/{folder.name}")
    which = ModelArguments(model_name_or_path=str(source)) if source else ModelArguments(model_config=vit(arguments))
    processor = load_image_processor(which)
    train = Pixels(domains, processor)
    set_seed(arguments.seed)
    model: Any = load_model(AutoModelForImageClassification, which, train.class_names)
    trainer = SharpTrainer(
        model=with_adapters(model, rank) if rank else model,
        args=training_arguments(folder, options, arguments),
        train_dataset=train,
        processing_class=processor,
    )
    loss = trainer.train().training_loss
    if rank:
        trainer.model = cast(Any, trainer.model).merge_and_unload()  # a backbone like the others
    trainer.save_model()
    finish(folder / "stage.json", options, {"training_loss": loss})


def vit(arguments: FewShotArguments) -> dict[str, Any]:
    """Give the config of a backbone from scratch."""
    return {
        "model_type": "vit",
        "image_size": arguments.image_size,
        "patch_size": arguments.patch_size,
        "hidden_size": arguments.hidden_size,
        "intermediate_size": 2 * arguments.hidden_size,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
    }


def with_adapters(model: Any, rank: int) -> Any:
    """Freeze a model but for its new head and LoRA adapters in every linear layer of its backbone."""
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ImportError("--fuse_lora_rank needs PEFT: pip install peft.") from error
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        exclude_modules=["classifier"],
        modules_to_save=["classifier"],
    )
    return peft.get_peft_model(model, config)


def training_arguments(folder: Path, options: Mapping[str, Any], arguments: FewShotArguments) -> SharpTrainingArguments:
    """Give the arguments of a backbone's training."""
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


def choose_source(parts: Mapping[str, Parts], without: str | None, arguments: FewShotArguments) -> str:
    """Choose the domain that fusion starts from: the one that was named, else the one with most data."""
    if arguments.source is not None and arguments.source not in parts:
        raise ValueError(f"source={arguments.source!r} is none of the domains {', '.join(parts)}.")
    left = [name for name in parts if name != without]
    return arguments.source if arguments.source in left else max(left, key=lambda name: len(parts[name].train))


def train_all(parts: Mapping[str, Parts], arguments: FewShotArguments) -> dict[str, Path]:
    """Train every backbone that is not there: of every domain, of all fused, and of all but one fused."""
    folders: dict[str, Path] = {}
    for sharpness in arguments.sharpness:
        for name, part in parts.items():
            folders[f"{sharpness}/{name}"] = folder = Path(arguments.output_dir) / "backbones" / sharpness / name
            train_backbone(folder, [part.train], sharpness, arguments)
        for without in (None, *parts) if arguments.fuse_steps else ():
            left = [name for name in parts if name != without]
            if not left:
                continue
            source = choose_source(parts, without, arguments)
            others = [parts[name].train for name in left if name != source or arguments.fuse_with_source]
            if len(left) < 2:  # there is nothing to fuse
                continue
            name = FUSED if without is None else f"{FUSED}_without_{without}"
            folders[f"{sharpness}/{name}"] = folder = Path(arguments.output_dir) / "backbones" / sharpness / name
            plainly = "none" if not arguments.fuse_with_sharpness else sharpness
            train_backbone(folder, others, plainly, arguments, folders[f"{sharpness}/{source}"])
    return folders


def evaluate_all(
    folders: Mapping[str, Path], parts: Mapping[str, Parts], arguments: FewShotArguments
) -> dict[str, Rows]:
    """Evaluate every backbone on every domain, on the same episodes, where that was not done: adaptation to rows."""
    names = ("episodes", "ways", "shots", "seed", "features", "examples_per_class", "held_out")
    options = {name: getattr(arguments, name) for name in names}
    results: dict[str, Rows] = {adaptation: {name: {} for name in folders} for adaptation in arguments.adaptations}
    for name, folder in folders.items():
        backbone: Backbone | None = None
        for domain, part in parts.items():
            embedded = None
            for adaptation in arguments.adaptations:
                file = Path(arguments.output_dir) / "results" / name / f"{domain}-{adaptation}.json"
                if not is_done(file, options):
                    if backbone is None:
                        backbone = load_backbone(folder, features=arguments.features)
                    if embedded is None:
                        embedded = embed(backbone, part.test, progress_bar=True)
                    found = evaluate(
                        backbone,
                        part.test,
                        adaptation,
                        arguments.episodes,
                        arguments.seed,
                        ways=arguments.ways,
                        shots=arguments.shots,
                        features=embedded,
                        progress_bar=True,
                    )
                    finish(file, options, found.as_dict())
                    print(f"{name} on {domain}, {adaptation}: {found.accuracy:.1%} ± {found.interval:.1%}")
                results[adaptation][name][domain] = FewShotResult.from_dict(json.loads(file.read_text()))
    return results


def choose_all(folders: Mapping[str, Path], parts: Mapping[str, Parts], arguments: FewShotArguments) -> dict[str, Any]:
    """Choose for every domain, by PARC on its training part, among the other domains' backbones: name and scores."""
    chosen: dict[str, Any] = {}
    names = ("parc_examples", "seed", "features", "examples_per_class", "held_out")
    options = {name: getattr(arguments, name) for name in names}
    for sharpness in arguments.sharpness:
        for domain, part in parts.items():
            others = [f"{sharpness}/{name}" for name in parts if name != domain]
            if not others:
                continue
            file = Path(arguments.output_dir) / "results" / sharpness / f"parc-{domain}.json"
            if not is_done(file, options | {"others": others}):
                backbones = {name: load_backbone(folders[name], features=arguments.features) for name in others}
                selection = select_backbone(backbones, part.train, arguments.parc_examples, arguments.seed)
                finish(file, options | {"others": others}, selection._asdict())
            chosen[f"{sharpness}/{domain}"] = json.loads(file.read_text())
    return chosen


def seen_and_unseen(
    rows: Rows, parts: Mapping[str, Parts], chosen: Mapping[str, Any], arguments: FewShotArguments
) -> tuple[Rows, Rows]:
    """Gather what is compared: on the domains that a backbone was trained on, and on those it was not."""
    seen: Rows = {}
    unseen: Rows = {}
    for sharpness in arguments.sharpness:
        seen[sharpness] = {domain: rows[f"{sharpness}/{domain}"][domain] for domain in parts}
        unseen[sharpness] = {
            domain: rows[chosen[f"{sharpness}/{domain}"]["name"]][domain]
            for domain in parts
            if f"{sharpness}/{domain}" in chosen
        }
        if f"{sharpness}/{FUSED}" in rows:
            seen[f"{sharpness} + fusion"] = dict(rows[f"{sharpness}/{FUSED}"])
        without = {domain: f"{sharpness}/{FUSED}_without_{domain}" for domain in parts}
        if all(name in rows for name in without.values()):
            unseen[f"{sharpness} + fusion"] = {domain: rows[name][domain] for domain, name in without.items()}
    return seen, {name: row for name, row in unseen.items() if row}


def differences(rows: Rows) -> dict[str, dict[str, Any]]:
    """Compare every row with the first, and every fused one with its unfused one: by domain, and on average."""
    first = next(iter(rows), "")
    pairs = [(name, first) for name in rows if name != first]
    pairs += [(name, base) for name in rows if (base := name.removesuffix(" + fusion")) not in (name, first)]
    fused = f"{first} + fusion"
    pairs += [(name, fused) for name in rows if fused in rows and name.endswith(" + fusion") and name != fused]
    found = {}
    for name, base in pairs:
        by_domain = {domain: compare(result, rows[base][domain]) for domain, result in rows[name].items()}
        by_domain["average"] = compare(list(rows[name].values()), [rows[base][domain] for domain in rows[name]])
        found[f"{name} against {base}"] = by_domain
    return found


def summary(rows: Rows) -> dict[str, Any]:
    """Sum rows up for the JSON file."""
    return {
        name: {domain: {"accuracy": r.accuracy, "interval": r.interval} for domain, r in row.items()}
        | {"average": dict(zip(("accuracy", "interval"), average(list(row.values())), strict=True))}
        for name, row in rows.items()
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train, fuse, choose, evaluate; show and write everything down."""
    classes: Any = FewShotArguments
    (arguments,) = read_flags(HfArgumentParser(classes), argv)
    out, console = Path(arguments.output_dir), Console()
    parts = open_domains(arguments)
    folders = train_all(parts, arguments)
    chosen = choose_all(folders, parts, arguments)
    results = evaluate_all(folders, parts, arguments)
    found: dict[str, Any] = {
        "command": shlex.join(["python", "recipes/few_shot.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": machine_class(),
        "arguments": asdict(arguments),
        "licences": {name: part.test.licence for name, part in parts.items()},
        "chosen_by_parc": {name: {k: choice[k] for k in ("name", "scores")} for name, choice in chosen.items()},
        "adaptations": {},
    }
    for adaptation, rows in results.items():
        seen, unseen = seen_and_unseen(rows, parts, chosen, arguments)
        console.print(few_shot_table(rows, f"{adaptation}: every backbone on every domain"))
        of_adaptation: dict[str, Any] = {"backbones": summary(rows)}
        for which, gathered in (("seen", seen), ("unseen", unseen)):
            if not gathered:
                continue
            compared = differences(gathered)
            console.print(
                few_shot_table(gathered, f"{adaptation}: {which} domains, {arguments.episodes} episodes each")
            )
            if compared:
                console.print(comparison_rows(compared))
            picture = out / f"{adaptation}_{which}.png"
            plot_few_shot(gathered, picture, f"few-shot accuracy on {which} domains, {adaptation}")
            console.print(f"picture  {picture}", soft_wrap=True)
            of_adaptation[which] = summary(gathered)
            of_adaptation[f"{which}_differences"] = {
                name: {domain: comparison._asdict() for domain, comparison in row.items()}
                for name, row in compared.items()
            }
        found["adaptations"][adaptation] = of_adaptation
    (out / "few_shot.json").write_text(json.dumps(found, indent=1) + "\n")
    console.print(f"figures  {out / 'few_shot.json'}", soft_wrap=True)
    return found


if __name__ == "__main__":
    sys.exit(run_recipe(main))
