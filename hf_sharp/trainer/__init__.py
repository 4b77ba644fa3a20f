"""`SharpTrainer`, and what it checks, saves and resumes."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_sharp.trainer.sharp_trainer import SharpTrainer as SharpTrainer

__all__ = ["SharpTrainer"]


def __getattr__(name: str) -> Any:
    # Deferred: the checks and the functions on checkpoint files do not need the Trainer.
    if name == "SharpTrainer":
        from hf_sharp.trainer.sharp_trainer import SharpTrainer

        return SharpTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
