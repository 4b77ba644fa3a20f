"""How flat a trained model's loss is: public names."""

from hf_sharp.model.curvature import (
    average_sharpness,
    hessian_traces,
    losses_along,
    measure_curvature,
    top_eigenvalues,
    worst_case_sharpness,
)
from hf_sharp.model.loss_surface import GROUPS, LossSurface, cross_entropy, stratified_sample

__all__ = [
    "GROUPS",
    "LossSurface",
    "average_sharpness",
    "cross_entropy",
    "hessian_traces",
    "losses_along",
    "measure_curvature",
    "stratified_sample",
    "top_eigenvalues",
    "worst_case_sharpness",
]
