"""What a search for a sharpness method tries, the cheap ones first."""

from __future__ import annotations

from typing import Any

# Name to training options. In the order of cost: one pass, one pass, two, two and two thirds.
CANDIDATES: dict[str, dict[str, Any]] = {
    "none": {"sharpness": "none"},
    "sam, momentum": {"sharpness": "sam", "ascent": "momentum"},
    "sam": {"sharpness": "sam", "ascent": "gradient"},
    "focal_sam": {"sharpness": "focal_sam", "ascent": "gradient"},
}
