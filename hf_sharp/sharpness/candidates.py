"""The sharpness methods that a search tries, the cheapest first."""

from __future__ import annotations

from typing import Any

# Name to training options, in the order of the passes per step: 1, 1, 2 and 2⅔.
CANDIDATES: dict[str, dict[str, Any]] = {
    "none": {"sharpness": "none"},
    "sam, momentum": {"sharpness": "sam", "ascent": "momentum"},
    "sam": {"sharpness": "sam", "ascent": "gradient"},
    "focal_sam": {"sharpness": "focal_sam", "ascent": "gradient"},
}
