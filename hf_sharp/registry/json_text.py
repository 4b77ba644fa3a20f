"""Reads options that are given as JSON. Works without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_json(name: str, text: str) -> Any:
    """Read an option whose value is given as JSON.

    Args:
        name: the option's name.
        text: JSON, or the path of a JSON file.

    Returns:
        The value.

    Raises:
        ValueError: `text` is neither JSON nor the path of a JSON file, or a mapping has a key twice.
    """
    try:
        return parse_json(Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text, name)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} is neither JSON nor a JSON file: {error}. Got {text!r}.") from error


def parse_json(text: str, name: str) -> Any:
    """Parse JSON; raise a ValueError if a mapping has a key twice, of which `json` would keep the last value.

    Args:
        text: the JSON.
        name: the option's name, for error messages.
    """
    return json.loads(text, object_pairs_hook=lambda pairs: _as_mapping(pairs, name))


def _as_mapping(pairs: Sequence[tuple[str, Any]], name: str) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys if len(set(keys)) < len(keys) else ():
        if keys.count(key) > 1:
            raise ValueError(f"{name} has {key!r} twice. Keep one of them.")
    return dict(pairs)
