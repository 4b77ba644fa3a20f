"""Inspect and change a model: its head, its predicted geometry, its loss surface and its curvature."""
