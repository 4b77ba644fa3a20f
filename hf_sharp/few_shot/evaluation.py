"""Accuracy over many episodes with its interval, and two backbones compared on the same episodes.

accuracy ± 1.96 σ / √n        difference ± 1.96 σ_d / √n,  σ_d the standard deviation of the n paired differences
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

from hf_sharp.few_shot.adaptation import ADAPTATIONS, Embedded, published_rates
from hf_sharp.few_shot.backbone import embed, load_backbone
from hf_sharp.few_shot.domain import Domain
from hf_sharp.few_shot.episodes import Episode, EpisodeSampler, Task
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.nearest import check_name

NORMAL_95 = 1.96


@dataclass(frozen=True, eq=False)
class FewShotResult:
    """The accuracy of a backbone on a domain.

    Attributes:
        accuracies: (n,) accuracy of every episode, from 0 to 1.
        domain: the domain's name.
        adaptation: the adaptation's name.
        episodes: a fingerprint of the episodes; results can be paired if their fingerprints are equal.
        features: the kind of features.
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
        """Half the width of the 95 % interval of the mean."""
        return half_interval(self.accuracies)

    def as_dict(self) -> dict[str, Any]:
        """Convert the result to a JSON-compatible dict."""
        summary = {"accuracy": self.accuracy, "interval": self.interval}
        return summary | vars(self) | {"accuracies": self.accuracies.tolist()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> FewShotResult:
        """Make a result from the output of `as_dict`."""
        kept = {name: saved[name] for name in ("domain", "adaptation", "episodes", "features")}
        return cls(np.asarray(saved["accuracies"]), **kept)


class Comparison(NamedTuple):
    """How much better the first result is than the second.

    Attributes:
        difference: the difference of the mean accuracies.
        interval: half the width of its 95 % interval, from the paired differences.
        unpaired_interval: what `interval` would be if the episodes were independent.
    """

    difference: float
    interval: float
    unpaired_interval: float


def half_interval(values: np.ndarray) -> float:
    """Return half the width of the 95 % interval of a mean: 1.96 σ / √n, with σ from n − 1; NaN for one value."""
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
    seen: bool = False,
    features: Tensor | None = None,
    progress_bar: bool = False,
    **options: Any,
) -> FewShotResult:
    """Measure how well a backbone classifies a domain's examples from a few labelled ones.

    Args:
        backbone: a backbone, as `load_backbone` takes it.
        domain: the domain that episodes are drawn from.
        adaptation: one of `ADAPTATIONS`.
        episodes: the number of episodes.
        seed: seed of the episodes. With the same seed they are the same for every backbone and adaptation.
        ways: fixed number of classes; None: Meta-Dataset's, from 5 to 50.
        shots: fixed number of support examples of every class; None: Meta-Dataset's, unequal.
        queries: query examples of every class; None: Meta-Dataset's, up to 10.
        seen: whether the backbone was trained on this domain. If so, `affine` and `lora` use the lower learning rates
            that their authors use on seen domains (see `published_rates`).
        features: (N, d) features of the whole domain, as `embed` returns them, if they are known.
        progress_bar: whether to show a progress bar.
        **options: options of the adaptation; they override the published rates.

    Returns:
        The result. The backbone is not changed.

    Raises:
        ValueError: the adaptation is unknown, the domain has too few classes or examples, or `features` belong to other
            examples.

    Example:
        >>> result = evaluate("outputs/sam", digits(), "affine", episodes=600)  # doctest: +SKIP
        >>> print(f"{result.accuracy:.1%} ± {result.interval:.1%}")  # doctest: +SKIP
        87.3% ± 0.4%
    """
    check_name("adaptation", adaptation, ADAPTATIONS)
    check_number("episodes", episodes, least=1, whole=True)
    sampler = EpisodeSampler(domain.labels, ways, shots, queries, seed)
    encoder = load_backbone(backbone)
    if features is None:
        features = embed(encoder, domain, progress_bar=progress_bar)
    features = torch.as_tensor(features)
    if features.ndim != 2 or len(features) != len(domain):
        raise ValueError(
            f"there are features of shape {tuple(features.shape)}, and the domain {domain.name!r} has {len(domain)} "
            "examples. Pass the features that embed() returns for this domain."
        )
    drawn = list(sampler(episodes))
    tasks = [episode.task for episode in drawn]
    options = published_rates(adaptation, seen) | options
    predictions = ADAPTATIONS[adaptation](Embedded(encoder, domain, features), tasks, **options)
    accuracies = np.empty(episodes)
    progress = tqdm(
        predictions, total=episodes, desc=f"{domain.name}, {adaptation}", disable=not progress_bar, leave=False
    )
    for i, logits in enumerate(progress):
        accuracies[i] = (logits.argmax(1).cpu().numpy() == drawn[i].query_labels).mean()
    return FewShotResult(accuracies, domain.name, adaptation, _fingerprint(drawn), encoder.features)


