"""Config files: YAML mappings of options. Works without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hf_sharp.registry.nearest import did_you_mean


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def read_config(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a YAML file of options.

    Args:
        file: the path of the file.

    Returns:
        The options as parsed by YAML, and as the strings written in the file.

    Raises:
        ValueError: the file is missing, not YAML, or not a mapping; or a key is there twice.
    """
    path = Path(file)
    if not path.is_file():
        others = ["baseline", *(str(path.parent / other.name) for other in path.parent.glob("*.y*ml"))]
        raise ValueError(f"the config file {file!r} does not exist.{did_you_mean(file, others)}")
    try:
        text = path.read_text(encoding="utf-8")
        values, written = yaml.load(text, _Loader), yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"the config file {file!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the config file {file!r} must be a mapping of options; got {type(values).__name__}.")
    return values, written
