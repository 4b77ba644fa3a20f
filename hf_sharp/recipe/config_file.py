"""Config files: YAML mappings of options. Works without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hf_sharp.registry.nearest import did_you_mean


def read_config(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a YAML file of options.

    Args:
        file: the path of the file.

    Returns:
        The options as parsed by YAML, and as the strings written in the file.

    Raises:
        ValueError: the file is missing, not YAML, or not a mapping.
    """
    path = Path(file)
    if not path.is_file():
        others = ["baseline", *(str(path.parent / other.name) for other in path.parent.glob("*.y*ml"))]
        raise ValueError(f"the config file {file!r} does not exist.{did_you_mean(file, others)}")
    try:
        text = path.read_text(encoding="utf-8")
        values, written = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the config file {file!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the config file {file!r} must be a mapping of options; got {type(values).__name__}.")
    return values, written
