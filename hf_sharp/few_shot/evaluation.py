"""Accuracy over many episodes with its interval, and two backbones compared on the same episodes.

accuracy ± 1.96 σ / √n        difference ± 1.96 σ_d / √n,  σ_d of the n differences, episode by episode
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_sharp.few_shot.adaptation import ADAPTATIONS, Embedded
from hf_sharp.few_shot.backbone import embed, load_backbone
from hf_sharp.few_shot.domain import Domain
from hf_sharp.few_shot.episodes import Episode, EpisodeSampler, Task

NORMAL_95 = 1.96


@dataclass(frozen=True, eq=False)
class FewShotResult:
    """What a backbone reaches on a domain.

    Attributes:
        accuracies: (n,) of every episode, from 0 to 1.
        domain: its name.
        adaptation: its name.
        episodes: a fingerprint: two results with the same one are of the same episodes.
        features: which features were taken.
    """

    accuracies: np.ndarray
    domain: str
    adaptation: str
    episodes: str
    features: str | None = None

    @property
    def accuracy(self) -> float:
        """The mean over episodes."""
        return float(self.accuracies.mean())

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval."""
        return half_interval(self.accuracies)

    def as_dict(self) -> dict[str, Any]:
        """Give all of it, for JSON."""
        summary = {"accuracy": self.accuracy, "interval": self.interval}
        return summary | vars(self) | {"accuracies": self.accuracies.tolist()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FewShotResult:
        """Make a result of what `as_dict` gave."""
        kept = {name: saved[name] for name in ("domain", "adaptation", "episodes", "features")}
        return cls(np.asarray(saved["accuracies"]), **kept)


class Comparison(NamedTuple):
    """How much better the first is than the second.

    Attributes:
        difference: of the mean accuracies.
        interval: half the width of its 95 % interval, from the differences on the same episodes.
        unpaired_interval: what it would be had the episodes not been the same.
    """

    difference: float
    interval: float
    unpaired_interval: float


def half_interval(values: np.ndarray) -> float:
    """Give half the width of the 95 % interval of a mean: 1.96 σ / √n, σ with n − 1; NaN for one value."""
    return NORMAL_95 * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def evaluate(
    backbone: Any,
    domain: Domain,
    adaptation: str = "prototype",
    episodes: int = 600,
    seed: int = 0,
    *,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    features: Tensor | None = None,
    progress_bar: bool = False,
    **options: Any,
) -> FewShotResult:
    """Measure how well a backbone tells new classes of a domain apart from a few examples.

    Args:
        backbone: what `load_backbone` takes.
        domain: whose examples make the episodes.
        adaptation: one of `ADAPTATIONS`.
        episodes: how many.
        seed: of the episodes. With one seed they are the same for every backbone and adaptation.
        ways: fixed number of classes; None: Meta-Dataset's, from 5 to 50.
        shots: fixed number of support examples of every class; None: Meta-Dataset's, unequal.
        queries: query examples of every class; None: Meta-Dataset's, up to 10.
        features: (N, d) of all of the domain, as `embed` gives them, where they are known.
        progress_bar: whether to show one.
        **options: of the adaptation.

    Returns:
        The result; the backbone is as it was.

    Raises:
        ValueError: an unknown adaptation, a domain with too few classes or examples, or features that are not its.

    Example:
        >>> result = evaluate("outputs/sam", digits(), "affine", episodes=600)  # doctest: +SKIP
        >>> print(f"{result.accuracy:.1%} ± {result.interval:.1%}")  # doctest: +SKIP
        87.3% ± 0.4%
    """
    if adaptation not in ADAPTATIONS:
        raise ValueError(f"unknown adaptation {adaptation!r}; the adaptations are {', '.join(ADAPTATIONS)}.")
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}.")
    sampler = EpisodeSampler(domain.labels, ways, shots, queries, seed)
    encoder = load_backbone(backbone)
    if features is None:
        features = embed(encoder, domain, progress_bar=progress_bar)
    if len(features) != len(domain):
        raise ValueError(
            f"there are features of {len(features)} examples, and the domain {domain.name!r} has {len(domain)}."
        )
    drawn = list(sampler(episodes))
    tasks = [episode.task for episode in drawn]
    found = ADAPTATIONS[adaptation](Embedded(encoder, domain, features), tasks, **options)
    accuracies = np.empty(episodes)
    progress = tqdm(found, total=episodes, desc=f"{domain.name}, {adaptation}", disable=not progress_bar, leave=False)
    for i, logits in enumerate(progress):
        accuracies[i] = (logits.argmax(1).cpu().numpy() == drawn[i].query_labels).mean()
    return FewShotResult(accuracies, domain.name, adaptation, _fingerprint(drawn), encoder.features)


