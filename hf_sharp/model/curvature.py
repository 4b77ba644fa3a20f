"""How flat a trained model lies: curvature and sharpness of its mean loss, over all classes and per group of classes.

With L_g(w) the mean loss over the examples of group g (all, many, medium, few), and w the trainable parameters:

    top eigenvalue   λ_max of H_g = ∇² L_g(w)              scipy's eigsh on Hessian-vector products
    trace            tr H_g, the sum of all eigenvalues     Hutchinson's estimate, the mean of zᵀ H_g z, z random signs
    worst case       L_g(w + ρ ∇L_g / ‖∇L_g‖) − L_g(w)      one ascent step, as SAM takes it
    average          mean over d of L_g(w + ρ d) − L_g(w)   d and −d for random directions d of length 1

A product H v is ∇ (vᵀ ∇L), by two backward passes. Not by forward over reverse differentiation (torch.func, on which
curvlinops 3.0.1 stands): with torch 2.13 LayerNorm's weight gets wrong second derivatives there, and no error. A test
watches for the day when this is mended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh
from torch import nn

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.model.loss_surface import GROUPS, Losses, LossSurface, cross_entropy
from hf_sharp.sharpness.ascent import global_norm, gradient_to_perturbation, perturbed

# A Hessian of no more parameters is computed whole: its eigenvalues and trace are then exact.
_WHOLE = 32
# Lanczos vectors that are kept, each as long as the parameters.
_LANCZOS_VECTORS = 6
_LANCZOS_RESTARTS = 60


def top_eigenvalues(
    surface: LossSurface, group: str = "all", count: int = 1, tolerance: float = 0.05, seed: int = 0
) -> list[float]:
    """Find the largest eigenvalues of the Hessian of a group's mean loss.

    Args:
        surface: the loss.
        group: one of `GROUPS` that has examples.
        count: how many eigenvalues, >= 1.
        tolerance: what remains, ‖H v − λ v‖ <= tolerance · |λ|; an eigenvalue is no farther from λ than that. Where it
            stands apart from the others, as it does in trained networks, the error is of the order of tolerance² · λ.
        seed: of the vector to start from.

    Returns:
        The eigenvalues, the largest first; exact where there are no more than 32 parameters.

    Raises:
        ValueError: more eigenvalues than parameters, or none are found to that tolerance.

    Example:
        >>> data = [{"input": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> model = nn.Linear(2, 1, bias=False)
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2 / 2)
        >>> top_eigenvalues(surface, count=2), top_eigenvalues(surface, "few")
        ([2.0, 0.5], [1.0])

    Reference:
        ARPACK through `scipy.sparse.linalg.eigsh`: implicitly restarted Lanczos.
    """
    operator = surface.hessian(group)
    size = operator.shape[0]
    if not 1 <= count <= size:
        raise ValueError(f"the number of eigenvalues must be from 1 to {size}, the number of parameters; got {count}.")
    if size <= _WHOLE:
        return np.linalg.eigvalsh(operator @ np.eye(size))[::-1][:count].tolist()
    if not 0 <= tolerance < 1:
        raise ValueError(f"the tolerance must be in [0, 1), got {tolerance}.")
    start = np.random.default_rng(seed).standard_normal(size).astype(operator.dtype)
    vectors = min(size, max(_LANCZOS_VECTORS, 2 * count + 2))
    options: dict[str, Any] = {"which": "LA", "v0": start, "ncv": vectors, "tol": tolerance}
    try:
        found = eigsh(operator, count, maxiter=_LANCZOS_RESTARTS, return_eigenvectors=False, **options)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"the top eigenvalues were not found to a tolerance of {tolerance} in {_LANCZOS_RESTARTS} restarts. Raise "
            "the tolerance, or ask for fewer."
        ) from error
    except ArpackError as error:
        if "-9" not in str(error):
            raise
        return [0.0] * count  # the product with a random vector is zero: the loss is linear
    return np.sort(found.astype(float))[::-1].tolist()


def hessian_traces(surface: LossSurface, probes: int = 8, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Estimate the traces of the Hessians of all groups, in one pass with `probes` + 1 backward passes.

        tr H_g ≈ mean of zᵀ H_g z over random signs z

    Args:
        surface: the loss.
        probes: how many z, >= 2, the same ones for every group.
        seed: of the z.

    Returns:
        The trace of each group that has examples, and its standard error over the probes; 0 where it is exact: where
        there are no more than 32 parameters. Also exact, with an error of 0, where a Hessian is diagonal.

    Raises:
        ValueError: fewer than 2 probes.

    Example:
        >>> data = [{"input": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> model = nn.Linear(2, 1, bias=False)
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2 / 2)
        >>> hessian_traces(surface)
        {'all': (2.5, 0.0), 'many': (4.0, 0.0), 'few': (1.0, 0.0)}

    Reference:
        Hutchinson, Communications in Statistics 19(2), 1990.
    """
    if probes < 2:
        raise ValueError(f"the trace needs at least 2 probes, for its error; got {probes}.")
    if surface.size <= _WHOLE:
        return {group: (float(forms.sum()), 0.0) for group, forms in surface.quadratic_forms(surface.units).items()}
    found = surface.quadratic_forms(lambda: islice(surface.signs(seed), probes))
    return {group: (float(forms.mean()), _standard_error(forms)) for group, forms in found.items()}


# What `LossSurface.loss_and_gradients` gives.
Start = tuple[dict[str, float], dict[str, list[torch.Tensor]]]


def worst_case_sharpness(surface: LossSurface, rho: float = 0.05, start: Start | None = None) -> dict[str, float]:
    """Measure how much the loss rises after one step of length ρ along its own gradient.

        L_g(w + ρ ∇L_g / (‖∇L_g‖ + 1e-12)) − L_g(w)

    Args:
        surface: the loss.
        rho: ρ > 0.
        start: what `surface.loss_and_gradients()` gives, where it is known already.

    Returns:
        The rise for each group that has examples, each along the gradient of its own mean loss.

    Raises:
        ValueError: a radius that is not above 0 and finite.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(1.0)
        >>> data = [{"input": torch.ones(2, 1), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2)
        >>> worst_case_sharpness(surface, rho=0.5)  # (1 + ρ)² − 1
        {'all': 1.25, 'many': 1.25, 'few': 1.25}

    Reference:
        SAM arXiv 2010.01412, equation 2.
    """
    _check_radius(rho)
    here, gradients = start or surface.loss_and_gradients()
    rises = {}
    for group, gradient in gradients.items():
        epsilon = [part.clone() for part in gradient]
        gradient_to_perturbation(surface.parameters, epsilon, rho)
        with perturbed(surface.parameters, epsilon):
            rises[group] = surface.loss(group)[group] - here[group]
    return rises


def average_sharpness(
    surface: LossSurface,
    rho: float = 0.05,
    directions: int = 4,
    seed: int = 0,
    here: Mapping[str, float] | None = None,
) -> dict[str, tuple[float, float]]:
    """Measure how much the loss rises on average after a step of length ρ in a random direction.

        mean over directions d of (L_g(w + ρ d) + L_g(w − ρ d)) / 2 − L_g(w)

    Taking d and −d together leaves the slope out, which would hide the rest: on a quadratic, the mean over all d is
    ρ² tr H_g / 2P exactly, with P parameters.

    Args:
        surface: the loss.
        rho: ρ > 0.
        directions: how many d, >= 2, uniform on the sphere; each costs two forward passes, for all groups.
        seed: of the directions.
        here: what `surface.loss()` gives, where it is known already.

    Returns:
        The rise for each group that has examples, and its standard error over the directions.

    Raises:
        ValueError: a radius that is not above 0 and finite, or fewer than 2 directions.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(1.0)
        >>> data = [{"input": torch.ones(2, 1), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2)
        >>> average_sharpness(surface, rho=0.5)["all"]  # ρ²
        (0.25, 0.0)
    """
    _check_radius(rho)
    if directions < 2:
        raise ValueError(f"the average needs at least 2 directions, for its error; got {directions}.")
    here = here or surface.loss()
    rises: dict[str, list[float]] = {group: [] for group in surface.groups}
    for _, direction in zip(range(directions), surface.directions(seed), strict=False):
        there, back = surface.moved(direction, rho), surface.moved(direction, -rho)
        for group, values in rises.items():
            values.append((there[group] - here[group]) / 2 + (back[group] - here[group]) / 2)
    return {group: (float(np.mean(values)), _standard_error(values)) for group, values in rises.items()}


def losses_along(
    surface: LossSurface,
    direction: Sequence[torch.Tensor],
    radii: Sequence[float],
    here: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Compute the loss on a line through the weights, for a picture; one forward pass per radius.

    Args:
        surface: the loss.
        direction: one tensor per trainable parameter, of length 1 over all together.
        radii: how far along it; below 0 the other way.
        here: what `surface.loss()` gives, the loss at radius 0, where it is known already.

    Returns:
        L_g(w + r · direction) for each group that has examples, one value per radius.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(1.0)
        >>> data = [{"input": torch.ones(2, 1), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2)
        >>> losses_along(surface, [torch.ones(1, 1)], [-1.0, 0.0, 1.0])["all"]
        [0.0, 1.0, 4.0]
    """
    values = [here if here and radius == 0 else surface.moved(direction, radius) for radius in radii]
    return {group: [value[group] for value in values] for group in surface.groups}


def measure_curvature(
    model: nn.Module,
    batches: Iterable[Mapping[str, torch.Tensor]],
    class_counts: Any,
    *,
    rho: float = 0.05,
    eigenvalues: int = 1,
    tolerance: float = 0.05,
    probes: int = 8,
    directions: int = 4,
    hessian_examples: int | None = None,
    losses: Losses = cross_entropy,
    seed: int = 0,
    progress: str | None = None,
) -> dict[str, Any]:
    """Measure everything in this module, over all examples and per group of classes.

    Args:
        model: as for `LossSurface`. Its weights are afterwards the same, bit for bit.
        batches: what the model takes, with `labels`: a DataLoader.
        class_counts: (K,) *training* examples of each class, or a `ClassFrequencies` with its thresholds.
        rho: ρ > 0, the radius of the sharpness; the picture reaches from −2ρ to 2ρ.
        eigenvalues: how many of the largest eigenvalues, >= 1.
        tolerance: of the eigenvalues.
        probes: random vectors for the trace, >= 2.
        directions: random directions for the average, >= 2.
        hessian_examples: the eigenvalues and traces are those of the loss on so many of the examples, every class with
            its share; None: on all of them. A product with the Hessian costs about ten forward passes.
        losses: logits (N, K) and labels (N,) to losses (N,); default: cross-entropy.
        seed: of all random choices. On a CPU, the same seed gives the same numbers.
        progress: what the progress bar says; None: no bar.

    Returns:
        `all`, `many`, `medium` and `few`, each None where the group has no examples, else with `examples`, `loss`,
        `gradient_norm`, `worst_case`, `average` and `average_error`, and from the Hessian `hessian_examples`,
        `top_eigenvalues`, `trace` and `trace_error` (None where none of the chosen examples are of the group).
        `along`: `radii`, and for `ascent` and `random` the losses of each group, None as above. `rho`, `parameters`,
        `seed`, `rare_threshold`, `common_threshold`.

    Raises:
        ValueError: as the functions above.

    Example:
        >>> data = [{"input": torch.eye(3)[[0, 1, 2, 0]], "labels": torch.tensor([0, 1, 2, 0])}]
        >>> report = measure_curvature(nn.Linear(3, 3), data, [500, 200, 3])
        >>> report["medium"], report["few"]["examples"], len(report["along"]["ascent"]["few"])
        (None, 1, 9)
    """
    frequencies = (
        class_counts if isinstance(class_counts, ClassFrequencies) else ClassFrequencies.from_counts(class_counts)
    )
    surface = LossSurface(model, batches, frequencies, losses, progress)
    try:
        _check_radius(rho)
        here, gradients = surface.loss_and_gradients()
        norms = {group: global_norm(gradient).item() for group, gradient in gradients.items()}
        worst = worst_case_sharpness(surface, rho, (here, gradients))
        ascent = gradients["all"]
        del gradients
        average = average_sharpness(surface, rho, directions, seed, here)
        along = _both_lines(surface, ascent, rho, seed, here)
        del ascent
        hessian = _hessian_figures(surface, hessian_examples, eigenvalues, tolerance, probes, seed)
    finally:
        surface.bar.close()
    report: dict[str, Any] = dict.fromkeys(GROUPS)
    for group in surface.groups:
        report[group] = {
            "examples": surface.examples[group],
            "loss": here[group],
            "gradient_norm": norms[group],
            "worst_case": worst[group],
            "average": average[group][0],
            "average_error": average[group][1],
            **hessian[group],
        }
    report |= {"along": along, "rho": rho, "parameters": surface.size, "seed": seed}
    return report | {
        "rare_threshold": frequencies.rare_threshold,
        "common_threshold": frequencies.common_threshold,
    }


def _both_lines(
    surface: LossSurface, gradient: list[torch.Tensor], rho: float, seed: int, here: Mapping[str, float]
) -> dict[str, Any]:
    radii = [rho * step / 2 for step in range(-4, 5)]
    gradient_to_perturbation(surface.parameters, gradient, 1.0)
    along: dict[str, Any] = {"radii": radii}
    for kind, direction in (("ascent", gradient), ("random", next(surface.directions(seed)))):
        along[kind] = dict.fromkeys(GROUPS) | losses_along(surface, direction, radii, here)
    return along


def _hessian_figures(
    surface: LossSurface, size: int | None, eigenvalues: int, tolerance: float, probes: int, seed: int
) -> dict[str, dict[str, Any]]:
    part = surface if size is None else surface.subset(size, seed)
    traces = hessian_traces(part, probes, seed)
    figures: dict[str, dict[str, Any]] = {}
    for group in surface.groups:
        top = None
        if part.examples[group]:
            if figures and part.examples[group] == part.examples["all"]:  # the only group there is
                top = figures["all"]["top_eigenvalues"]
            else:
                top = top_eigenvalues(part, group, eigenvalues, tolerance, seed)
        trace, error = traces.get(group, (None, None))
        figures[group] = {"hessian_examples": part.examples[group], "top_eigenvalues": top}
        figures[group] |= {"trace": trace, "trace_error": error}
    return figures


def _standard_error(values: Any) -> float:
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _check_radius(rho: float) -> None:
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"the radius must be a finite number above 0, got {rho}.")
