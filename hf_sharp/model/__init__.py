"""Inspecting and changing a model: its head, its geometry in theory, its loss surface and curvature."""
