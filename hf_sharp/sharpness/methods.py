"""The sharpness methods, each described by one record.

A method is a vector c of K coefficients: c_y is the share of an example's loss that is taken at w + ε.

    gradient = ∇ mean((1 − c_y) ℓ)(w) + ∇ mean(c_y ℓ)(w + ε)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_sharp.registry import Citation, Registry, option_names
from hf_sharp.registry.limits import check_number
from hf_sharp.sharpness.class_conditional import ClassConditionalLoss

SAM = Citation(
    "Pierre Foret and Ariel Kleiner and Hossein Mobahi and Behnam Neyshabur",
    "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    2020,
    arxiv="2010.01412",
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A sharpness method.

    Args:
        name: what `SharpTrainingArguments(sharpness=...)` calls it.
        coefficients: computes c (K,), finite numbers >= 0. It takes `priors` (K,) float64, or `class_counts` (K,)
            int64, or both; its other parameters are options of the method.
        summary: what it does, in one sentence.
        formula: its coefficients.
        when: when to choose it.
        passes: the cost of a step, as a multiple of a plain step's forward and backward pass.
        citations: the papers to cite.
        needs_radius: whether it perturbs all weights, within a radius.
        radius: the default radius, for an ascent along a gradient.
        uniform: whether c is 1 for every class.
        wrap_loss: for a method that changes the loss instead: takes the training loss and the method's options, and
            returns the loss to train with, which also gets the head's input.

    Example:
        >>> method = Method(name="rare_half", coefficients=lambda priors: (priors < 0.1) * 0.5)
        >>> method.options
        ('rho', 'rho_schedule', 'sharpness_after', 'adaptive', 'ascent')
    """

    name: str
    coefficients: Callable[..., Any] = field(repr=False)
    summary: str = ""
    formula: str = ""
    when: str = ""
    passes: str = ""
    citations: tuple[Citation, ...] | None = None
    needs_radius: bool = True
    radius: float = 0.05
    uniform: bool = False
    wrap_loss: Callable[..., Any] | None = None

    @property
    def coefficient_options(self) -> tuple[str, ...]:
        """The names of the options that `coefficients` takes."""
        return option_names(self.coefficients, without=("class_counts", "priors"))

    @property
    def options(self) -> tuple[str, ...]:
        """The fields of `SharpTrainingArguments` that have an effect with this method."""
        of_radius = ("rho", "rho_schedule", "sharpness_after", "adaptive", "ascent") if self.needs_radius else ()
        return (*of_radius, *self.coefficient_options)

    @property
    def needs_features(self) -> bool:
        """Whether the method uses the head's input."""
        return self.wrap_loss is not None


METHODS: Registry[Method] = Registry(
    "sharpness method",
    described=("summary", "formula", "when", "passes", "citations"),
    defined_by=lambda method: method.coefficients,
)


def register_method(method: Method) -> Method:
    """Register a method, so that arguments and YAML files can select it as `sharpness="its name"`.

    Args:
        method: the method; only a new `name` and `coefficients` are required.

    Returns:
        The method.

    Raises:
        ValueError: the name is taken or missing, or it is no `Method` whose coefficients are a function.

    Example:
        >>> _ = register_method(Method(name="sqrt", coefficients=lambda priors: (1 - priors) ** 0.5))
        >>> from hf_sharp.sharpness import class_coefficients
        >>> class_coefficients("sqrt", [3, 1])
        tensor([0.5000, 0.8660], dtype=torch.float64)
        >>> METHODS.unregister("sqrt")
    """
    if not (isinstance(method, Method) and callable(method.coefficients)):
        raise ValueError(
            "register_method takes a Method(name=..., coefficients=...), whose coefficients are a function of priors "
            f"or class_counts; got {method!r}."
        )
    return METHODS.register(method)


def _none(class_counts: Tensor) -> Tensor:
    return torch.zeros(len(class_counts), dtype=torch.float64)


def _sam(class_counts: Tensor) -> Tensor:
    return torch.ones(len(class_counts), dtype=torch.float64)


def _imbsam(class_counts: Tensor, rare_threshold: int = 20) -> Tensor:
    rare = class_counts < rare_threshold
    if not (rare & (class_counts > 0)).any():
        raise ValueError(
            f"sharpness='imbsam' perturbs the classes with fewer than rare_threshold={rare_threshold} examples, but "
            f"the smallest class has {int(class_counts.min())}. Raise rare_threshold, or choose sharpness='sam'."
        )
    return rare.double()


FOCAL_SAMPLINGS = ("exact", "stochastic")


