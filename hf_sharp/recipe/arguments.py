"""What a recipe can be told: a config file of defaults, and flags that override it."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import yaml
from transformers import CONFIG_MAPPING, HfArgumentParser, PreTrainedConfig, PreTrainedModel

from hf_sharp.data.loading import load, prepare_splits
from hf_sharp.data.long_tail import long_tail
from hf_sharp.data.split import split_validation


@dataclass
class DataArguments:
    """Which data, and how long its tail is made."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "'digits', a name on the Hub, a folder (images by class, CSV / JSON / Parquet, IDX, or saved with "
            "save_to_disk), or one CSV / JSON / Parquet file."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    train_split: str = field(default="train", metadata={"help": "The split to train on."})
    test_split: str = field(default="test", metadata={"help": "The split that the final report is about."})
    test_fraction: float | None = field(
        default=None, metadata={"help": "Hold out this share of every class as the test split, where there is none."}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "The split to evaluate on while training. Never the test split."}
    )
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Hold out this share of every training class to evaluate on while training."}
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes, in the order of their numbers."}
    )
    imbalance_factor: float | None = field(
        default=None, metadata={"help": "Make the training split long-tailed: largest over smallest class count."}
    )
    imbalance_profile: str = field(default="exponential", metadata={"help": "Shape of the tail: exponential or step."})
    imbalance_seed: int = field(default=0, metadata={"help": "Seed of the choice of examples for the tail."})

    def __post_init__(self) -> None:
        if self.validation_split == self.test_split:
            raise ValueError(
                f"validation_split and test_split are both {self.test_split!r}: a checkpoint chosen on the test split "
                "makes its report worthless. Choose another validation_split."
            )


