"""`SharpTrainer`, with its checks, saving and resuming."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_sharp.trainer.sharp_trainer import SharpTrainer as SharpTrainer

__all__ = ["SharpTrainer"]


def __getattr__(name: str) -> Any:
    # Imported lazily: the checks and the checkpoint functions do not need the Trainer.
    if name == "SharpTrainer":
        from hf_sharp.trainer.sharp_trainer import SharpTrainer

        return SharpTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
