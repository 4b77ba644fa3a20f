"""PARC: scores how well a backbone's features fit the labels of a task, without adapting the backbone.

D_F = 1 − corr(rows of F)        D_Y = 1 − corr(rows of Y),  Y one-hot
PARC = 100 · Spearman(upper triangle of D_F, upper triangle of D_Y)

F is the raw features (Li et al.), or standardise(PCA_32(features)) (Bolya et al.).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from hf_sharp.few_shot.backbone import embed, load_backbone
from hf_sharp.few_shot.domain import Domain
from hf_sharp.few_shot.episodes import Episode
from hf_sharp.few_shot.evaluation import FewShotResult, compare
from hf_sharp.registry.arrays import as_array
from hf_sharp.registry.limits import check_number

_ROUNDING = 1e-12  # the rounding error of variances: the square of float32's precision


class Selection(NamedTuple):
    """The backbone that fits best, and the PARC score of every backbone."""

    name: str
    scores: dict[str, float]


class EpisodeSelection(NamedTuple):
    """A backbone chosen for every episode.

    Attributes:
        result: the accuracies that the chosen backbones reach.
        names: the chosen backbone of every episode.
    """

    result: FewShotResult
    names: list[str]


def parc_score(features: Any, labels: Any, components: int | None = None) -> float:
    """Score how well features separate the classes of labelled examples.

    Args:
        features: (N, d). Time and memory grow with N², so N should be at most some hundreds.
        labels: (N,) class of every example.
        components: the number of PCA components to reduce the features to (at most N − 1 and d) and to standardise, as
            Bolya et al. do with 32; None for the raw features, as in arXiv 2404.07696.

    Returns:
        PARC, from −100 to 100; higher is better.

    Raises:
        ValueError: there is not one label per row; features are not finite or do not vary; there are fewer than two
            features, components or classes; or no class has two examples.

    Example:
        >>> features = np.array([[5.0, 0.0, 1.0], [5.1, 0.2, 1.0], [-5.0, 0.1, 1.0], [-5.2, -0.1, 1.0]])
        >>> parc_score(features, [0, 0, 1, 1]) > parc_score(features, [0, 1, 0, 1])
        True

    Reference:
        Bolya et al., "Scalable Diverse Model Selection for Accessible Transfer Learning", arXiv 2111.06977, section 4;
        Li et al., "Flatness Improves Backbone Generalisation in Few-shot Classification", arXiv 2404.07696. The signs
        of PCA's components are scikit-learn's; they matter, because a sign changes the correlations of the rows.

    Differs from the authors' code: equal label distances are exact ties, PCA uses the full solver instead of a
        randomised one, and components without variance are dropped.
    """
    rows, classes = as_array(features, np.float64), as_array(labels)
    _check(rows, classes, components)
    if components is not None:
        rows = _standardised_components(rows, components)
    if not np.ptp(rows, axis=1).all():
        raise ValueError("all features of an example are the same number, so it has no correlation with the others.")
    upper = np.triu_indices(len(rows), 1)
    feature_distances = 1 - np.asarray(np.corrcoef(rows))[upper]
    # 1 − corr of one-hot rows takes only two values; in floating point, rounding would break ties between them.
    label_distances = (classes[:, None] != classes)[upper]
    return 100 * float(np.corrcoef(rankdata(feature_distances), label_distances)[0, 1])


def select_backbone(
    backbones: Mapping[str, Any],
    domain: Domain,
    examples: int = 500,
    seed: int = 0,
    *,
    features: Mapping[str, Any] | None = None,
    components: int | None = None,
) -> Selection:
    """Choose the backbone whose features fit labelled examples best, by PARC.

    Args:
        backbones: name to backbone, as `load_backbone` takes it.
        domain: labelled examples, such as the support set of a task. The choice uses their labels, so no result may be
            reported on them.
        examples: the largest number of examples to use; they are drawn once for all backbones.
        seed: the seed of that draw.
        features: name to (N, d) features of the domain, if they are known.
        components: as in `parc_score`.

    Returns:
        The name of the best backbone (the first one in case of a tie), and all scores.

    Raises:
        ValueError: there are no backbones; or as for `parc_score`.

    Example:
        >>> select_backbone({"none": "outputs/none", "sam": "outputs/sam"}, support).name  # doctest: +SKIP
        'sam'
    """
    if not backbones:
        raise ValueError("there are no backbones to choose from; expected a mapping of names to backbones.")
    rows = np.arange(len(domain))
    check_number("examples", examples, least=2, whole=True)
    if len(rows) > examples:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), examples, replace=False))
    probe, scores = domain.select(rows), {}
    for name, backbone in backbones.items():
        known = None if features is None else features.get(name)
        of_probe = embed(load_backbone(backbone), probe) if known is None else known[rows]
        scores[name] = parc_score(as_array(of_probe), probe.labels, components)
    return Selection(max(scores, key=scores.__getitem__), scores)


def episode_scores(features: Any, episodes: Sequence[Episode], components: int | None = None) -> np.ndarray:
    """Score a backbone on the support set of every episode.

    Args:
        features: (N, d) of the whole domain, as `embed` returns them.
        episodes: the episodes.
        components: as in `parc_score`.

    Returns:
        The PARC score of every episode; NaN if each class has a single support example, because all label distances
        are then equal.

    Raises:
        ValueError: as for `parc_score`.
    """
    rows = as_array(features)
    return np.array(
        [
            np.nan
            if len(episode.support) == len(episode.classes)
            else parc_score(rows[episode.support], episode.support_labels, components)
            for episode in episodes
        ]
    )


def select_per_episode(
    results: Mapping[str, FewShotResult], scores: Mapping[str, Sequence[float] | np.ndarray]
) -> EpisodeSelection:
    """Choose the backbone with the highest score for every episode, and return the accuracies of the chosen ones.

    Args:
        results: name of the backbone to its result on the episodes.
        scores: name of the backbone to its score in every episode, as `episode_scores` returns them.

    Returns:
        The result and the chosen names. If scores are equal or NaN, the first backbone is chosen.

    Raises:
        ValueError: there are no results, they are for different episodes, or an episode has no score.

    Example:
        >>> one, two = (FewShotResult(np.array(a), "x", "prototype", "1") for a in ([0.9, 0.5], [0.8, 0.4]))
        >>> selection = select_per_episode({"one": one, "two": two}, {"one": [1.0, 2.0], "two": [3.0, 0.0]})
        >>> selection.names, selection.result.accuracies
        (['two', 'one'], array([0.8, 0.5]))

    Reference:
        Li et al., arXiv 2404.07696.
    """
    if not results:
        raise ValueError("there are no backbones to choose from; expected a mapping of names to results.")
    names = list(results)
    first = results[names[0]]
    for result in results.values():
        compare(first, result)  # raises if the episodes differ
    lengths = {name: len(scores.get(name, ())) for name in names}
    if {*lengths.values()} != {len(first.accuracies)}:
        raise ValueError(f"expected a score for each of {len(first.accuracies)} episodes; got {lengths}.")
    table = np.nan_to_num(np.stack([scores[name] for name in names]), nan=-np.inf)
    chosen = table.argmax(0)
    accuracies = np.stack([result.accuracies for result in results.values()])[chosen, np.arange(len(chosen))]
    result = FewShotResult(accuracies, first.domain, first.adaptation, first.episodes, first.features)
    return EpisodeSelection(result, [names[i] for i in chosen])


def _check(rows: np.ndarray, classes: np.ndarray, components: int | None) -> None:
    if rows.ndim != 2 or classes.shape != rows.shape[:1]:
        raise ValueError(f"expected features (N, d) and labels (N,); got {rows.shape} and {classes.shape}.")
    if not np.isfinite(rows).all():
        raise ValueError("the features are not all finite numbers. Check the backbone and its dtype.")
    count = len(np.unique(classes))
    if count < 2:
        raise ValueError("PARC needs examples of at least 2 classes; all labels are the same.")
    if count == len(classes):
        raise ValueError("PARC needs a class with at least 2 examples; every class has one.")
    if min(2 if components is None else components, *rows.shape) < 2:
        raise ValueError(f"PARC needs at least 2 components, examples and features; got {components}, {rows.shape}.")
    if not np.ptp(rows, axis=0).any():
        raise ValueError("all examples have the same features, which have no correlations: the backbone has collapsed.")


def _standardised_components(rows: np.ndarray, components: int) -> np.ndarray:
    pca = PCA(min(components, *rows.shape), svd_solver="full")
    reduced = pca.fit_transform(rows)
    # N centred examples have at most N − 1 components. Standardising would scale the rounding errors in further
    # components up to the size of the others.
    real = pca.explained_variance_ > _ROUNDING * pca.explained_variance_[0]
    if real.sum() < 2:
        raise ValueError("the features lie on a line, so that rows of one component have no correlations.")
    return StandardScaler().fit_transform(reduced[:, real])
