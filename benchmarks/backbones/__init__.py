"""Pretrained models that packages ship, as transformers models: see README.md."""
