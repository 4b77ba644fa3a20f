"""How flat a trained model's loss is: its curvature and sharpness, over all classes and per group of classes.

With L_g(w) the mean loss over the examples of group g (all, many, medium, few), and w the trainable parameters:

    worst case       L_g(w + ρ ∇L_g / ‖∇L_g‖) − L_g(w)      one ascent step, as in SAM
    average          mean over d of L_g(w + ρ d) − L_g(w)   random directions d of length 1, each with its opposite
    curvature        top eigenvalues and trace of ∇² L_g(w)  see `hf_sharp.model.hessian`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_sharp.data.class_frequencies import ClassFrequencies
from hf_sharp.model.group_batches import GROUPS
from hf_sharp.model.hessian import hessian_traces, standard_error, top_eigenvalues
from hf_sharp.model.loss_surface import Losses, LossSurface, cross_entropy
from hf_sharp.registry.limits import check_number
from hf_sharp.sharpness.ascent import global_norm, gradient_to_perturbation, perturbed

_LINE = range(-4, 5)  # the steps along a line through the weights, in units of ρ / 2
# The approximate number of Hessian products per eigenvalue, for the progress bar.
_PRODUCTS = 8

# The result of `LossSurface.loss_and_gradients`.
Start = tuple[dict[str, float], dict[str, list[torch.Tensor]]]


def worst_case_sharpness(surface: LossSurface, rho: float = 0.05, start: Start | None = None) -> dict[str, float]:
    """Measure how much the loss of each group rises after one step of length ρ along its gradient.

        L_g(w + ρ ∇L_g / (‖∇L_g‖ + 1e-12)) − L_g(w)

    Args:
        surface: the loss.
        rho: ρ > 0.
        start: the result of `surface.loss_and_gradients()`, if already computed.

    Returns:
        The rise for each group that has examples, each along the gradient of that group's mean loss.

    Raises:
        ValueError: the radius is not positive and finite.

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
    check_number("rho", rho, above=0)
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
    """Measure the average rise of the loss after a step of length ρ in a random direction.

        mean over directions d of (L_g(w + ρ d) + L_g(w − ρ d)) / 2 − L_g(w)

    Averaging d and −d removes the slope, which would otherwise dominate. On a quadratic with P parameters, the mean
    over all d is exactly ρ² tr H_g / 2P.

    Args:
        surface: the loss.
        rho: ρ > 0.
        directions: the number of directions d, >= 2, uniform on the sphere. Each costs two forward passes, which serve
            all groups.
        seed: the seed of the draw.
        here: the result of `surface.loss()`, if already computed.

    Returns:
        For each group that has examples, the rise and its standard error over the directions.

    Raises:
        ValueError: the radius is not positive and finite, or there are fewer than 2 directions.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(1.0)
        >>> data = [{"input": torch.ones(2, 1), "labels": torch.tensor([0, 1])}]
        >>> counts = ClassFrequencies.from_counts([300, 3])
        >>> surface = LossSurface(model, data, counts, losses=lambda logits, labels: logits[:, 0] ** 2)
        >>> average_sharpness(surface, rho=0.5)["all"]  # ρ²
        (0.25, 0.0)
    """
    check_number("rho", rho, above=0)
    check_number("directions", directions, least=2, whole=True)  # one direction has no standard error
    here = here or surface.loss()
    rises: dict[str, list[float]] = {group: [] for group in surface.groups}
    for _, direction in zip(range(directions), surface.directions(seed), strict=False):
        there, back = surface.moved(direction, rho), surface.moved(direction, -rho)
        for group, values in rises.items():
            values.append((there[group] - here[group]) / 2 + (back[group] - here[group]) / 2)
    return {group: (float(np.mean(values)), standard_error(values)) for group, values in rises.items()}


def losses_along(
    surface: LossSurface,
    direction: Sequence[torch.Tensor],
    radii: Sequence[float],
    here: Mapping[str, float] | None = None,
) -> dict[str, list[float]]:
    """Compute the loss on a line through the weights, for plotting; one forward pass per radius.

    Args:
        surface: the loss.
        direction: one tensor per trainable parameter, of length 1 over all together.
        radii: the distances along it; negative for the opposite direction.
        here: the result of `surface.loss()`, the loss at radius 0, if already computed.

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
    """Measure sharpness and curvature over all examples and per group of classes.

    Args:
        model: as for `LossSurface`. Its weights are restored exactly.
        batches: model inputs with `labels`, such as a DataLoader.
        class_counts: (K,) *training* examples of each class, or a `ClassFrequencies` with its thresholds.
        rho: ρ > 0, the radius of both sharpness measures; the plot covers −2ρ to 2ρ.
        eigenvalues: the number of top eigenvalues, >= 1.
        tolerance: the tolerance of the eigenvalues, as for `top_eigenvalues`.
        probes: the number of random vectors for the trace, >= 2.
        directions: the number of random directions for the average, >= 2.
        hessian_examples: the size of a stratified sample of the examples, on which eigenvalues and traces are computed;
            None for all examples. One product with the Hessian costs about ten forward passes.
        losses: maps logits (N, K) and labels (N,) to losses (N,); default: cross-entropy.
        seed: the seed of all random draws. On a CPU, the same seed gives the same numbers.
        progress: the label of the progress bar; None for no bar.

    Returns:
        `all`, `many`, `medium` and `few`: None if the group has no examples, else `examples`, `loss`,
        `gradient_norm`, `worst_case`, `average` and `average_error`, and from the Hessian `hessian_examples`,
        `top_eigenvalues`, `trace` and `trace_error` (the last three None if the sample has none of its examples).
        `along`: `radii`, and under `ascent` and `random` the losses of each group, None as above.
        Also `rho`, `parameters`, `seed`, `rare_threshold` and `common_threshold`.

    Raises:
        ValueError: as for the functions above.

    Example:
        >>> data = [{"input": torch.eye(3)[[0, 1, 2, 0]], "labels": torch.tensor([0, 1, 2, 0])}]
        >>> report = measure_curvature(nn.Linear(3, 3), data, [500, 200, 3])
        >>> report["medium"], report["few"]["examples"], len(report["along"]["ascent"]["few"])
        (None, 1, 9)
    """
    frequencies = (
        class_counts if isinstance(class_counts, ClassFrequencies) else ClassFrequencies.from_counts(class_counts)
    )
    check_number("rho", rho, above=0)
    check_number("tolerance", tolerance, least=0, below=1)
    for name, value, least in (("eigenvalues", eigenvalues, 1), ("probes", probes, 2), ("directions", directions, 2)):
        check_number(name, value, least=least, whole=True)
    check_number("hessian_examples", hessian_examples, least=1, whole=True, optional=True)
    surface = LossSurface(model, batches, frequencies, losses, progress)
    try:
        groups = len(surface.groups)
        lines = 2 * (len(_LINE) - 1)  # the loss at the weights is known
        surface.expect(1 + groups + 2 * directions + lines + 1 + groups * _PRODUCTS)
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
    radii = [rho * step / 2 for step in _LINE]
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
    for i, group in enumerate(surface.groups):
        surface.expect((len(surface.groups) - i) * _PRODUCTS)
        top = None
        if part.examples[group]:
            if figures and part.examples[group] == part.examples["all"]:  # the only group
                top = figures["all"]["top_eigenvalues"]
            else:
                top = top_eigenvalues(part, group, eigenvalues, tolerance, seed)
        trace, error = traces.get(group, (None, None))
        figures[group] = {"hessian_examples": part.examples[group], "top_eigenvalues": top}
        figures[group] |= {"trace": trace, "trace_error": error}
    surface.expect(0)
    return figures
