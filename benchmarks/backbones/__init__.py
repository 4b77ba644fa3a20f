"""Converts pretrained models in public packages to transformers models: see README.md."""