@dataclass
class ModelArguments:
    """Which model: pretrained by name or folder, or from scratch by its config."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A model on the Hub, or a folder."})
    model_config: dict | str | None = field(
        default=None,
        metadata={"help": "From scratch: the model's config with its model_type, as YAML mapping or JSON."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.model_config, str):
            self.model_config = json.loads(self.model_config)
        if (self.model_name_or_path is None) == (self.model_config is None):
            raise ValueError("say which model: either model_name_or_path (pretrained) or model_config (from scratch).")
        if isinstance(self.model_config, dict) and "model_type" not in self.model_config:
            raise ValueError(f"model_config needs a model_type, such as vit or bert; it has {list(self.model_config)}.")

    def make_config(self, **head: Any) -> PreTrainedConfig:
        """Make the config of a model from scratch.

        Args:
            **head: options of the head, beside those in `model_config`.

        Returns:
            The config.

        Raises:
            ValueError: an unknown model type, or an option that its config does not have.
        """
        options = dict(self.model_config) if isinstance(self.model_config, dict) else {}
        model_type = options.pop("model_type", None)
        if model_type not in CONFIG_MAPPING:
            near = difflib.get_close_matches(str(model_type), CONFIG_MAPPING, n=1)
            raise ValueError(f"unknown model_type {model_type!r}.{f' Did you mean {near[0]!r}?' if near else ''}")
        known = CONFIG_MAPPING[model_type]()
        for name, value in options.items():
            if not hasattr(known, name):
                near = difflib.get_close_matches(name, vars(known), n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown key in model_config: {name!r} is no option of {model_type!r}.{hint}")
            if isinstance(value, str) and isinstance(getattr(known, name), float):
                options[name] = float(value)  # YAML reads 1e-12 as text
        return CONFIG_MAPPING[model_type](**options, **head)


@dataclass
class RunArguments:
    """Which runs, and what may be written over."""

    compare_with: list[str] | None = field(
        default=None,
        metadata={
            "help": "Runs to put beside this one, with the same data, model and seed: 'baseline' (no sharpness, "
            "cross-entropy), options as loss=vs,loss_gamma=0.2, or a YAML file of those that differ; 'none': no other "
            "run."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write over results that are there already."})


class RecipeParser:
    """Reads `--config file.yaml` for defaults and flags that override it.

    Args:
        argument_classes: dataclasses of arguments; one of them is `SharpTrainingArguments`.
        argv: the command line without the program's name; None: that of this process.

    Raises:
        ValueError: a config file that is missing, not YAML, or not a mapping; an unknown key or flag (the nearest
            valid name is given).
    """

    def __init__(self, argument_classes: Sequence[Any], argv: Sequence[str] | None = None) -> None:
        self.argument_classes = tuple(argument_classes)
        self._parser = HfArgumentParser(self.argument_classes, allow_abbrev=False)
        self._parser.add_argument("--config", help="A YAML file of defaults; flags override it.")
        for action in self._parser._actions:
            action.default = argparse.SUPPRESS  # so that what was given can be told from what was not
        self._actions = {action.dest: action for action in reversed(self._parser._actions) if action.dest != "help"}
        given, unknown = self._parser.parse_known_args(argv)
        flags = vars(given)
        _refuse_words(unknown, self._actions)
        config = flags.pop("config", None)
        defaults = self.read(config) if config else {}
        for one, other in (("model_name_or_path", "model_config"), ("model_config", "model_name_or_path")):
            if one in flags:  # a flag for one of the two ways to say which model overrides the other as well
                defaults.pop(other, None)
        self.values: dict[str, Any] = defaults | flags

    def read(self, file: str) -> dict[str, Any]:
        """Read a YAML file of options, and check its keys."""
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"the config file {file!r} does not exist.")
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"the config file {file!r} is not YAML: {error}") from error
        if not isinstance(loaded, dict):
            raise ValueError(f"the config file {file!r} must be a mapping of options; it is {type(loaded).__name__}.")
        _check_names(loaded, self._actions, f"key in {file}")
        return {key: self._typed(key, value) for key, value in loaded.items()}

    def read_inline(self, text: str) -> dict[str, Any]:
        """Read options written as `loss=vs,loss_gamma=0.2`, and check their names."""
        pairs = [item.partition("=") for item in text.split(",")]
        _check_names([name for name, _, _ in pairs], self._actions, f"option in {text!r}")
        if not all(value for _, _, value in pairs):
            raise ValueError(f"expected option=value,option=value; got {text!r}.")
        return {name: self._typed(name, value) for name, _, value in pairs}

    def set_defaults(self, **defaults: Any) -> None:
        """Set values for what was not given."""
        self.values = defaults | self.values

    def build(self, **overrides: Any) -> tuple[Any, ...]:
        """Make the argument dataclasses of what was given, with some values replaced (None: the default)."""
        values = {key: value for key, value in (self.values | overrides).items() if value is not None}
        return tuple(self._parser.parse_dict(values))

    def _typed(self, key: str, value: Any) -> Any:
        # As on the command line: YAML reads 1e-3 as text, and one name where a list is meant as one name.
        action = self._actions[key]
        convert = action.type
        if action.nargs in ("*", "+") and value is not None:
            return list(value) if isinstance(value, (list, tuple)) else [value]
        if (convert in (int, float) and not isinstance(value, (int, float, str, type(None)))) or (
            convert in (int, float, str) and isinstance(value, bool)
        ):
            raise ValueError(f"{key}: {value!r} is not what is expected: one {convert.__name__}.")
        if not isinstance(value, str) or not callable(convert):
            return value
        try:
            return convert(value)
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{key}: {value!r} is not what is expected: {error}") from error


def read_flags(parser: HfArgumentParser, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """Read a command line, as `parse_args_into_dataclasses` does, and refuse what the parser does not know.

    Args:
        parser: of dataclasses, and maybe of further arguments.
        argv: the words; None: those of this process.

    Returns:
        An instance of each dataclass, and a namespace of further arguments, where there are any.

    Raises:
        ValueError: an unknown flag (the nearest valid one is given), or words too many.
    """
    *found, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    _refuse_words(unknown, [action.dest for action in parser._actions])
    return tuple(found)


def _refuse_words(words: Sequence[str], known: Iterable[str]) -> None:
    _check_names([word.lstrip("-").split("=")[0] for word in words if word.startswith("--")], known, "flag")
    if words:
        raise ValueError(f"unexpected words on the command line: {' '.join(words)}")


def _check_names(names: Iterable[Any], known: Iterable[str], what: str) -> None:
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "--help lists the options."
            raise ValueError(f"unknown {what}: {name!r}. {hint}")


def load_model(auto: Any, model: ModelArguments, class_names: Sequence[str]) -> PreTrainedModel:
    """Load a pretrained model with a new head for named classes, or make one from its config.

    Args:
        auto: the transformers class, such as `AutoModelForImageClassification`.
        model: which model.
        class_names: of the head.

    Returns:
        The model.
    """
    head = head_options(class_names)
    if model.model_name_or_path:
        return auto.from_pretrained(model.model_name_or_path, ignore_mismatched_sizes=True, **head)
    return auto.from_config(model.make_config(**head))


def load_splits(data: DataArguments, label_column: str) -> datasets.DatasetDict:
    """Load the splits `train`, `test` and maybe `validation`, with named classes, and make the first long-tailed."""
    splits = prepare_splits(
        load(data.dataset, data.dataset_config),
        label_column,
        train_split=data.train_split,
        test_split=data.test_split,
        validation_split=data.validation_split,
        test_fraction=data.test_fraction,
        class_names=data.class_names,
    )
    if data.imbalance_factor is not None:
        splits["train"] = long_tail(
            splits["train"],
            data.imbalance_factor,
            data.imbalance_profile,
            seed=data.imbalance_seed,
            label_column=label_column,
        )
    if data.validation_fraction is not None:  # of the long-tailed training set: choices see no more than training does
        if data.validation_split is not None:
            raise ValueError("set validation_split or validation_fraction, not both.")
        splits["train"], splits["validation"] = split_validation(
            splits["train"], data.validation_fraction, label_column=label_column
        )
    return splits


def head_options(class_names: Sequence[str]) -> dict[str, Any]:
    """Give the config options of a classification head for named classes."""
    return {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
