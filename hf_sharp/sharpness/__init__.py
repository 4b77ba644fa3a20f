"""The sharpness engine: coefficients, radius, ascent and the passes of a step. It depends on torch, not on Trainer."""

from hf_sharp.sharpness.ascent import average_over_processes
from hf_sharp.sharpness.class_conditional import class_conditional_losses
from hf_sharp.sharpness.coefficients import class_coefficients
from hf_sharp.sharpness.draws import drawn_rows
from hf_sharp.sharpness.methods import METHODS, Method, register_method
from hf_sharp.sharpness.radius import RHO_SCHEDULES, LearnedRadius, scheduled_rho
from hf_sharp.sharpness.step import Examples, MicroBatch, SharpnessStep, sharpness_aware_backward

__all__ = [
    "METHODS",
    "RHO_SCHEDULES",
    "Examples",
    "LearnedRadius",
    "Method",
    "MicroBatch",
    "SharpnessStep",
    "average_over_processes",
    "class_coefficients",
    "class_conditional_losses",
    "drawn_rows",
    "register_method",
    "scheduled_rho",
    "sharpness_aware_backward",
]
