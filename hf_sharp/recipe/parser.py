"""Reads the options of a recipe: a YAML file of defaults, and flags that override it."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, get_type_hints

from transformers import HfArgumentParser

from hf_sharp.option_checks import AT_LEAST, check_least
from hf_sharp.recipe.boundary import stage
from hf_sharp.recipe.config_file import read_config
from hf_sharp.recipe.flags import check_names, flag_names, raise_errors, refuse_words

_AT_LEAST = AT_LEAST | {"max_length": 1, "batch_size": 1}
_NUMBERS: dict[Any, str] = {int: "an integer", float: "a number"}


class RecipeParser:
    """Reads `--config file.yaml` for defaults and flags that override it.

    Args:
        argument_classes: dataclasses of arguments; one of them is `SharpTrainingArguments`.
        argv: the command line without the program's name; None for that of this process.

    Raises:
        ValueError: the config file is missing, not YAML or not a mapping; or a key or flag is unknown (the nearest
            valid name is suggested).
    """

    def __init__(self, argument_classes: Sequence[Any], argv: Sequence[str] | None = None) -> None:
        self._parser = HfArgumentParser(tuple(argument_classes), allow_abbrev=False)
        raise_errors(self._parser)
        self._parser.add_argument("--config", help="A YAML file of defaults; flags override it.")
        for action in self._parser._actions:
            action.default = argparse.SUPPRESS  # to know which flags were set
        hints = (hint for kind in argument_classes for hint in get_type_hints(kind).items())
        self._texts = {name for name, hint in hints if hint in (str, str | None)}
        self._actions = {action.dest: action for action in reversed(self._parser._actions) if action.dest != "help"}
        parsed, unknown = self._parser.parse_known_args(argv)
        refuse_words(unknown, self._actions)
        flags = vars(parsed)
        config = flags.pop("config", None)
        defaults = self.read(config) if config else {}
        for name, alternative in (("model_name_or_path", "model_config"), ("model_config", "model_name_or_path")):
            if name in flags:  # a flag that names the model overrides both options that can name it
                defaults.pop(alternative, None)
        self.values: dict[str, Any] = defaults | flags

    def read(self, file: str) -> dict[str, Any]:
        """Read a YAML file of options and check its keys."""
        values, written = read_config(file)
        check_names(values, self._actions, f"key in {file}")
        return {key: self._typed(key, value, written[key]) for key, value in values.items()}

    def read_inline(self, text: str) -> dict[str, Any]:
        """Read options written as `loss=vs,loss_gamma=0.2` and check their names."""
        pairs = [item.partition("=") for item in text.split(",")]
        check_names([name for name, _, _ in pairs], self._actions, f"option in {text!r}")
        if not all(value for _, _, value in pairs):
            raise ValueError(f"expected option=value,option=value; got {text!r}.")
        return {name: self._typed(name, value, value) for name, _, value in pairs}

    def set_defaults(self, **defaults: Any) -> None:
        """Set values for options that were not set."""
        self.values = defaults | self.values

    def build(self, **overrides: Any) -> tuple[Any, ...]:
        """Make the argument dataclasses from the options, with `overrides` (None restores the default)."""
        values = {key: value for key, value in (self.values | overrides).items() if value is not None}
        check_least(values, _AT_LEAST)
        with stage("the options do not fit together"):
            return tuple(self._parser.parse_dict(values))

    def _typed(self, key: str, value: Any, written: Any) -> Any:
        # Converted as on the command line: YAML reads 1e-3 as a string, `no` as false and 001 as 1.
        action = self._actions[key]
        convert = action.type
        if value is None:
            return None
        if key in self._texts and isinstance(value, (dict, list)):
            raise ValueError(f"{key} must be a text, got {value!r}.")
        if key in ("class_importance", "cost_matrix") and isinstance(value, dict):
            return _named_as_written(value, written)
        if convert is str and action.nargs in ("*", "+"):
            return list(map(str, written)) if isinstance(value, (list, tuple)) else [written]
        if action.nargs in ("*", "+"):
            return list(value) if isinstance(value, (list, tuple)) else [value]
        if convert is str and not isinstance(value, (dict, list)):
            return written
        number = _NUMBERS.get(convert)
        broken = convert is int and isinstance(value, float) and not value.is_integer()
        if number and (broken or isinstance(value, bool) or not isinstance(value, (int, float, str))):
            raise ValueError(f"{key} must be {number}, got {value!r}.")
        if convert is int and isinstance(value, float):
            return int(value)
        if not isinstance(value, str) or not callable(convert):
            return value
        try:
            return convert(value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            why = f"must be {number}, got {value!r}." if number else f"cannot be {value!r}: {error}"
            raise ValueError(f"{key} {why}") from error


def _named_as_written(value: Any, written: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _named_as_written(inner, written[name]) for name, inner in zip(written, value.values(), strict=True)}


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A help formatter that shows defaults, keeps line breaks, and shows only one spelling of every flag."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # By default, a command uses the data of the training, so the dataclass default is not shown.
        return action.help if action.default is None or action.dest == "dataset" else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flags = [flag for flag in action.option_strings if flag.replace("-", "_") not in self._others(action, flag)]
        value = self._format_args(action, self._get_default_metavar_for_optional(action)) if action.nargs != 0 else ""
        return f"{', '.join(flags)} {value}".rstrip()

    @staticmethod
    def _others(action: argparse.Action, flag: str) -> set[str]:
        # The other flags of an option, with underscores for dashes, if this flag has dashes inside.
        inside = "-" in flag.lstrip("-")
        return {other.replace("-", "_") for other in action.option_strings if other != flag} if inside else set()


def command_parser(
    name: str, classes: Sequence[Any], description: str, example: str, statuses: str = "", data: str | None = None
) -> HfArgumentParser:
    """Make the parser of a command that takes a model and data.

    Args:
        name: the name of the command.
        classes: the dataclasses of its options.
        description: what the command does.
        example: one or more command lines, of at most 80 characters each.
        statuses: the meaning of exit statuses other than 0 and 1.
        data: the help text of a required argument DATA. Default: an optional argument DATASET, the same as --dataset.

    Returns:
        The parser; its positional arguments are `model` and `data`.
    """
    ends = f"exit status: 0, or 1 after a mistake, which is named in one line{statuses and '; '}{statuses}"
    parser = HfArgumentParser(
        tuple(classes),
        prog=f"hf-sharp {name}",
        description=textwrap.fill(description, 80),
        epilog=f"examples:\n\n{example}\n\n{textwrap.fill(ends, 80)}",
        allow_abbrev=False,
        formatter_class=Help,
    )
    parser.add_argument("model", metavar="MODEL", help="The model: a folder, or a name on the Hub.")
    if data is None:
        same = "The data; the same as --dataset. Default: the data of the training, with its options."
        parser.add_argument("data", metavar="DATASET", nargs="?", help=same)
    else:
        parser.add_argument("data", metavar="DATA", help=data)
    flags = [action for action in parser._actions if action.option_strings and action.required]
    required = [f"{action.option_strings[0]} {action.dest.upper()}" for action in flags]
    words = ("MODEL", "[DATASET]" if data is None else "DATA", *required, "[options]")
    parser.usage = f"hf-sharp {name} {' '.join(words)}"
    return parser


def read_flags(parser: HfArgumentParser, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Parse a command line into dataclasses.

    Args:
        parser: a parser of dataclasses, which may have further arguments.
        argv: the arguments; None for those of this process.

    Returns:
        An instance of each dataclass, and a namespace of the further arguments, if there are any.

    Raises:
        ValueError: a flag is unknown (the nearest valid one is suggested), there is an extra argument, or a value has
            a wrong type or is not a choice.
    """
    raise_errors(parser)
    with stage("the options do not fit together"):
        *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    refuse_words(unknown, flag_names(parser))
    for values in parsed:
        check_least(vars(values), _AT_LEAST)
    return tuple(parsed)
