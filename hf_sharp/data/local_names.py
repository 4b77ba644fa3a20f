"""Names of files and folders that do not exist here, told from names on the Hub. Works without torch."""

from __future__ import annotations

import re
from pathlib import Path

from hf_sharp.registry.nearest import nearest

_NO_HUB_NAME = re.compile(r"[./~]|.*(\s|\\|/$|/.*/)")
_FILES = {".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".text", ".zip", ".jpg", ".jpeg", ".png", ".webp"}


def refuse_missing(name: str, expected: str = "") -> None:
    """Refuse a name that can only be a file or a folder, if there is none.

    Args:
        name: a file, a folder, or a name on the Hub.
        expected: what to name instead.

    Raises:
        ValueError: it does not exist; a similar name beside it is suggested.
    """
    ending = Path(name.lower().removesuffix(".gz")).suffix
    if (_NO_HUB_NAME.match(name) or ending in _FILES) and not Path(name).expanduser().exists():
        raise ValueError(f"the file or folder {name!r} does not exist.{near_here(name)}{expected and f' {expected}'}")


def near_here(name: str) -> str:
    """Ask for the file or folder of the most similar name, as the end of a message: empty where none is near."""
    path = Path(name).expanduser()
    if path.exists() or not path.parent.is_dir():
        return ""
    near = nearest(path.name, [other.name for other in path.parent.iterdir()])
    return f" Did you mean {str(path.parent / near)!r}?" if near else ""


def refuse_no_model(name: str) -> None:
    """Refuse what is on this machine, or could only be, and is no model.

    Args:
        name: a model's folder, or a name on the Hub.

    Raises:
        ValueError: there is no such folder, or it is the one of a comparison, whose models are named.
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
