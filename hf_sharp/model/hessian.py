"""Eigenvalues and trace of the Hessian of a model's mean loss.

    top eigenvalue   λ_max of H_g = ∇² L_g(w)              scipy's eigsh on Hessian-vector products
    trace            tr H_g, the sum of all eigenvalues     Hutchinson's estimate: the mean of zᵀ H_g z, z random signs

A product H v is ∇ (vᵀ ∇L), by two backward passes. Forward-over-reverse differentiation (torch.func, on which
curvlinops 3.0.1 is built) is not used: with torch 2.13 it silently gives wrong second derivatives for LayerNorm's
weight. A test fails once this is fixed upstream.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh

from hf_sharp.model.loss_surface import LossSurface
from hf_sharp.registry.limits import check_number

# With so few parameters the whole Hessian is computed, and its eigenvalues and trace are exact.
_MAX_DENSE = 32
# The number of Lanczos vectors kept in memory, each as long as the parameters.
_LANCZOS_VECTORS = 6
_LANCZOS_RESTARTS = 60


def top_eigenvalues(
    surface: LossSurface, group: str = "all", count: int = 1, tolerance: float = 0.05, seed: int = 0
) -> list[float]:
    """Find the largest eigenvalues of the Hessian of a group's mean loss.

    Args:
        surface: the loss.
        group: one of `GROUPS` that has examples.
        count: the number of eigenvalues, >= 1.
        tolerance: the allowed residual, ‖H v − λ v‖ <= tolerance · |λ|, which also bounds the error of λ. If the
            eigenvalue is well separated from the others, as in trained networks, its error is of order tolerance² · λ.
        seed: the seed of the starting vector.

    Returns:
        The eigenvalues, largest first; exact for up to 32 parameters.

    Raises:
        ValueError: more eigenvalues than parameters, or no convergence to that tolerance.

    Example:
        >>> import torch
        >>> from hf_sharp.data.class_frequencies import ClassFrequencies
        >>> data = [{"input": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2 / 2)
        >>> top_eigenvalues(surface, count=2), top_eigenvalues(surface, "few")
        ([2.0, 0.5], [1.0])

    Reference:
        ARPACK through `scipy.sparse.linalg.eigsh`: implicitly restarted Lanczos.
    """
    operator = surface.hessian(group)
    size = operator.shape[0]
    check_number("the number of eigenvalues", count, least=1, most=size, whole=True)
    if size <= _MAX_DENSE:
        return np.linalg.eigvalsh(operator @ np.eye(size))[::-1][:count].tolist()
    check_number("tolerance", tolerance, least=0, below=1)
    start = np.random.default_rng(seed).standard_normal(size).astype(operator.dtype)
    vectors = min(size, max(_LANCZOS_VECTORS, 2 * count + 2))
    options: dict[str, Any] = {"which": "LA", "v0": start, "ncv": vectors, "tol": tolerance}
    try:
        eigenvalues = eigsh(operator, count, maxiter=_LANCZOS_RESTARTS, return_eigenvectors=False, **options)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"the top eigenvalues did not converge to a tolerance of {tolerance} in {_LANCZOS_RESTARTS} restarts. "
            "Raise the tolerance, or ask for fewer eigenvalues."
        ) from error
    except ArpackError as error:
        if "-9" not in str(error):
            raise
        return [0.0] * count  # the product with a random vector is zero: the loss is linear
    return np.sort(eigenvalues.astype(float))[::-1].tolist()


def hessian_traces(surface: LossSurface, probes: int = 8, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Estimate the traces of the Hessians of all groups, in one pass with `probes` + 1 backward passes.

        tr H_g ≈ mean of zᵀ H_g z over random signs z

    Args:
        surface: the loss.
        probes: the number of random vectors z, >= 2, the same for every group.
        seed: the seed of the draw.

    Returns:
        For each group that has examples, the trace and its standard error over the probes. With up to 32 parameters
        the trace is exact and the error 0; both also hold for a diagonal Hessian.

    Raises:
        ValueError: fewer than 2 probes.

    Example:
        >>> import torch
        >>> from hf_sharp.data.class_frequencies import ClassFrequencies
        >>> data = [{"input": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2 / 2)
        >>> hessian_traces(surface)
        {'all': (2.5, 0.0), 'many': (4.0, 0.0), 'few': (1.0, 0.0)}

    Reference:
        Hutchinson, Communications in Statistics 19(2), 1990.
    """
    check_number("probes", probes, least=2, whole=True)  # one probe has no standard error
    if surface.size <= _MAX_DENSE:
        return {group: (float(forms.sum()), 0.0) for group, forms in surface.quadratic_forms(surface.units).items()}
    forms_of_groups = surface.quadratic_forms(lambda: islice(surface.signs(seed), probes))
    return {group: (float(forms.mean()), standard_error(forms)) for group, forms in forms_of_groups.items()}


def standard_error(values: Any) -> float:
    """Compute the standard error of the mean of (N,) values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
