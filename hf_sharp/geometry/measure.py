"""The geometry of a trained model, measured in one pass over data.

With f_i the head's input for example i, and sums over the examples of class c:

    n_c, Σ f_i, and Σ f_i f_iᵀ over all classes       all that is kept: (K,), (K, d), (d, d)
    μ_c = Σ f_i / n_c        μ = mean of the μ_c over classes
    Σ_W = (Σ f_i f_iᵀ − Σ_c n_c μ_c μ_cᵀ) / N        Σ_B = Σ_c (μ_c − μ)(μ_c − μ)ᵀ / K
    NC1 = tr(Σ_W Σ_B†) / K                            0 if every class has collapsed to its mean
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hf_sharp.data.labels import IGNORED_LABEL
from hf_sharp.model.head import features_in_batches
from hf_sharp.model.predicted_geometry import Geometry, cosines, gram_distance
from hf_sharp.registry.arrays import as_array


@dataclass(frozen=True)
class MeasuredGeometry:
    """A measured geometry; its Gram matrices are not normalised.

    Attributes:
        classifier_gram: (K, K), W Wᵀ.
        embedding_gram: (K, K), of the class means μ_c; rows of classes without examples are NaN.
        centred_embedding_gram: (K, K), of μ_c − μ.
        class_counts: (K,), the number of measured examples of each class.
        nc1: tr(Σ_W Σ_B†) / K, the ratio of within-class to between-class variability.
    """

    classifier_gram: np.ndarray
    embedding_gram: np.ndarray
    centred_embedding_gram: np.ndarray
    class_counts: np.ndarray
    nc1: float

    def distances(self, predicted: Geometry) -> dict[str, float]:
        """Compute the distance of classifier and embeddings from a prediction.

        Args:
            predicted: the result of `predict` or `predict_for_loss`.

        Returns:
            `classifier`, `embedding` and `centred_embedding`, each from 0 to 2 (`gram_distance`).
        """
        return {
            "classifier": gram_distance(self.classifier_gram, predicted.classifier_gram),
            "embedding": gram_distance(self.embedding_gram, predicted.embedding_gram),
            "centred_embedding": gram_distance(self.centred_embedding_gram, predicted.embedding_gram),
        }

    def minimum_angles(self) -> np.ndarray:
        """Compute the angle between each classifier row and its nearest neighbour, in degrees: (K,)."""
        cosine = cosines(self.classifier_gram)
        np.fill_diagonal(cosine, -np.inf)
        return np.degrees(np.arccos(cosine.max(1)))

    def head_to_tail_norm_ratio(self, class_counts: Any) -> float:
        """Compute the ratio of row norms of the most frequent class and the rarest class: ‖w_max‖ / ‖w_min‖.

        Args:
            class_counts: (K,) of the training set; classes with equal counts share their mean norm.

        Returns:
            1 if the row norms do not depend on the counts; above 1 if the classifier favours frequent classes.
        """
        counts, norms = as_array(class_counts), np.sqrt(self.classifier_gram.diagonal())
        return float(norms[counts == counts.max()].mean() / norms[counts == counts.min()].mean())


class GeometryMeter:
    """Accumulates features batch by batch, in sums whose size does not depend on the number of examples.

    Args:
        num_classes: K.
        feature_dim: d.
        device: the device of the sums.

    Example:
        >>> meter = GeometryMeter(num_classes=2, feature_dim=2)
        >>> meter.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> meter.compute(torch.eye(2)).nc1  # every example equals its class mean
        0.0
    """

    def __init__(self, num_classes: int, feature_dim: int, device: torch.device | str = "cpu") -> None:
        precise = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.sums = torch.zeros(num_classes, feature_dim, dtype=precise, device=device)
        self.products = torch.zeros(feature_dim, feature_dim, dtype=precise, device=device)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            features: (N, d).
            labels: (N,) in [0, K); examples labelled -100 are skipped.
        """
        counted = labels != IGNORED_LABEL
        rows = features.to(self.sums) * counted[:, None]
        classes = labels.clamp(min=0)
        self.counts.index_add_(0, classes, counted.to(self.counts))
        self.sums.index_add_(0, classes, rows)
        self.products.addmm_(rows.T, rows)

    @torch.no_grad()
    def compute(self, weight: Tensor) -> MeasuredGeometry:
        """Compute the geometry of all batches added so far.

        Args:
            weight: W (K, d), the head's weight.

        Returns:
            The geometry; `nc1` is NaN with fewer than two classes, or features that are not finite.
        """
        counts, sums = self.counts.cpu().double(), self.sums.cpu().double()
        seen = counts > 0
        means = torch.where(seen[:, None], sums / counts.clamp(min=1)[:, None], math.nan)
        centred = means - means[seen].mean(0)
        spread = centred[seen]
        within = (self.products.cpu().double() - (means[seen] * counts[seen, None]).T @ means[seen]) / counts.sum()
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        classifier = whole.detach().cpu().double()
        nc1 = math.nan
        if len(spread) > 1 and spread.isfinite().all():
            # tr(Σ_W Σ_B†) without a (d, d) inverse: Σ_B = spreadᵀ spread / K has rank below K.
            inverse = torch.linalg.pinv(spread, rtol=1e-10)
            nc1 = max(float(((inverse.T @ within) * inverse.T).sum()), 0.0)
        classifier_gram, embedding_gram, centred_gram = ((r @ r.T).numpy() for r in (classifier, means, centred))
        return MeasuredGeometry(classifier_gram, embedding_gram, centred_gram, self.counts.cpu().numpy(), nc1)


def measure(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    num_classes: int | None = None,
    head: str | None = None,
    progress_bar: bool = True,
) -> MeasuredGeometry:
    """Measure the geometry of a model's head and features in one pass over data.

    Args:
        model: an image or sequence classification model. It runs in evaluation mode; modes and hooks are restored.
        batches: model inputs with `labels`, such as a DataLoader.
        num_classes: K; None for the config's `num_labels`.
        head: the name of the layer that computes the logits, if it cannot be found automatically.
        progress_bar: whether to show a progress bar.

    Returns:
        The geometry.

    Raises:
        ValueError: there is no linear head, no example with a label, or a batch as `labels_of` refuses it.

    Example:
        >>> data = [{"input": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "labels": torch.tensor([0, 1])}]
        >>> measure(nn.Sequential(nn.Linear(2, 2)), data, num_classes=2, progress_bar=False).embedding_gram
        array([[4., 0.],
               [0., 1.]])
    """
    if num_classes is None:
        num_classes = int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
    meter = None
    for features, labels, layer in features_in_batches(
        model, batches, num_classes, head, "geometry" if progress_bar else None
    ):
        if meter is None:
            meter = GeometryMeter(num_classes, features.shape[1], features.device)
        meter.update(features, labels)
        weight = layer.weight
    if meter is None or not meter.counts.any():
        raise ValueError("there are no examples to measure the geometry on.")
    return meter.compute(weight)
