"""Options that are read when the trainer is made: later changes take effect, or are refused, before the next use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hf_sharp.trainer.preflight import cost_matrix_of

_OF_THE_HEAD = ("cosine_head", "cosine_scale", "cosine_learn_scale", "cosine_custom_code")


class ReadOnce:
    """Compares the options that are not read again with those that the trainer was made with.

    Args:
        trainer: a `LongTailTrainer` that has read its data. It gets the cost matrix.

    Raises:
        ValueError: as for `settle`.
    """

    def __init__(self, trainer: Any) -> None:
        # With model_init, every training makes a new head.
        of_the_head = _OF_THE_HEAD if trainer.args.cosine_head and trainer.model_init is None else ()
        fixed = ("label_column", "rho_validation_fraction", *of_the_head)
        self.trainer, self.fixed = trainer, {name: getattr(trainer.args, name) for name in fixed}
        self._costs: Any = None
        self.settle()

    def settle(self) -> None:
        """Check the options again, and put the thresholds and costs of the reports into effect.

        Raises:
            ValueError: an option has a wrong value, or was changed although a new trainer is needed for it.
        """
        trainer, args = self.trainer, self.trainer.args
        args.check(unused=False)
        for name, value in self.fixed.items():
            if getattr(args, name) != value:
                raise ValueError(
                    f"{name} was changed from {value!r} to {getattr(args, name)!r}, but it is used when the trainer is "
                    "made. Make a new SharpTrainer with it, or set it back."
                )
        thresholds = {name: getattr(args, name) for name in ("rare_threshold", "common_threshold")}
        frequencies = dataclasses.replace(trainer.class_frequencies, **thresholds)
        is_file = isinstance(args.cost_matrix, (str, Path))  # which is read once
        if not is_file or args.cost_matrix != self._costs:
            trainer.cost_matrix = cost_matrix_of(args.cost_matrix, frequencies)
        trainer.class_frequencies, self._costs = frequencies, args.cost_matrix
        if hasattr(trainer, "report_keeper"):
            trainer.report_keeper.frequencies, trainer.report_keeper.cost_matrix = frequencies, trainer.cost_matrix
