"""The options that every recipe has: data, model and runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import datasets
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from hf_sharp.data.checking import Checks, check_splits
from hf_sharp.data.label_columns import name_classes
from hf_sharp.data.labels import call_it_label
from hf_sharp.data.listed import parse_lists
from hf_sharp.data.loading import load, pool_splits, prepare_splits
from hf_sharp.data.local_names import near_here
from hf_sharp.data.long_tail import long_tail
from hf_sharp.data.repeats import warn_of_repeats
from hf_sharp.data.split import FRACTION, drop_repeats, split_validation
from hf_sharp.recipe.boundary import stage
from hf_sharp.registry.json_text import read_json
from hf_sharp.registry.limits import check_number
from hf_sharp.registry.nearest import did_you_mean

TRUST = "Run code that comes with a model, which may do anything. Cosine heads of hf_sharp do not need this option."


@dataclass
class DataArguments:
    """Options of the data, and how long-tailed to make it."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "'digits', a name on the Hub, a folder (images by class, CSV / JSON / Parquet, IDX, or saved with "
            "save_to_disk), or one CSV / JSON / Parquet file."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    split_lists: list[str] | None = field(
        default=None,
        metadata={
            "help": "Text files that list the images of each split, as split=file, with one `path label` per line; "
            "dataset is the folder that the paths are relative to."
        },
    )
    train_split: str = field(default="train", metadata={"help": "The split to train on; train+validation joins both."})
    test_split: str = field(default="test", metadata={"help": "The split for the final report."})
    test_fraction: float | None = field(
        default=None, metadata={"help": "Hold out this share of every class as the test split, if the data has none."}
    )
    validation_split: str | None = field(
        default=None, metadata={"help": "The split to evaluate on while training. Never the test split."}
    )
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Hold out this share of every training class, to evaluate on while training."}
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Column, such as a patient's ID, whose equal values are kept on one side when holding out."},
    )
    unique_column: str | None = field(
        default=None,
        metadata={"help": "Column, such as an image's name, of whose equal values only the first row is used."},
    )
    separator: str | None = field(
        default=None, metadata={"help": "The column separator of CSV files. Default: a comma."}
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes, in the order of their indices."}
    )
    imbalance_factor: float | None = field(
        default=None,
        metadata={"help": "Make the training split long-tailed, with this ratio of largest to smallest class."},
    )
    imbalance_profile: str = field(default="exponential", metadata={"help": "Shape of the tail: exponential or step."})
    imbalance_seed: int = field(default=0, metadata={"help": "Seed for choosing the examples to keep."})

    check_data: str = field(
        default="fast",
        metadata={
            "help": "Check every row of every split before training. full: decode all images; fast: decode small "
            "images, and check header and end of the others; off: check labels only."
        },
    )
    skip_broken: bool = field(
        default=False,
        metadata={"help": "Leave out rows with a broken image, an empty text or no label, instead of stopping."},
    )
    left_out: dict[str, int] = field(default_factory=dict, init=False)  # rows by split, once the data is loaded

    @property
    def has_validation(self) -> bool:
        """Whether there are examples to validate on."""
        return self.validation_split is not None or self.validation_fraction is not None

    def __post_init__(self) -> None:
        Checks(self.check_data)
        for name in ("test_fraction", "validation_fraction"):
            check_number(f"--{name}", getattr(self, name), **FRACTION, optional=True)
        parse_lists(self.split_lists or ())
        if self.split_lists and self.dataset_config:
            raise ValueError("split_lists is for a folder of images, and dataset_config for a dataset on the Hub.")
        if self.validation_split == self.test_split:
            raise ValueError(
                f"--validation_split and --test_split are both {self.test_split!r}: a checkpoint chosen on the test "
                "split would invalidate its report. Choose another --validation_split."
            )
        if self.validation_split == self.train_split:
            raise ValueError(
                f"--validation_split and --train_split are both {self.train_split!r}: a checkpoint would be chosen "
                "on its training examples. Choose another one, or hold some out with --validation_fraction."
            )


