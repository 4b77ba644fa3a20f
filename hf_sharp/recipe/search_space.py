"""The search space of `hf-sharp tune`: the options, their ranges, and the first runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hf_sharp.losses.registry import loss_options
from hf_sharp.model.posthoc import STRENGTHS
from hf_sharp.recipe.flags import check_names
from hf_sharp.sharpness.candidates import CANDIDATES
from hf_sharp.sharpness.methods import METHODS, default_radius
from hf_sharp.training_args import SharpTrainingArguments

METHOD, RADIUS, TAU = "method", "rho", "loss_tau"
SEARCHED = (METHOD, RADIUS, TAU)
_CORRECTS = "logit_adjusted"  # the loss whose strength is searched if the config's loss has none
# Multiples of the default radius. Along a gradient, the default is the paper's, and smaller radii did better
# (docs/evidence.md).
_FIRST_RADIUS = {"gradient": 0.4, "momentum": 1.0}
_RADII = (0.1, 4.0)  # multiples of the default radius


@dataclass(frozen=True)
class Range:
    """The values of an option: from low to high, or one of some choices.

    Attributes:
        low: the lowest value.
        high: the highest value.
        log: whether the option is searched, and plotted, on a log scale.
        choices: the values of an option that is not a number.
        of_loss: whether the option belongs to the losses that take it.
    """

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()
    of_loss: bool = False


# The options that can be searched in addition to method, radius and strength. The range of the learning rate is given
# in multiples of the config's value.
EXTRA = {
    "learning_rate": Range(0.2, 5.0, log=True),
    "focal_gamma": Range(0.25, 4.0, log=True),
    "loss_gamma": Range(0.05, 2.0, log=True, of_loss=True),
    "loss_margin": Range(0.1, 1.0, log=True, of_loss=True),
    "head_init": Range(choices=("none", "class_mean")),
}


class SearchSpace:
    """The options to search for a config.

    Args:
        values: the config's options.
        search: the names of the options to search: method, rho, loss_tau, and those in `EXTRA`.

    Raises:
        ValueError: a name is unknown or named twice, or the config's loss does not take an option.
    """

    def __init__(self, values: Mapping[str, Any], search: Sequence[str] = SEARCHED) -> None:
        check_names(search, [*SEARCHED, *EXTRA], "option to search")
        if len(set(search)) < len(search):
            raise ValueError(f"an option to search is named twice: {', '.join(search)}.")
        defaults = {item.name: item.default for item in fields(SharpTrainingArguments)}
        self.values, self.search = {**defaults, **values}, tuple(search)
        plain = values.get("loss") in (None, "", "cross_entropy")
        self.loss = _CORRECTS if plain and TAU in search else self.values["loss"]
        accepted = loss_options(self.loss)
        if TAU in search and TAU not in accepted:
            raise ValueError(
                f"loss {self.loss!r} has no {TAU}: leave it out with --search {METHOD} {RADIUS}, or choose another "
                "loss."
            )
        for name in search:
            if name in EXTRA and EXTRA[name].of_loss and name not in accepted:
                raise ValueError(f"loss {self.loss!r} does not take {name}; it takes {', '.join(sorted(accepted))}.")
        own = {name: self.values[name] for name in ("sharpness", "ascent")}
        self.candidates = dict(CANDIDATES)
        if METHOD not in search:
            known = (name for name, options in CANDIDATES.items() if options.items() <= own.items())
            self.candidates = {next(known, own["sharpness"]): own}
        taken = {option for options in self.candidates.values() for option in METHODS[options["sharpness"]].options}
        for name in search:
            if name in (RADIUS, "focal_gamma") and name not in taken:
                raise ValueError(
                    f"{name} has no effect with sharpness {own['sharpness']!r}: search {METHOD} too, or leave {name} "
                    "out."
                )

    def options(self, trial: Any) -> dict[str, Any]:
        """Choose the training options of a trial.

        Args:
            trial: an Optuna trial, or another object with `suggest_float` and `suggest_categorical`.

        Returns:
            The options that differ from the config; None stands for the default.
        """
        names = list(self.candidates)
        name = trial.suggest_categorical(METHOD, names) if METHOD in self.search else names[0]
        change = dict(self.candidates[name])
        if RADIUS in self.search and RADIUS in METHODS[change["sharpness"]].options:
            low, high = self.radii(name)
            change[RADIUS] = _rounded(trial.suggest_float(radius_of(name), low, high, log=True))
            if self.values["rho_schedule"] in ("learned", "step"):
                change |= dict.fromkeys(("rho_schedule", "rho_steps"))
        if TAU in self.search:
            change |= {"loss": self.loss, TAU: _rounded(trial.suggest_float(TAU, 0.0, STRENGTHS[-1]))}
        for option in self.search:
            if option not in EXTRA or (option == "focal_gamma" and option not in METHODS[change["sharpness"]].options):
                continue
            if EXTRA[option].choices:
                change[option] = trial.suggest_categorical(option, EXTRA[option].choices)
            else:
                change[option] = _rounded(trial.suggest_float(option, *self.limits(option), log=EXTRA[option].log))
        return change

    def radii(self, candidate: str) -> tuple[float, float]:
        """Return the lowest and the highest radius of a candidate."""
        options = self.candidates[candidate]
        default = default_radius(
            options["sharpness"],
            options.get("ascent", "gradient"),
            self.values["adaptive"],
            self.values["adaptive_scope"],
        )
        return _RADII[0] * default, _RADII[1] * default

    def limits(self, option: str) -> tuple[float, float]:
        """Return the lowest and the highest value of an option in `EXTRA`."""
        factor = float(self.values["learning_rate"]) if option == "learning_rate" else 1.0
        return EXTRA[option].low * factor, EXTRA[option].high * factor

    def first(self) -> dict[str, Any]:
        """Return the parameters of the first run: the cheapest method, without a correction for class counts."""
        return self._run(next(iter(self.candidates)), 0.0)

    def ladder(self, tau: float) -> list[dict[str, Any]]:
        """List the parameters of the runs after the first one: every method once, the cheapest first.

        Args:
            tau: the strength to use, chosen without training.

        Returns:
            The parameters of each run.
        """
        runs = [self._run(name, tau) for name in self.candidates]
        return runs if TAU in self.search and tau > 0 else runs[1:]

    def _run(self, name: str, tau: float) -> dict[str, Any]:
        run: dict[str, Any] = {}
        if METHOD in self.search:
            run[METHOD] = name
        if RADIUS in self.search and RADIUS in METHODS[self.candidates[name]["sharpness"]].options:
            ascent = self.candidates[name].get("ascent", "gradient")
            run[radius_of(name)] = self.radii(name)[0] / _RADII[0] * _FIRST_RADIUS.get(ascent, 1.0)
        if TAU in self.search:
            run[TAU] = tau
        if "learning_rate" in self.search:
            run["learning_rate"] = float(self.values["learning_rate"])
        if "head_init" in self.search:
            run["head_init"] = "none"
        return run


def radius_of(candidate: str) -> str:
    """Return the parameter name of a candidate's radius: each candidate has its own scale."""
    return f"{RADIUS} ({candidate})"


def is_log(parameter: str) -> bool:
    """Tell whether a parameter is searched, and plotted, on a log scale."""
    return parameter.startswith(RADIUS) or (parameter in EXTRA and EXTRA[parameter].log)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