def compare(
    first: FewShotResult | Sequence[FewShotResult], second: FewShotResult | Sequence[FewShotResult]
) -> Comparison:
    """Compare two results of the same episodes, or the averages of two lists of results over domains.

    Args:
        first: a result, or one for each of several domains.
        second: results of the same episodes, in the same order.

    Returns:
        The mean of the differences, with its interval; over several domains the average of theirs, every domain
        counting the same.

    Raises:
        ValueError: the results are not of the same episodes, or there are none.

    Example:
        >>> one, other = (FewShotResult(np.array(a), "x", "prototype", "1") for a in ([0.9, 0.5], [0.8, 0.4]))
        >>> compare(one, other).difference.__round__(3), compare(one, other).interval.__round__(3)
        (0.1, 0.0)
    """
    firsts = [first] if isinstance(first, FewShotResult) else list(first)
    seconds = [second] if isinstance(second, FewShotResult) else list(second)
    of_first, of_second = ([(result.domain, result.episodes) for result in some] for some in (firsts, seconds))
    if not firsts or of_first != of_second:
        raise ValueError(
            f"only results of the same episodes are paired; got {[f'{r.domain} {r.episodes}' for r in firsts]} and "
            f"{[f'{r.domain} {r.episodes}' for r in seconds]}. Evaluate both with the same data, seed, ways and shots."
        )
    differences = [one.accuracies - other.accuracies for one, other in zip(firsts, seconds, strict=True)]
    paired = [half_interval(values) for values in differences]
    unpaired = [result.interval for result in (*firsts, *seconds)]
    count = len(firsts)
    return Comparison(
        float(np.mean([values.mean() for values in differences])),
        math.hypot(*paired) / count,
        math.hypot(*unpaired) / count,
    )


def average(results: Sequence[FewShotResult]) -> tuple[float, float]:
    """Average results of different domains, every domain counting the same.

    Args:
        results: one for each domain.

    Returns:
        The mean accuracy, and half the width of its 95 % interval over episodes (not over domains).

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("there are no results to average.")
    mean = float(np.mean([result.accuracy for result in results]))
    return mean, math.hypot(*(result.interval for result in results)) / len(results)


def classify(
    backbone: Any,
    support: Domain,
    query: datasets.Dataset,
    adaptation: str = "prototype",
    **options: Any,
) -> list[str]:
    """Name the classes of new examples, from a few labelled ones: one task of one's own.

    Args:
        backbone: what `load_backbone` takes.
        support: the labelled examples.
        query: examples with the support's column; labels are not looked at.
        adaptation: one of `ADAPTATIONS`.
        **options: of the adaptation.

    Returns:
        A class name for every query.

    Raises:
        ValueError: an unknown adaptation, queries without the column, or fewer than two classes in the support.

    Example:
        >>> classify("outputs/sam", make_domain(a_few_images, "mine"), many_images)  # doctest: +SKIP
        ['cat', 'cat', 'emu']
    """
    if adaptation not in ADAPTATIONS:
        raise ValueError(f"unknown adaptation {adaptation!r}; the adaptations are {', '.join(ADAPTATIONS)}.")
    if support.column not in query.column_names:
        raise ValueError(f"the queries have no column {support.column!r}; they have {', '.join(query.column_names)}.")
    classes, support_labels = np.unique(support.labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"the support set has examples of {len(classes)} class; expected at least 2.")
    columns = [name for name in (support.column, "attention_mask") if name in support.dataset.column_names]
    parts = [part.select_columns(columns) for part in (support.dataset, query)]
    parts[1] = parts[1].cast(parts[0].features)
    labels = np.concatenate([support.labels, np.zeros(len(query), np.int64)])  # the queries' are never looked at
    both = Domain(support.name, datasets.concatenate_datasets(parts), labels, support.class_names, support.column)
    encoder = load_backbone(backbone)
    rows = np.arange(len(both))
    task = Task(rows[: len(support)], support_labels, rows[len(support) :])
    with torch.no_grad():
        embedded = Embedded(encoder, both, embed(encoder, both))
        logits = next(iter(ADAPTATIONS[adaptation](embedded, [task], **options)))
    return [support.class_names[classes[i]] for i in logits.argmax(1).tolist()]


def _fingerprint(episodes: Sequence[Episode]) -> str:
    digest = hashlib.sha256()
    for episode in episodes:
        for rows in episode:
            digest.update(rows.astype(np.int64).tobytes())
            digest.update(b"|")
    return digest.hexdigest()[:16]
