"""Stages of a long experiment: each one runs once, and its results are reused when the experiment is resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_sharp.reports.results import write_json


def resume_stage(file: Path, options: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the saved results of a stage; run the stage first if it has not finished.

    Args:
        file: the JSON file with the stage's results, which is written atomically.
        options: the options that the results depend on, saved with them.
        run: runs the stage and returns its results.

    Returns:
        The results, as they are in the file.

    Raises:
        ValueError: the stage finished with other options.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "stage.json")
        >>> resume_stage(file, {"seed": 0}, lambda: {"accuracy": 0.5})["accuracy"]
        0.5
        >>> resume_stage(file, {"seed": 0}, lambda: {"accuracy": 0.9})["accuracy"]  # it does not run again
        0.5
    """
    if not file.exists():
        results = {"options": options, **run()}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, results)
    saved = json.loads(file.read_text(encoding="utf-8"))
    then, now = saved["options"], json.loads(json.dumps(options))
    if then != now:
        changed = [key for key in now | then if then.get(key) != now.get(key)]
        differences = ", ".join(f"{key}: {then.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        raise ValueError(f"{str(file)!r} was written with other options ({differences}). Choose another output_dir.")
    return saved
