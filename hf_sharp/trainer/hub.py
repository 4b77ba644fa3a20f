"""The Hub: branches, checkpoints to resume from, and pushes without local paths."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path, PurePosixPath

from accelerate.state import PartialState
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_sharp.data.local_paths import without_paths
from hf_sharp.reports.card_metadata import hub_id
from hf_sharp.reports.results import write_whole

logger = logging.getLogger(__name__)

_ON_THE_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>\S+)")
ADAPTER = "adapter_config.json"
_CHECKPOINT = re.compile(rf"(?:last-checkpoint|{PREFIX_CHECKPOINT_DIR}-\d+)")


def fetch_checkpoint(name: str, token: str | None = None) -> str:
    """Download the last checkpoint of `user/repo@revision`; any other name is returned unchanged.

    Args:
        name: a folder, or a repository and one of its revisions.
        token: the Hub token; None uses the token of the login.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: the revision has no checkpoint.
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
                f"{repo!r} has no checkpoint at {revision!r}: push checkpoints with hub_strategy='checkpoint' or "
                "'all_checkpoints'; or start a new training from its weights, with from_pretrained."
            )
        last = checkpoints[-1]
        folder = snapshot_download(repo, revision=info.sha, allow_patterns=[f"{last}/*"], token=token)
    return os.path.join(folder, last)


def _step(folder: str) -> float:
    number = folder.rpartition("-")[2]
    return int(number) if number.isdecimal() else float("inf")  # last-checkpoint is the newest


def make_branch(repo: str, revision: str | None, token: str | None) -> None:
    """Create a branch of a repository, unless it is the default branch or a reference, or already exists."""
    if revision not in (None, constants.DEFAULT_REVISION) and not revision.startswith("refs/"):
        HfApi().create_branch(repo, branch=revision, token=token, exist_ok=True)


# File name to the key whose value may be a local path.
_PATHS = {ADAPTER: "base_model_name_or_path", TRAINER_STATE_NAME: "best_model_checkpoint"}


def hide_paths(folder: str | os.PathLike[str]) -> dict[Path, str]:
    """Shorten local paths to their last component in the files of a folder that is about to be pushed.

    Args:
        folder: a checkpoint, or the folder of a model.

    Returns:
        The changed files and their old contents. This machine needs the full paths: `show_paths` restores them.
    """
    held = {}
    for name, key in _PATHS.items():
        for file in (*Path(folder).glob(name), *Path(folder).glob(f"*/{name}")):
            text = file.read_text(encoding="utf-8")
            content = json.loads(text)
            path = content.get(key) or ""
            if path == without_paths(path):
                continue
            held[file] = text
            write_whole(file, json.dumps(content | {key: without_paths(path)}, indent=2))
            if name == ADAPTER:
                logger.warning("The base model of the adapter is a folder, %s: push it too, so that it loads.", path)
    return held


def show_paths(held: dict[Path, str]) -> None:
    """Restore the files that `hide_paths` changed, if their folder still exists; `held` is empty afterwards."""
    while held:
        file, text = held.popitem()
        if file.parent.is_dir():
            write_whole(file, text)


def name_no_local_base(folder: str | os.PathLike[str]) -> None:
    """Remove the base model from the card that PEFT writes beside an adapter, if it is a local folder.

    Args:
        folder: the adapter's folder.
    """
    file = Path(folder, "README.md")
    if not Path(folder, ADAPTER).is_file() or not file.is_file():
        return
    card = ModelCard.load(file)
    base = card.data.base_model
    if base is not None and hub_id(str(base)) is None:
        card.data.base_model = None
        card.data.tags = [tag for tag in card.data.tags or () if not tag.endswith(f":{base}")]
        card.save(file)
