"""The Hub: pushes that say when they fail, branches made before training, checkpoints to go on from."""

from __future__ import annotations

import logging
import os
import re
from pathlib import PurePosixPath
from typing import Any

from accelerate.state import PartialState
from huggingface_hub import HfApi, constants, snapshot_download
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

_ON_THE_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>\S+)")
_CHECKPOINT = re.compile(rf"(?:last-checkpoint|{PREFIX_CHECKPOINT_DIR}-\d+)")


def fetch_checkpoint(name: str, token: str | None = None) -> str:
    """Download the last checkpoint of `user/repo@revision`; anything else is returned as it is.

    Args:
        name: a folder, or a repository and a revision of it.
        token: the Hub's; None: the one that is logged in.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: there is no checkpoint in that revision.
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
    return int(number) if number.isdecimal() else float("inf")  # last-checkpoint is the last one


class HubTrainer(Trainer):
    """`Trainer` that makes the branch it will push to, and says of every push that fails that it did."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository as `Trainer` does, and the branch `hub_revision`, before training rather than after.

        Args:
            token: as for `Trainer`.
            private: as for `Trainer`.
        """
        super().init_hf_repo(token, private)
        if self.is_world_process_zero():
            self._make_branch(self.args.hub_revision, token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Push as `Trainer` does; an error says where the model is and how to push it again.

        Args:
            commit_message: as for `Trainer`.
            blocking: as for `Trainer`.
            token: as for `Trainer`.
            revision: the branch; made if there is none of that name.
            private: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            As `Trainer`.
        """
        try:
            if revision is not None and self.is_world_process_zero():
                if self.hub_model_id is None:
                    self.init_hf_repo(token, private)
                self._make_branch(revision, token)
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        except Exception as error:
            error.add_note(
                f"Nothing that was saved in {str(self.args.output_dir)!r} is lost. Push it again with "
                f"trainer.push_to_hub(), or: hf upload {self.hub_model_id or 'USER/MODEL'} {self.args.output_dir} "
                f"--exclude '{PREFIX_CHECKPOINT_DIR}-*'"
            )
            raise

    def _make_branch(self, revision: str | None, token: str | None) -> None:
        if revision not in (None, constants.DEFAULT_REVISION) and not revision.startswith("refs/"):
            token = self.args.hub_token if token is None else token
            HfApi().create_branch(str(self.hub_model_id), branch=revision, token=token, exist_ok=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._tell_of_failed_pushes()  # before Trainer forgets them
        super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._tell_of_failed_pushes()

    def _tell_of_failed_pushes(self) -> None:
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", [])
        for job in [job for job in jobs if job.done()]:
            jobs.remove(job)
            if not job.cancelled() and (error := job.exception()) is not None:
                logger.warning("A checkpoint was not pushed to %s: %s", self.hub_model_id, error)
