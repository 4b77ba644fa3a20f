"""Checks names of files and folders that do not exist, and may be names on the Hub. Works without torch."""

from __future__ import annotations

import re
from pathlib import Path

from hf_sharp.registry.nearest import nearest

_NO_HUB_NAME = re.compile(r"[./~]|.*(\s|\\|/$|/.*/)")
_FILES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".text", ".zip", ".jpg", ".jpeg", ".png", ".webp"}
ORDER = "In a command that takes both, the model comes before the data."


def refuse_missing(name: str, expected: str = "") -> None:
    """Raise a ValueError if a name can only be a file or folder, not a name on the Hub, and does not exist.

    Args:
        name: a file, a folder, or a name on the Hub.
        expected: what the user should name instead, for error messages.

    Raises:
        ValueError: the file or folder does not exist; the error suggests a similar name in the same folder.
    """
    ending = Path(name.lower().removesuffix(".gz")).suffix
    if (_NO_HUB_NAME.match(name) or ending in _FILES) and not Path(name).expanduser().exists():
        raise ValueError(f"the file or folder {name!r} does not exist.{near_here(name)}{expected and f' {expected}'}")


def near_here(name: str) -> str:
    """Return a question that suggests the file or folder with the most similar name; empty if none is similar."""
    path = Path(name).expanduser()
    if path.exists() or not path.parent.is_dir():
        return ""
    near = nearest(path.name, [other.name for other in path.parent.iterdir()])
    return f" Did you mean {str(path.parent / near)!r}?" if near else ""


def refuse_model(name: str) -> None:
    """Raise a ValueError if the name of data is the folder of a model.

    Args:
        name: a file, a folder, or a name on the Hub.

    Raises:
        ValueError: it is a folder with the config and the weights of a model or an adapter.
    """
    folder = Path(name).expanduser()
    configs = [file for file in ("config.json", "adapter_config.json") if (folder / file).exists()]
    weights = sorted(file.name for ending in ("safetensors", "bin") for file in folder.glob(f"*.{ending}"))
    if configs and weights:
        raise ValueError(
            f"{name!r} is the folder of a model (it has {configs[0]} and {weights[0]}), not of data. {ORDER}"
        )


def refuse_no_model(name: str) -> None:
    """Raise a ValueError if a name is, or can only be, a file or folder that is not a model.

    Args:
        name: a model's folder, or a name on the Hub.

    Raises:
        ValueError: there is no such folder, or it is a file or the folder of a comparison (the error names its models).
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").exists():
        inside = sorted(file.parent for file in folder.glob("*/config.json"))
        if inside:
            names = ", ".join(repr(model.name) for model in inside)
            raise ValueError(f"the folder {name!r} holds the models {names}: name one of them, as {str(inside[0])!r}.")
    if folder.is_file():
        raise ValueError(f"{name!r} is a file. Name the folder of the model.")
    refuse_missing(name, "Expected a model's folder, or its name on the Hub.")