@dataclass
class ModelArguments:
    """Options of the model: a pretrained one by name or folder, or a new one by its config."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A model on the Hub, or a folder."})
    model_config: dict | str | None = field(
        default=None,
        metadata={"help": "Train from scratch: the config with the model_type, as YAML mapping, JSON or JSON file."},
    )
    new_head: bool = field(
        default=False, metadata={"help": "Start from a new head even if the pretrained head is for other classes."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": TRUST})

    def __post_init__(self) -> None:
        if isinstance(self.model_config, str):
            self.model_config = read_json("model_config", self.model_config)
            if not isinstance(self.model_config, dict):
                raise ValueError(f"model_config must be a mapping of options, got {self.model_config!r}.")
        if (self.model_name_or_path is None) == (self.model_config is None):
            raise ValueError(
                "say which model: set either model_name_or_path (pretrained) or model_config (from scratch)."
            )
        if isinstance(self.model_config, dict) and "model_type" not in self.model_config:
            raise ValueError(f"model_config needs a model_type, such as vit or bert; it has {list(self.model_config)}.")

    def make_config(self, **head: Any) -> PreTrainedConfig:
        """Make the config for a model from scratch.

        Args:
            **head: options of the head, in addition to `model_config`.

        Returns:
            The config.

        Raises:
            ValueError: the model type is unknown, or its config does not have one of the options.
        """
        options = dict(self.model_config) if isinstance(self.model_config, dict) else {}
        model_type = options.pop("model_type", None)
        if model_type not in CONFIG_MAPPING:
            raise ValueError(f"unknown model_type {model_type!r}.{did_you_mean(model_type, CONFIG_MAPPING)}")
        known = CONFIG_MAPPING[model_type]()
        # Convolutional networks have no such option: there, it only sets the size of the image processor.
        resized = {"image_size"} if model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES else set()
        for name, value in options.items():
            if not hasattr(known, name) and name not in resized:
                hint = did_you_mean(name, vars(known))
                raise ValueError(f"unknown key in model_config: {name!r} is not an option of {model_type!r}.{hint}")
            if isinstance(value, str) and isinstance(getattr(known, name, None), float):
                options[name] = float(value)  # YAML reads 1e-12 as text
        return CONFIG_MAPPING[model_type](**(options | head))


@dataclass
class RunArguments:
    """Options of the runs: which to compare, and whether to overwrite results."""

    compare_with: list[str] | None = field(
        default=None,
        metadata={
            "help": "Other runs to compare with, on the same data, model and seed: 'baseline' (no sharpness, "
            "cross-entropy), options such as loss=vs,loss_gamma=0.2, or a YAML file of the options that differ. "
            "'none': no other run."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Overwrite existing results."})
    check_only: bool = field(
        default=False,
        metadata={"help": "Load the data and create every run's model, loss and method, but do not train."},
    )


def load_splits(data: DataArguments, label_column: str, *, new: bool = False) -> datasets.DatasetDict:
    """Load and check the splits `train`, `test` and, if asked for, `validation`, with named classes.

    Args:
        data: the data and their splits.
        label_column: the column with the labels.
        new: whether the data are not those of a training. A dataset with one split is then all `test`, unless a share
            of it is held out.
    """
    if data.group_column is not None and data.test_fraction is None and data.validation_fraction is None:
        raise ValueError(
            f"--group_column {data.group_column} has no effect, because nothing is held out. Set --test_fraction or "
            "--validation_fraction, or leave it out."
        )
    with stage(f"the dataset {data.dataset!r} cannot be loaded", near_here(data.dataset).strip()):
        loaded = load(data.dataset, data.dataset_config, data.separator, parse_lists(data.split_lists or ()))
        loaded = pool_splits(loaded, data.train_split)
    loaded = datasets.DatasetDict({split: call_it_label(rows, label_column) for split, rows in loaded.items()})
    new = new and len(loaded) == 1 and data.test_fraction is None and data.validation_fraction is None
    used = (
        [*loaded]
        if new
        else [data.train_split, data.validation_split, *([data.test_split] if data.test_fraction is None else [])]
    )
    checked, data.left_out = check_splits(
        {split: rows for split, rows in loaded.items() if split in used},
        label_column,
        Checks(data.check_data, data.skip_broken),
        image_column=getattr(data, "image_column", None),
        text_column=getattr(data, "text_column", None),
    )
    if data.unique_column is not None:
        checked = datasets.DatasetDict({name: drop_repeats(rows, data.unique_column) for name, rows in checked.items()})
    if new:
        return name_classes(datasets.DatasetDict(test=next(iter(checked.values()))), label_column, data.class_names)
    splits = prepare_splits(
        datasets.DatasetDict({**loaded, **checked}),
        label_column,
        train_split=data.train_split,
        test_split=data.test_split,
        validation_split=data.validation_split,
        test_fraction=data.test_fraction,
        class_names=data.class_names,
        group_column=data.group_column,
    )
    _make_tail_and_validation(splits, data, label_column)
    if data.check_data != "off":
        held_out = {"test": data.test_fraction is not None, "validation": data.validation_fraction is not None}
        warn_of_repeats(splits, getattr(data, "text_column", None), getattr(data, "image_column", None), held_out)
    return splits


def _make_tail_and_validation(splits: datasets.DatasetDict, data: DataArguments, label_column: str) -> None:
    if data.imbalance_factor is not None:
        splits["train"] = long_tail(
            splits["train"],
            data.imbalance_factor,
            data.imbalance_profile,
            seed=data.imbalance_seed,
            label_column=label_column,
        )
    if data.validation_fraction is not None:  # after making the tail, so that validation is long-tailed as well
        if data.validation_split is not None:
            raise ValueError("set --validation_split or --validation_fraction, not both.")
        splits["train"], splits["validation"] = split_validation(
            splits["train"], data.validation_fraction, label_column=label_column, group_column=data.group_column
        )