def _focal_sam(
    priors: Tensor, focal_gamma: float = 1.0, focal_lambda: float = 0.8, focal_sampling: str = "exact"
) -> Tensor:
    for name, value in (("focal_gamma", focal_gamma), ("focal_lambda", focal_lambda)):
        check_number(name, value, least=0)
    coefficients = focal_lambda * (1 - priors) ** focal_gamma
    if focal_sampling == "stochastic" and (coefficients > 1).any():
        raise ValueError(
            "focal_sampling='stochastic' uses the coefficients as probabilities, but the largest is "
            f"{coefficients.max():.3g} with focal_lambda={focal_lambda}. Choose focal_lambda <= 1, or "
            "focal_sampling='exact'."
        )
    return coefficients


def _cc_sam(class_counts: Tensor, cc_radius: float = 1e-6, cc_phi: float = 0.5) -> Tensor:
    check_number("cc_radius", cc_radius, least=0)
    check_number("cc_phi", cc_phi, least=0, most=1, share=True)
    return _none(class_counts)


METHODS.add_builtin(
    Method(
        name="none",
        coefficients=_none,
        summary="No sharpness-aware step: one gradient, as in plain training.",
        formula="c = 0",
        when="as the baseline that every method has to beat",
        passes="1",
        citations=(),
        needs_radius=False,
    )
)
METHODS.add_builtin(
    Method(
        name="sam",
        coefficients=_sam,
        summary="SAM: the gradient is taken where the loss is worst within the radius ρ.",
        formula="c = 1",
        when='with `ascent="momentum"`, the first to try; along the gradient, as the reference for the others',
        passes="2",
        citations=(SAM,),
        uniform=True,
    )
)
METHODS.add_builtin(
    Method(
        name="imbsam",
        coefficients=_imbsam,
        summary="ImbSAM: the gradient of the rare classes' loss is taken where it is worst within the radius ρ.",
        formula="c = 1 if n < rare_threshold, else 0",
        when="when frequent classes must not lose accuracy",
        passes="1 + the share of rare examples",
        citations=(
            SAM,
            Citation(
                "Yixuan Zhou and Yi Qu and Xing Xu and Hengtao Shen",
                "ImbSAM: A Closer Look at Sharpness-Aware Minimization in Class-Imbalanced Recognition",
                2023,
                arxiv="2308.07815",
            ),
        ),
    )
)
METHODS.add_builtin(
    Method(
        name="focal_sam",
        coefficients=_focal_sam,
        summary="Focal-SAM: a share λ(1 − π)^γ of each class's loss is taken where it is worst within the radius ρ.",
        formula="c = λ (1 − π)^γ",
        when="to compare with momentum-SAM, where a step may cost 2.67 times a plain one",
        passes="2.67",
        citations=(
            SAM,
            Citation(
                "Sicong Li and Qianqian Xu and Zhiyong Yang and Zitai Wang and Linchao Zhang and Xiaochun Cao and "
                "Qingming Huang",
                "Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed Classification",
                2025,
                arxiv="2505.01660",
            ),
        ),
    )
)
METHODS.add_builtin(
    Method(
        name="cc_sam",
        coefficients=_cc_sam,
        summary="CC-SAM: the classifier head is perturbed along the gradient of each class's own loss.",
        formula="loss = (1 − φ) ℓ(θ) + φ ℓ(θ + δ_y)",
        when="as a published baseline: it did not help in our runs",
        passes="1",
        citations=(
            Citation(
                "Zhipeng Zhou and Lanqing Li and Peilin Zhao and Pheng-Ann Heng and Wei Gong",
                "Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition",
                2023,
                venue="CVPR",
            ),
        ),
        needs_radius=False,
        wrap_loss=ClassConditionalLoss,
    )
)

# The default radii of the other ascents and metrics. Momentum-SAM's is 15 times SAM's, the ratio that its authors use
# (arXiv 2401.12033: 3 and 0.2) and the best one on average over five tasks (docs/sharpness/ascents.md). ASAM's radii
# raise the loss as much as SAM does at 0.05 (benchmarks/asam_scope.py).
MOMENTUM_RADIUS = 0.75
ADAPTIVE_RADIUS = {"all": 1.0, "matrices": 0.15}


def default_radius(sharpness: str, ascent: str, adaptive: bool, adaptive_scope: str) -> float:
    """Look up the radius that `rho=None` stands for.

    Args:
        sharpness: one of `METHODS`.
        ascent: the kind of ascent.
        adaptive: whether the radius is relative to the size of each weight.
        adaptive_scope: the tensors with a relative radius.

    Returns:
        The radius.

    Example:
        >>> default_radius("sam", "gradient", False, "all"), default_radius("sam", "momentum", False, "all")
        (0.05, 0.75)
    """
    if adaptive:
        return ADAPTIVE_RADIUS[adaptive_scope]
    return METHODS[sharpness].radius if ascent == "gradient" else MOMENTUM_RADIUS
