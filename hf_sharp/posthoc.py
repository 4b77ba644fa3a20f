"""Corrections folded into a trained head: public names."""

from hf_sharp.model.posthoc import METHODS, RECORD, STRENGTHS, adjust_head, choose_strength, collect_features

__all__ = ["METHODS", "RECORD", "STRENGTHS", "adjust_head", "choose_strength", "collect_features"]
