"""Corrections folded into a trained head: public names."""

from hf_sharp.model.label_shift import ShiftEstimate, estimate_shares, fold_shares
from hf_sharp.model.posthoc import METHODS, STRENGTHS, adjust_head, choose_strength, collect_features
from hf_sharp.model.records import RECORD

__all__ = [
    "METHODS",
    "RECORD",
    "STRENGTHS",
    "ShiftEstimate",
    "adjust_head",
    "choose_strength",
    "collect_features",
    "estimate_shares",
    "fold_shares",
]
