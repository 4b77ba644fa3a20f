"""The rows of the tables: the methods compared, and the settings that each row may choose among."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

PLAIN = {"sharpness": "none", "loss": "cross_entropy"}
ADJUSTED = {"sharpness": "none", "loss": "logit_adjusted"}
RADII = (0.015, 0.05, 0.15)
MOMENTUM_RADII = (0.25, 0.75, 2.5)
ADAPTIVE_RADII = (0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Row:
    """One row of the tables.

    Args:
        options: options of `SharpTrainingArguments` that all runs of the row share.
        tries: further options, one dictionary per setting.
        base: "better", or "today": full fine-tuning and a randomly initialised head.
        control: whether the row always gets final runs.
        further: whether the row waits until all others are finished.
    """

    options: Mapping[str, Any]
    tries: tuple[Mapping[str, Any], ...] = ({},)
    base: str = "better"
    control: bool = False
    further: bool = False


def _settings(name: str, values: Sequence[Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple({name: value} for value in values)


def _sharp(radii: Sequence[float] = (), *, further: bool = False, **options: Any) -> Row:
    return Row({"loss": "logit_adjusted", **options}, _settings("rho", radii) or ({},), further=further)


ROWS: dict[str, Row] = {
    "cross-entropy, today's base": Row(PLAIN, base="today", control=True),
    "inverse-frequency weights, today's base": Row(PLAIN | {"loss": "weighted"}, base="today", control=True),
    "cross-entropy": Row(PLAIN, control=True),
    "logit adjustment": Row(ADJUSTED, control=True),
    "logit adjustment, tuned τ": Row(ADJUSTED, ({}, *_settings("loss_tau", (1.5, 2.0))), control=True),
    "momentum-SAM": _sharp(MOMENTUM_RADII, sharpness="sam", ascent="momentum"),
    "momentum-SAM, tuned τ": Row(
        {"loss": "logit_adjusted", "sharpness": "sam", "ascent": "momentum"},
        ({"rho": 0.25, "loss_tau": 2.0}, {"rho": 0.75, "loss_tau": 1.5}, {"rho": 0.75, "loss_tau": 2.0}),
    ),
    "SAM": _sharp(RADII, sharpness="sam"),
    "LETS": _sharp(sharpness="sam", rho=0.05, rho_schedule="learned"),
    "class weights": Row(
        PLAIN,
        (
            {"loss": "weighted"},
            {"loss": "class_balanced", "loss_beta": 0.99},
            {"loss": "class_balanced", "loss_beta": 0.9},
        ),
        control=True,
        further=True,
    ),
    "rare classes drawn more often": Row(
        PLAIN, _settings("sampler", ("class_balanced", "square_root", "progressive")), control=True, further=True
    ),
    "SAM after 80 %": _sharp(RADII, sharpness="sam", sharpness_after=0.8, further=True),
    "Focal-SAM": _sharp(RADII, sharpness="focal_sam", further=True),
    "ImbSAM": _sharp(RADII, sharpness="imbsam", further=True),
    "ASAM": _sharp(ADAPTIVE_RADII, sharpness="sam", adaptive=True, adaptive_scope="all", further=True),
    "LETS as published": _sharp(
        sharpness="sam",
        rho=0.05,
        rho_schedule="learned",
        rho_objective="gap",
        rho_update="adam",
        further=True,
    ),
}
REFERENCE = "logit adjustment"
# Rows of a method that hf_sharp no longer has: the recorded results are kept, and nothing is trained.
LEFT_OUT = ("Focal-SAM, class momentum", "ImbSAM, class momentum")
# Computed from the logits of the source row's runs, without training.
POST_HOC = {
    "cross-entropy, adjusted after training": "cross-entropy",
    "cross-entropy, today's base, adjusted after training": "cross-entropy, today's base",
}
POST_HOC_STRENGTHS = tuple(round(0.1 * step, 1) for step in range(31))


def is_available(options: Mapping[str, Any]) -> bool:
    """Check whether the installed hf_sharp accepts some options.

    Args:
        options: options of `SharpTrainingArguments`.

    Returns:
        True if a run with these options can start. Rows with unknown options are planned once the options exist.
    """
    return _is_accepted(json.dumps(dict(options)))


@cache
def _is_accepted(options: str) -> bool:
    from hf_sharp import SharpTrainingArguments

    try:
        SharpTrainingArguments("unused", use_cpu=True, **json.loads(options))
    except (TypeError, ValueError):
        return False
    return True
