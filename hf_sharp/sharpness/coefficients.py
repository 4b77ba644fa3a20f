"""Computes the coefficients c of a sharpness method from the class counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_sharp.registry import option_names
from hf_sharp.registry.arrays import as_array
from hf_sharp.sharpness.methods import METHODS


def method_options(name: str) -> set[str]:
    """List the options that a method's coefficients take in addition to the class counts."""
    return set(METHODS[name].coefficient_options)


def class_coefficients(name: str, class_counts: Any, **options: Any) -> Tensor:
    """Compute the coefficients c of a sharpness method.

        g = ∇ mean((1 − c_y) ℓ)(w) + ∇ mean(c_y ℓ)(w + ε)

    Args:
        name: one of `METHODS`.
        class_counts: (K,) integers >= 0, the training examples of each class.
        **options: `rare_threshold` (ImbSAM, default 20: classes with n_c < rare_threshold are rare); `focal_gamma` and
            `focal_lambda` (Focal-SAM: γ >= 0 and λ >= 0, default 1.0 and 0.8; for fine-tuning on CIFAR-100-LT the
            paper has 5.5 and 0.8); `focal_sampling` (Focal-SAM: "stochastic" requires c <= 1, and gives the same
            coefficients); `cc_radius` and `cc_phi` (CC-SAM, which has no coefficients: only checked).

    Returns:
        (K,) float64 on the CPU.

    Raises:
        ValueError: the name is unknown, the method does not take an option, an option is out of range, ImbSAM has no
            rare class, or a registered method does not return K finite numbers >= 0.

    Example:
        >>> class_coefficients("focal_sam", [6, 3, 1], focal_gamma=1.0, focal_lambda=1.0)
        tensor([0.4000, 0.7000, 0.9000], dtype=torch.float64)
        >>> class_coefficients("imbsam", [600, 30, 10])
        tensor([0., 0., 1.], dtype=torch.float64)

    Reference:
        SAM arXiv 2010.01412; ImbSAM arXiv 2308.07815, equation 7; Focal-SAM arXiv 2505.01660, equation 8. ImbSAM
        follows the objective in the paper; the authors' code adds the tail loss twice.
    """
    METHODS.check(name)
    unknown = sorted(set(options) - method_options(name))
    if unknown:
        takes = ", ".join(sorted(method_options(name))) or "no options"
        raise ValueError(f"sharpness method {name!r} does not take {', '.join(unknown)}; it takes {takes}.")
    function = METHODS[name].coefficients
    counts = torch.tensor(as_array(class_counts), dtype=torch.int64)
    inputs = {"class_counts": counts, "priors": counts.double() / counts.sum()}
    wanted = option_names(function)
    result = function(**{key: value for key, value in inputs.items() if key in wanted}, **options)
    coefficients = torch.as_tensor(result, dtype=torch.float64)
    if coefficients.shape != counts.shape or not (coefficients.isfinite() & (coefficients >= 0)).all():
        raise ValueError(
            f"the coefficients of sharpness method {name!r} must be {len(counts)} finite numbers >= 0, one per class; "
            f"got {result}."
        )
    return coefficients
