"""The unconstrained features model: a classifier and a free embedding for each example, trained with a small ridge.

    min over W (K, d), H (d, N) of   Σ_i ℓ(W h_i, y_i) + ridge/2 (‖W‖² + ‖H‖²)

At the minimum all examples of a class share one embedding, so one column per class with weight n_c is sufficient.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from hf_sharp.losses.base import ClassFrequencyLoss
from hf_sharp.model.predicted_geometry import Geometry
from hf_sharp.registry.limits import check_number

logger = logging.getLogger(__name__)


def train_ufm(
    loss: ClassFrequencyLoss, ridge: float, *, per_example: bool = False, max_steps: int = 3000, seed: int = 0
) -> Geometry:
    """Train the unconstrained features model, and return the geometry it converges to.

    Args:
        loss: a loss with its class counts, all >= 1.
        ridge: > 0. The smaller it is, the nearer the geometry is to the one that `predict` returns.
        per_example: train one embedding per example, as in the model's definition, instead of one per class.
        max_steps: the maximum number of L-BFGS steps; a warning is logged if they do not suffice.
        seed: the seed of the initial values.

    Returns:
        W Wᵀ and the Gram matrix of the classes' mean embeddings, each divided by its Frobenius norm.

    Raises:
        ValueError: the ridge is not positive.

    Example:
        >>> from hf_sharp.geometry import gram_distance, predict_for_loss
        >>> from hf_sharp.losses import build_loss
        >>> loss = build_loss("cross_entropy", [4, 4, 2])
        >>> far, near = (train_ufm(loss, ridge).classifier_gram for ridge in (1e-1, 1e-4))
        >>> predicted = predict_for_loss(loss).classifier_gram
        >>> gram_distance(near, predicted) < gram_distance(far, predicted)
        True

    Reference:
        arXiv 2303.07608, equation 3.
    """
    check_number("ridge", ridge, above=0)
    check_number("max_steps", max_steps, least=1, whole=True)
    counts = loss.class_counts.double().cpu()
    classes = torch.arange(len(counts))
    if per_example:
        classes, weight = classes.repeat_interleave(counts.long()), torch.ones(int(counts.sum()), dtype=torch.float64)
    else:
        weight = counts
    generator = torch.Generator().manual_seed(seed)
    size = (len(counts), len(counts))
    w = torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
    h = torch.randn((len(classes), len(counts)), generator=generator, dtype=torch.float64).requires_grad_()

    def objective() -> torch.Tensor:
        return (weight * loss(h @ w.T, classes)).sum() + ridge / 2 * ((w**2).sum() + (weight[:, None] * h**2).sum())

    optimizer = torch.optim.LBFGS(
        [w, h],
        max_iter=max_steps,
        history_size=50,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()
        return value

    optimizer.step(closure)
    largest = max(float(tensor.grad.abs().max()) for tensor in (w, h) if tensor.grad is not None)
    if largest > 1e-6:
        logger.warning("the UFM has not converged: the largest gradient is %.1e after %d steps.", largest, max_steps)
    with torch.no_grad():
        means = torch.zeros(size, dtype=torch.float64).index_add_(0, classes, weight[:, None] * h) / counts[:, None]
        classifier, embedding = (w @ w.T).numpy(), (means @ means.T).numpy()
    return Geometry(classifier / np.linalg.norm(classifier), embedding / np.linalg.norm(embedding))
