"""PARC: how well a backbone's features fit the labels of a task, before anything is adapted.

D_F = 1 − corr(rows of standardise(PCA_32(F)))        D_Y = 1 − corr(rows of Y),  Y one-hot
PARC = 100 · Spearman(upper triangle of D_F, upper triangle of D_Y)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from hf_sharp.few_shot.backbone import embed, load_backbone
from hf_sharp.few_shot.domain import Domain

COMPONENTS = 32
_ROUNDING = 1e-12  # of variances: the square of what float32 features carry


class Selection(NamedTuple):
    """The backbone that fits best, and the PARC score of every one."""

    name: str
    scores: dict[str, float]


def parc_score(features: Any, labels: Any, components: int = COMPONENTS) -> float:
    """Score how well features tell the classes of labelled examples apart.

    Args:
        features: (N, d), of a probe set: time and memory go with N², so some hundred examples.
        labels: (N,) their classes.
        components: of the PCA; the paper's 32, or as many as the features have: at most N − 1 and d.

    Returns:
        PARC, from −100 to 100; the higher, the better.

    Raises:
        ValueError: not one label per row, features that are not finite or all alike, fewer than two components or
            classes.

    Example:
        >>> features = np.array([[5.0, 0.0], [5.1, 0.2], [-5.0, 0.1], [-5.2, -0.1]])
        >>> parc_score(features, [0, 0, 1, 1]) > parc_score(features, [0, 1, 0, 1])
        True

    Reference:
        Bolya et al., "Scalable Diverse Model Selection for Accessible Transfer Learning", arXiv 2111.06977, section 4;
        as arXiv 2404.07696 uses it. PCA and standardisation are scikit-learn's: its choice of a component's sign is
        part of the definition, as a sign changes the rows' correlations.

    Differs from the authors' code: components of no variance are left out, and equal label distances are ties.
    """
    rows, classes = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if rows.ndim != 2 or classes.shape != rows.shape[:1]:
        raise ValueError(f"expected features (N, d) and labels (N,); got {rows.shape} and {classes.shape}.")
    if not np.isfinite(rows).all():
        raise ValueError("the features are not all finite numbers. Look at the backbone, or at its dtype.")
    if len(np.unique(classes)) < 2:
        raise ValueError("PARC needs examples of at least 2 classes; all labels are the same.")
    count = min(components, *rows.shape)
    if count < 2:
        raise ValueError(f"PARC needs at least 2 components, examples and features; got {components}, {rows.shape}.")
    if not np.ptp(rows, axis=0).any():
        raise ValueError("all features are the same, so that they have no correlations: the backbone has collapsed.")
    # The full solver: exact, and no random numbers, whatever the size.
    pca = PCA(count, svd_solver="full")
    reduced = pca.fit_transform(rows)
    # N examples have N − 1 components about their mean, or fewer; what is left is rounding, which standardising would
    # make as large as the rest.
    real = pca.explained_variance_ > _ROUNDING * pca.explained_variance_[0]
    if real.sum() < 2:
        raise ValueError("the features lie on a line, so that rows of one component have no correlations.")
    upper = np.triu_indices(len(rows), 1)
    of_features = (1 - np.corrcoef(StandardScaler().fit_transform(reduced[:, real])))[upper]
    # 1 − corr of one-hot rows has two values only; computed in floats, rounding would rank pairs that are equal.
    of_labels = (classes[:, None] != classes)[upper]
    return 100 * float(spearmanr(of_features, of_labels).statistic)


def select_backbone(
    backbones: Mapping[str, Any],
    domain: Domain,
    examples: int = 500,
    seed: int = 0,
    *,
    features: Mapping[str, Any] | None = None,
) -> Selection:
    """Choose the backbone whose features fit a domain best, by PARC.

    Args:
        backbones: name to backbone: what `load_backbone` takes.
        domain: labelled examples of the task. Not those that a result is reported on: the choice sees their labels.
        examples: how many of them at most, drawn once for all backbones.
        seed: of that draw.
        features: name to (N, d), where the domain is embedded already.

    Returns:
        The best one's name, and every score.

    Raises:
        ValueError: no backbones, or as `parc_score`.

    Example:
        >>> select_backbone({"none": "outputs/none", "sam": "outputs/sam"}, domain).name  # doctest: +SKIP
        'sam'
    """
    if not backbones:
        raise ValueError("there are no backbones to choose from; expected a mapping of names to backbones.")
    rows = np.arange(len(domain))
    if len(rows) > examples:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), examples, replace=False))
    probe, scores = domain.select(rows), {}
    for name, backbone in backbones.items():
        known = None if features is None else features.get(name)
        rows_of = embed(load_backbone(backbone), probe) if known is None else known[rows]
        scores[name] = parc_score(rows_of.cpu() if hasattr(rows_of, "cpu") else rows_of, probe.labels)
    return Selection(max(scores, key=scores.__getitem__), scores)
