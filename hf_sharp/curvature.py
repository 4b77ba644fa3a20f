"""How flat a trained model's loss is: public names."""

from hf_sharp.model.curvature import average_sharpness, losses_along, measure_curvature, worst_case_sharpness
from hf_sharp.model.group_batches import GROUPS, stratified_sample
from hf_sharp.model.hessian import hessian_traces, top_eigenvalues
from hf_sharp.model.loss_surface import LossSurface, cross_entropy

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
