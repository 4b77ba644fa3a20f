"""Plans the backbones that an experiment trains, and the candidates for each cell of its tables.

per_domain    the source's backbone, fine-tuned on each other domain separately; on an unseen domain PARC chooses among
              these backbones and the source's own
joint         the source's backbone, fine-tuned on all other domains together
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hf_sharp.registry.nearest import check_name

FUSIONS = ("per_domain", "joint")
Candidates = dict[str, dict[str, tuple[str, ...]]]


@dataclass(frozen=True)
class PlannedBackbone:
    """A backbone to train.

    Attributes:
        name: the name, unique in its plan; also the name of its folder.
        sharpness: the sharpness method.
        domains: the domains that it is trained on.
        source: the backbone that training starts from; None for a domain's first backbone.
    """

    name: str
    sharpness: str
    domains: tuple[str, ...]
    source: PlannedBackbone | None = None

    @property
    def seen(self) -> frozenset[str]:
        """All domains that the backbone was trained on, including those of its source."""
        return frozenset(self.domains) | (self.source.seen if self.source else frozenset())


@dataclass(frozen=True)
class Plan:
    """The backbones of an experiment.

    Attributes:
        backbones: name to backbone, in the order of training.
        seen: row to domain to the candidate backbones that were trained on this domain.
        unseen: row to domain to the candidate backbones that were not trained on this domain, the source's backbone
            first. If there are several, PARC chooses.
    """

    backbones: dict[str, PlannedBackbone] = field(default_factory=dict)
    seen: Candidates = field(default_factory=dict)
    unseen: Candidates = field(default_factory=dict)

    def add(
        self, name: str, sharpness: str, domains: Sequence[str], source: PlannedBackbone | None = None
    ) -> PlannedBackbone:
        """Add a backbone, unless it is already in the plan, and return it."""
        return self.backbones.setdefault(name, PlannedBackbone(name, sharpness, tuple(domains), source))


def plan_backbones(
    sizes: Mapping[str, int],
    sharpness: Sequence[str],
    fusion: Sequence[str] = ("per_domain",),
    source: str | None = None,
    joint_with_source: bool = False,
) -> Plan:
    """Plan the backbones of every sharpness method: one per domain, and the fused ones.

    Args:
        sizes: domain to its number of training examples.
        sharpness: the methods to compare.
        fusion: the kinds of fusion, from `FUSIONS`.
        source: the domain whose backbone fusion starts from; None for the domain with the most examples. If the source
            is the unseen domain, the largest other domain is used instead.
        joint_with_source: whether joint fusion also trains on the source's examples.

    Returns:
        The plan.

    Raises:
        ValueError: `source` is not one of the domains, or a kind of fusion is unknown.

    Example:
        >>> plan = plan_backbones({"cars": 900, "birds": 300, "fonts": 500}, ["sam"])
        >>> list(plan.backbones)
        ['sam/cars', 'sam/birds', 'sam/fonts', 'sam/birds_from_cars', 'sam/fonts_from_cars', 'sam/birds_from_fonts']
        >>> plan.unseen["sam + per-domain fusion"]["birds"]
        ('sam/cars', 'sam/fonts_from_cars')

    Reference:
        Li et al., "Flatness Improves Backbone Generalisation in Few-shot Classification", arXiv 2404.07696.
    """
    for kind in fusion:
        check_name("fusion", kind, FUSIONS)
    if source is not None and source not in sizes:
        raise ValueError(f"source={source!r} is not one of the domains: {', '.join(sizes)}.")
    plan = Plan()
    for method in sharpness:
        own = {domain: plan.add(f"{method}/{domain}", method, [domain]) for domain in sizes}
        plan.seen[method] = {domain: (backbone.name,) for domain, backbone in own.items()}
        if len(sizes) < 2:
            continue
        plan.unseen[method] = {
            domain: tuple(own[other].name for other in _source_first(sizes, source, domain)) for domain in sizes
        }
        if "per_domain" in fusion:
            _add_per_domain(plan, method, own, sizes, source)
        if "joint" in fusion:
            _add_joint(plan, method, own, sizes, source, joint_with_source)
    return plan


def _source_first(sizes: Mapping[str, int], source: str | None, without: str | None = None) -> list[str]:
    """List the domains except `without`, the source of fusion first."""
    domains = [domain for domain in sizes if domain != without]
    first = source if source in domains else max(domains, key=sizes.__getitem__)
    return [first, *(domain for domain in domains if domain != first)]


def _add_per_domain(
    plan: Plan, method: str, own: Mapping[str, PlannedBackbone], sizes: Mapping[str, int], source: str | None
) -> None:
    def tuned(domain: str, start: str) -> str:
        if domain == start:
            return own[domain].name
        return plan.add(f"{method}/{domain}_from_{start}", method, [domain], own[start]).name

    row, first = f"{method} + per-domain fusion", _source_first(sizes, source)[0]
    plan.seen[row] = {domain: (tuned(domain, first),) for domain in sizes}
    if len(sizes) > 2:
        plan.unseen[row] = {}
        for unseen in sizes:
            others = _source_first(sizes, source, unseen)
            plan.unseen[row][unseen] = tuple(tuned(domain, others[0]) for domain in others)


def _add_joint(
    plan: Plan,
    method: str,
    own: Mapping[str, PlannedBackbone],
    sizes: Mapping[str, int],
    source: str | None,
    with_source: bool,
) -> None:
    def fused(name: str, without: str | None) -> tuple[str, ...]:
        domains = _source_first(sizes, source, without)
        trained_on = [domain for domain in sizes if domain in domains[0 if with_source else 1 :]]
        return (plan.add(f"{method}/{name}", method, trained_on, own[domains[0]]).name,)

    everything = fused("joint", None)
    plan.seen[f"{method} + joint fusion"] = dict.fromkeys(sizes, everything)
    if len(sizes) > 2:
        plan.unseen[f"{method} + joint fusion"] = {d: fused(f"joint_without_{d}", d) for d in sizes}
