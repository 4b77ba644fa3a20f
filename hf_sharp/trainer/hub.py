"""The Hub: branches, and checkpoints to resume from."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from accelerate.state import PartialState
from huggingface_hub import HfApi, constants, snapshot_download
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_sharp.reports.markdown import without_paths

logger = logging.getLogger(__name__)

_ON_THE_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>\S+)")
_CHECKPOINT = re.compile(rf"(?:last-checkpoint|{PREFIX_CHECKPOINT_DIR}-\d+)")


def fetch_checkpoint(name: str, token: str | None = None) -> str:
    """Download the last checkpoint of `user/repo@revision`; any other name is returned unchanged.

    Args:
        name: a folder, or a repository and one of its revisions.
        token: the Hub's token; None uses the login.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: that revision has no checkpoint.
    """
    if os.path.isdir(name) or (found := _ON_THE_HUB.fullmatch(name)) is None:
        return name
    repo, revision = found["repo"], found["revision"]
    with PartialState().local_main_process_first():
        info = HfApi().model_info(repo, revision=revision, token=token)
        folders = {PurePosixPath(file.rfilename).parts[0] for file in info.siblings or []}
        checkpoints = sorted(filter(_CHECKPOINT.fullmatch, folders), key=_step)
        if not checkpoints:
            raise ValueError(
                f"{repo!r} has no checkpoint at {revision!r}: push them with hub_strategy='checkpoint' or "
                "'all_checkpoints'; or start a new training from its weights, with from_pretrained."
            )
        last = checkpoints[-1]
        folder = snapshot_download(repo, revision=info.sha, allow_patterns=[f"{last}/*"], token=token)
    return os.path.join(folder, last)


def _step(folder: str) -> float:
    number = folder.rpartition("-")[2]
    return int(number) if number.isdecimal() else float("inf")  # last-checkpoint is the newest


def make_branch(repo: str, revision: str | None, token: str | None) -> None:
    """Create a branch of a repository, unless it is the default one, a reference, or exists."""
    if revision not in (None, constants.DEFAULT_REVISION) and not revision.startswith("refs/"):
        HfApi().create_branch(repo, branch=revision, token=token, exist_ok=True)


def name_base_only(folder: str | os.PathLike[str]) -> Callable[..., None]:
    """Let an adapter's config name a base model in a local folder by its last part only, as it is about to be pushed.

    Args:
        folder: the adapter's.

    Returns:
        A function that restores the path, which loading the adapter on this machine needs; its arguments are ignored.
    """
    file = Path(folder, "adapter_config.json")
    written = file.read_text(encoding="utf-8") if file.is_file() else None
    config = json.loads(written or "{}")
    base = config.get("base_model_name_or_path") or ""
    if written is None or base == without_paths(base):
        return lambda *_: None
    config["base_model_name_or_path"] = without_paths(base)
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    logger.warning("The base model of the adapter is a folder, %s: push it too, so that others can load both.", base)

    def restore(*_: Any) -> None:
        file.write_text(written, encoding="utf-8")

    return restore
