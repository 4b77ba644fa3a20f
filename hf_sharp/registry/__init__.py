"""Records by name: what a method or a loss says about itself, and what to cite for it."""

from hf_sharp.registry.citations import Citation
from hf_sharp.registry.records import Choice, Registry, option_names

__all__ = ["Choice", "Citation", "Registry", "option_names"]
