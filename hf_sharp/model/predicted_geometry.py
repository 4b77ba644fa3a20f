"""The geometry of classifier and embeddings that theory predicts for a loss and class counts.

In the unconstrained features model (UFM), the minimiser of Σ_i ℓ(W h_i, y_i) + ridge (‖W‖² + ‖H‖²) / 2 converges in
direction to the solution of a cost-sensitive SVM as the ridge vanishes. With z_c the column of Z (K, K) of class c:

    no scale (CE, weighted, logit-adjusted, balanced softmax)   Z = I − 1 1ᵀ/K
    class scale Δ (CDT, VS)                                     Z = (I − v vᵀ/‖v‖²) diag(1/Δ),   v = 1/Δ
    label scale δ (LDT)                                         Z = (I − 1 1ᵀ/K) diag(1/δ)

    S = Σ_c n_c z_c z_cᵀ      W Wᵀ ∝ S^½      HᵀH ∝ Zᵀ S^†½ Z      logits W H ∝ Z

Offsets added to the logits and weights of the loss do not change the geometry; scales do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.losses.registry import LOSSES
from hf_sharp.registry.arrays import as_array


class Geometry(NamedTuple):
    """Gram matrices of the classifier's rows and of the mean embeddings; only their proportions are meaningful."""

    classifier_gram: np.ndarray
    embedding_gram: np.ndarray


def predict(class_counts: Any, class_scale: Any = None, label_scale: Any = None) -> Geometry:
    """Predict the geometry of classifier and embeddings from class counts and the scales of the loss.

    Args:
        class_counts: (K,) integers >= 1.
        class_scale: (K,) numbers > 0, Δ: the factor of each class's logit (CDT, VS); None for 1.
        label_scale: (K,) numbers > 0, δ: the factor of all logits of an example with that label (LDT); None for 1.

    Returns:
        W Wᵀ (K, K) and HᵀH (K, K), float64, each divided by its Frobenius norm.

    Raises:
        ValueError: a class has no examples, both scales are given, or scales are not K positive numbers.

    Example:
        >>> classifier, embedding = predict([10, 10, 10])  # equal counts: an equiangular tight frame
        >>> (classifier / classifier[0, 0]).round(3) + 0.0
        array([[ 1. , -0.5, -0.5],
               [-0.5,  1. , -0.5],
               [-0.5, -0.5,  1. ]])

    Reference:
        Behnia et al., "On the Implicit Geometry of Cross-Entropy Parameterizations for Label-Imbalanced Data", arXiv
        2303.07608; Thrampoulidis et al., "Imbalance Trouble: Revisiting Neural-Collapse Geometry", arXiv 2208.05512.

    Differs from the authors' code: here the label scale also affects W's geometry, which depends on n_c/δ_c². Training
    the UFM confirms this (`recipes/geometry.py`).
    """
    counts = ClassFrequencies.from_counts(class_counts).counts.astype(float)
    if (counts == 0).any():
        absent = ", ".join(map(str, np.flatnonzero(counts == 0)[:10]))
        raise ValueError(
            f"classes without examples have no embedding, so no geometry can be predicted: {absent}. Leave them out of "
            "the counts."
        )
    if class_scale is not None and label_scale is not None:
        raise ValueError("the geometry of class_scale and label_scale together is not known. Give only one of them.")
    identity = np.eye(len(counts))
    if class_scale is not None:
        v = 1 / _positive("class_scale", class_scale, len(counts))
        z = (identity - np.outer(v, v) / (v @ v)) * v
    else:
        delta = np.ones(len(counts)) if label_scale is None else _positive("label_scale", label_scale, len(counts))
        z = (identity - 1 / len(counts)) / delta
    values, vectors = np.linalg.eigh((z * counts) @ z.T)
    values[0] = 0  # Z has rank K − 1; remove the rounding error
    root = np.sqrt(values.clip(0))
    inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
    classifier = (vectors * root) @ vectors.T
    embedding = z.T @ ((vectors * inverse) @ vectors.T) @ z
    return Geometry(classifier / np.linalg.norm(classifier), embedding / np.linalg.norm(embedding))


