"""The records in a model's config of changes to its head after training."""

from __future__ import annotations

from typing import Any

RECORD = "hf_sharp_adjustment"  # the correction, the costs or the class shares folded into the head
TEMPERATURE = "hf_sharp_temperature"  # the temperature that the head was divided by


def forget_records(model: Any) -> None:
    """Remove the records from a model's config, because training changes the head again.

    Args:
        model: a transformers model, a PEFT model around one, or any other module; its config is changed in place.
    """
    config = getattr(model, "config", None)
    for key in (RECORD, TEMPERATURE):
        if hasattr(config, key):
            delattr(config, key)