def compare(
    first: FewShotResult | Sequence[FewShotResult], second: FewShotResult | Sequence[FewShotResult]
) -> Comparison:
    """Compare two results on the same episodes, or two lists of results averaged over domains.

    Args:
        first: a result, or one for each of several domains.
        second: results on the same episodes, in the same order.

    Returns:
        The mean difference and its interval; with several domains, their average with equal weights.

    Raises:
        ValueError: the results are for different episodes, or there are none.

    Example:
        >>> one, other = (FewShotResult(np.array(a), "x", "prototype", "1") for a in ([0.9, 0.5], [0.8, 0.4]))
        >>> compare(one, other).difference.__round__(3), compare(one, other).interval.__round__(3)
        (0.1, 0.0)
    """
    firsts = [first] if isinstance(first, FewShotResult) else list(first)
    seconds = [second] if isinstance(second, FewShotResult) else list(second)
    episodes = [[(result.domain, result.episodes) for result in results] for results in (firsts, seconds)]
    if not firsts or episodes[0] != episodes[1]:
        raise ValueError(
            f"only results of the same episodes can be paired; got {[f'{r.domain} {r.episodes}' for r in firsts]} and "
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
    """Average results over domains, with equal weights.

    Args:
        results: one for each domain.

    Returns:
        The mean accuracy, and half the width of its 95 % interval over episodes (not over domains).

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError("there are no results to average; expected one for each domain.")
    mean = float(np.mean([result.accuracy for result in results]))
    return mean, math.hypot(*(result.interval for result in results)) / len(results)


def classify(
    backbone: Any,
    support: Domain,
    query: datasets.Dataset,
    adaptation: str = "prototype",
    **options: Any,
) -> list[str]:
    """Classify new examples from a few labelled ones.

    Args:
        backbone: a backbone, as `load_backbone` takes it.
        support: the labelled examples.
        query: the examples to classify, in the same column as the support's. They need no labels.
        adaptation: one of `ADAPTATIONS`.
        **options: options of the adaptation.

    Returns:
        A class name for every query.

    Raises:
        ValueError: the adaptation is unknown, the queries lack the column, or the support set has fewer than 2 classes.

    Example:
        >>> classify("outputs/sam", make_domain(a_few_images, "mine"), many_images)  # doctest: +SKIP
        ['cat', 'cat', 'emu']
    """
    check_name("adaptation", adaptation, ADAPTATIONS)
    if support.column not in query.column_names:
        raise ValueError(f"the queries have no column {support.column!r}; they have {', '.join(query.column_names)}.")
    classes, support_labels = np.unique(support.labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"the support set has examples of {len(classes)} class; expected at least 2 classes.")
    columns = [name for name in (support.column, "attention_mask") if name in support.dataset.column_names]
    parts = [part.select_columns(columns) for part in (support.dataset, query)]
    parts[1] = parts[1].cast(parts[0].features)
    labels = np.concatenate(
        [support.labels, np.zeros(len(query), np.int64)]
    )  # zeros for the queries, which are not used
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
