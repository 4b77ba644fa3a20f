"""Registries: records that describe methods and losses, by name, and the papers to cite for them."""

from hf_sharp.registry.citations import Citation
from hf_sharp.registry.records import Choice, Registry, option_names

__all__ = ["Choice", "Citation", "Registry", "option_names"]