def predict_for_loss(loss: ClassFrequencyLoss) -> Geometry:
    """Predict the geometry that training with a loss converges to.

    Args:
        loss: a loss from `build_loss`, with its class counts.

    Returns:
        As `predict`.

    Raises:
        ValueError: as `predict`; also if the loss's geometry is not known.

    Example:
        >>> from hf_sharp.losses import build_loss
        >>> norms = predict_for_loss(build_loss("ldt", [1000, 10, 1], loss_gamma=0.5)).classifier_gram.diagonal()
        >>> bool(np.allclose(norms, norms.mean()))  # the classifier is symmetric, whatever the counts
        True
    """
    if not geometry_is_known(type(loss)):
        known = [name for name in LOSSES if geometry_is_known(LOSSES[name])]
        raise ValueError(f"the geometry of loss={loss.name!r} is not known. It is known for {', '.join(known)}.")
    scales = (None if scale is None else scale.cpu().numpy() for scale in (loss.class_scale, loss.label_scale))
    return predict(loss.class_counts.cpu().numpy(), *scales)


def geometry_is_known(kind: type[ClassFrequencyLoss]) -> bool:
    """Tell whether a loss is weighted cross-entropy of affinely mapped logits, whose geometry is known."""
    changed = ("forward", "adjust", "unweighted", "discriminative")
    return all(getattr(kind, name) is getattr(ClassFrequencyLoss, name) for name in changed)


def gram_distance(first: Any, second: Any) -> float:
    """Measure the distance between two Gram matrices up to scale: ‖G/‖G‖_F − G'/‖G'‖_F‖_F.

    Args:
        first: G (K, K).
        second: G' (K, K).

    Returns:
        From 0 (equal up to scale) to 2 (opposite).

    Example:
        >>> gram_distance(np.eye(2), 5 * np.eye(2))
        0.0
    """
    unit = [gram / np.linalg.norm(gram) for gram in (as_array(first, float), as_array(second, float))]
    return float(np.linalg.norm(unit[0] - unit[1]))


def tight_frame(num_classes: int) -> np.ndarray:
    """Return the Gram matrix of the equiangular tight frame, I − 1 1ᵀ/K: (K, K)."""
    return np.eye(num_classes) - 1 / num_classes


def balancing_gamma(class_counts: Any, loss: str = "ldt") -> float:
    """Find the γ that makes the predicted classifier as symmetric as possible.

    Args:
        class_counts: (K,) integers >= 1.
        loss: "ldt", for which γ = ½ gives an equiangular tight frame for any counts; or "cdt" or "vs", for which a
            search finds the γ whose classifier is nearest to that frame.

    Returns:
        γ of Δ_c = (n_c / n_max)^γ, which is `loss_gamma`; 0 if all counts are equal.

    Raises:
        ValueError: another loss, or a class has no examples.

    Example:
        >>> balancing_gamma([1000, 100, 10])
        0.5
    """
    counts = ClassFrequencies.from_counts(class_counts).counts
    predict(counts)  # raises for a class without examples
    if loss not in ("ldt", "cdt", "vs"):
        raise ValueError(f"loss={loss!r} has no γ that changes the geometry; expected ldt, cdt or vs.")
    if len(np.unique(counts)) == 1:
        return 0.0
    if loss == "ldt":
        return 0.5
    frame = tight_frame(len(counts))

    def distance(gamma: float) -> float:
        scale = (counts / counts.max()) ** gamma
        return gram_distance(predict(counts, class_scale=scale).classifier_gram, frame)

    return float(minimize_scalar(distance, bounds=(-2, 2), method="bounded", options={"xatol": 1e-8}).x)


def cosines(gram: np.ndarray) -> np.ndarray:
    """Turn a Gram matrix into cosines: (K, K) to (K, K)."""
    norms = np.sqrt(gram.diagonal())
    return (gram / np.outer(norms, norms)).clip(-1, 1)


def _positive(name: str, values: Any, num_classes: int) -> np.ndarray:
    array = as_array(values, float)
    if array.shape != (num_classes,) or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"{name} must be {num_classes} finite numbers > 0, one per class; got {values}.")
    return array
