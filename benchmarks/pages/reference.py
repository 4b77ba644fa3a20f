"""Make the tables of methods, losses, options, citations and configs in docs/ from their definitions.

benchmarks/tables.py inserts them between their markers: run `make docs`.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial

from study import ROOT
from transformers import TrainingArguments

from hf_sharp import SharpTrainingArguments
from hf_sharp.data import sampling
from hf_sharp.losses import LOSSES, ClassFrequencyLoss, training_loss
from hf_sharp.losses.registry import loss_options
from hf_sharp.registry import Citation
from hf_sharp.sharpness import METHODS, choices
from pages.formatting import table

CONFIGS = ROOT / "recipes" / "configs"


def code(names: Iterable[str]) -> str:
    """Show names as code."""
    return ", ".join(f"`{name}`" for name in names)


def method_table() -> str:
    """Make the table of sharpness methods."""
    rows = (
        (
            f"`{method.name}`",
            method.summary,
            method.formula,
            method.passes,
            method.when,
            code(method.coefficient_options) or "–",
            sources(method.citations),
        )
        for method in map(METHODS.__getitem__, METHODS.builtin)
    )
    return table(("sharpness", "what it does", "formula", "cost of a step", "choose it", "options", "source"), rows)


def loss_table() -> str:
    """Make the table of losses."""
    rows = (
        (
            f"`{loss.name}`",
            loss.summary,
            loss.formula,
            loss.when,
            ", ".join(defaults(loss)) or "–",
            sources(loss.citations),
        )
        for loss in map(LOSSES.__getitem__, LOSSES.builtin)
    )
    return table(("loss", "what it does", "formula", "choose it", "options, and their defaults", "source"), rows)


def family_table(module: str) -> str:
    """Make the table of the losses in a module of hf_sharp/losses, with the defaults of their options."""
    losses = [LOSSES[name] for name in LOSSES.builtin if LOSSES[name].__module__ == f"hf_sharp.losses.{module}"]
    rows = (
        (f"`{loss.name}`", loss.formula, ", ".join(defaults(loss)) or "none", sources(loss.citations))
        for loss in losses
    )
    return table(("loss", "formula", "options, and their defaults", "source"), rows)


def defaults(loss: type[ClassFrequencyLoss]) -> list[str]:
    """List the options of a loss with their defaults."""
    parameters = inspect.signature(loss).parameters
    return [f"`{name}` {parameters[name].default}" for name in parameters if name in loss_options(loss.name)]


def sources(citations: Iterable[Citation] | None) -> str:
    """Link papers by their arXiv numbers."""
    links = (
        f"[{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else paper.text
        for paper in citations or ()
    )
    return ", ".join(links) or "–"


def option_table() -> str:
    """Make the table of the fields that `SharpTrainingArguments` adds, from their help."""
    inherited = {item.name for item in fields(TrainingArguments)}
    added = [item for item in fields(SharpTrainingArguments) if item.name not in inherited]
    rows = ((f"`{item.name}`", f"`{item.default}`", item.metadata["help"]) for item in added)
    return table(("option", "default", "meaning"), rows)


def citation_list() -> str:
    """List the papers to cite, with what each is cited for, and their BibTeX entries."""
    cited: dict[Citation, list[str]] = {}
    records = [(name, METHODS[name].citations or ()) for name in METHODS.builtin]
    records += [(choice.field, choice.citations) for choice in (*choices.CHOICES, *training_loss.CHOICES)]
    records += [(name, LOSSES[name].citations) for name in LOSSES.builtin]
    records += [(choice.field, choice.citations) for choice in sampling.CHOICES]
    for name, papers in records:
        for paper in papers:
            cited.setdefault(paper, []).append(name)
    lines = [f"- {code(dict.fromkeys(names))}: {paper.text}" for paper, names in cited.items()]
    return "\n".join([*lines, "", "```bibtex", *(paper.bibtex for paper in cited), "```"])


def config_table() -> str:
    """Make the table of configs from the comment at the top of each file."""
    rows = []
    for config in sorted(CONFIGS.glob("*.yaml")):
        words, needs = [], "nothing"
        for line in config.read_text().splitlines():
            if not line.startswith("# "):
                break
            line = line.removeprefix("# ")
            if line.startswith("Data"):
                needs = line.partition(": ")[2].rstrip(".")
            elif not line.startswith("Recipe: "):
                words.append(line)
        rows.append((f"[{config.name}](../recipes/configs/{config.name})", " ".join(words), needs))
    return table(("config", "what it trains", "needs"), rows)


REFERENCE_TABLES: dict[str, Callable[[], str]] = {
    "methods": method_table,
    "losses": loss_table,
    "losses_reweighting": partial(family_table, "reweighting"),
    "losses_logit_adjustment": partial(family_table, "logit_adjustment"),
    "losses_margin": partial(family_table, "margin"),
    "losses_large_margin": partial(family_table, "large_margin"),
    "options": option_table,
    "citations": citation_list,
    "configs": config_table,
}
