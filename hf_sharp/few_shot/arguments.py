"""The options of the few-shot recipe."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_sharp.few_shot.adaptation import ADAPTATIONS
from hf_sharp.few_shot.fusion import FUSIONS
from hf_sharp.few_shot.image_domains import DOMAINS
from hf_sharp.registry.limits import check_number, check_numbers
from hf_sharp.registry.nearest import check_name

_COUNT, _FROM_0, _RATE = {"least": 1, "whole": True}, {"least": 0, "whole": True}, {"least": 0}
_LIMITS: dict[str, dict[str, Any]] = {
    "examples_per_class": {"least": 2, "whole": True},
    "held_out": {"above": 0, "below": 1, "share": True},
    "image_size": _COUNT,
    "patch_size": _COUNT,
    "hidden_size": _COUNT,
    "layers": _COUNT,
    "heads": _COUNT,
    "train_steps": _FROM_0,
    "fuse_steps": _FROM_0,
    "batch_size": _COUNT,
    "learning_rate": _RATE,
    "fuse_learning_rate": _RATE,
    "weight_decay": _RATE,
    "fuse_lora_rank": _FROM_0,
    "validation_fraction": {"least": 0, "below": 1, "share": True},
    "validation_episodes": _COUNT,
    "validations": _COUNT,
    "episodes": _COUNT,
    "ways": {"least": 2, "whole": True, "optional": True},
    "shots": {"least": 1, "whole": True, "optional": True},
    "parc_components": _FROM_0,
    "parc_examples": {"least": 2, "whole": True},
    "seed": {"least": 0, "below": 2**32, "whole": True},
}


@dataclass
class FewShotArguments:
    """The options of `recipes/few_shot.py`: the domains, the backbones, and how they are compared."""

    output_dir: str = field(
        default="outputs/few_shot",
        metadata={"help": "Folder for backbones, results and pictures. Finished stages in it are reused."},
    )
    domains: list[str] = field(
        default_factory=lambda: list(DOMAINS),
        metadata={"help": f"Any of {', '.join(DOMAINS)}; or a dataset on the Hub, a folder or a file."},
    )
    examples_per_class: int = field(default=300, metadata={"help": "The largest number of examples per class."})
    held_out: float = field(
        default=0.3,
        metadata={
            "help": "Share of the classes that test episodes are drawn from (of the examples, below 20 classes)."
        },
    )
    sharpness: list[str] = field(default_factory=lambda: ["none", "sam"], metadata={"help": "Methods to compare."})
    rho: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Radius: one for all domains, DOMAIN=RADIUS, or METHOD/DOMAIN=RADIUS. Default: that of the method."
        },
    )
    pretrained: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Start from a pretrained model (a folder or a name on the Hub) instead of a ViT from scratch: one "
            "for all domains, DOMAIN=MODEL, or METHOD/DOMAIN=MODEL."
        },
    )
    image_size: int = field(default=32, metadata={"help": "ViT from scratch: width and height of images, in pixels."})
    patch_size: int = field(default=4, metadata={"help": "ViT from scratch: width and height of patches, in pixels."})
    hidden_size: int = field(default=96, metadata={"help": "ViT from scratch: hidden size."})
    layers: int = field(default=4, metadata={"help": "ViT from scratch: number of layers."})
    heads: int = field(default=4, metadata={"help": "ViT from scratch: number of attention heads."})
    train_steps: int = field(
        default=1500,
        metadata={"help": "Optimizer steps of a domain's backbone; 0: use pretrained models without training."},
    )
    fusion: list[str] = field(
        default_factory=lambda: ["per_domain"],
        metadata={"help": f"Any of {', '.join(FUSIONS)}: fine-tune the source's backbone on each domain, or on all."},
    )
    fuse_steps: int = field(default=1500, metadata={"help": "Optimizer steps of a fused backbone; 0: no fusion."})
    batch_size: int = field(default=64, metadata={"help": "Examples per step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of a domain's backbone."})
    fuse_learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of fusion."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay, for domains' backbones and fusion."})
    source: str | None = field(
        default=None,
        metadata={"help": "The domain whose backbone fusion starts from. Default: that with the most examples."},
    )
    fuse_with_source: bool = field(
        default=False, metadata={"help": "Joint fusion: also train on the source's examples."}
    )
    fuse_with_sharpness: bool = field(
        default=False, metadata={"help": "Fuse with the backbone's sharpness method. Default: without."}
    )
    fuse_lora_rank: int = field(
        default=0, metadata={"help": "Fuse with LoRA adapters of this rank, merged afterwards; 0: all weights."}
    )
    validation_fraction: float = field(
        default=0.2,
        metadata={
            "help": "Share of the training classes (of the examples, below 20 classes) for validation episodes, which "
            "choose the checkpoint; 0: keep the last checkpoint."
        },
    )
    validation_episodes: int = field(default=100, metadata={"help": "Validation episodes per domain."})
    validations: int = field(default=10, metadata={"help": "Number of validations per training."})
    adaptations: list[str] = field(
        default_factory=lambda: ["prototype", "affine"], metadata={"help": f"Any of {', '.join(ADAPTATIONS)}."}
    )
    features: str | None = field(
        default=None, metadata={"help": "pooled, class_token or mean. Default: pooled if trained, else class_token."}
    )
    episodes: int = field(default=600, metadata={"help": "Test episodes per domain."})
    ways: int | None = field(default=None, metadata={"help": "Classes per episode. Default: as in Meta-Dataset."})
    shots: int | None = field(default=None, metadata={"help": "Examples per class. Default: as in Meta-Dataset."})
    parc_on: str = field(
        default="episode",
        metadata={"help": "PARC scores the support set of each 'episode', or a probe set of the 'domain' once."},
    )
    parc_components: int = field(
        default=0, metadata={"help": "PARC on this many PCA components (Bolya et al.: 32); 0: on raw features."}
    )
    parc_examples: int = field(default=500, metadata={"help": "Size of the probe set of parc_on=domain."})
    seed: int = field(default=0, metadata={"help": "Seed of all random draws."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU even if there is a GPU."})

    def __post_init__(self) -> None:
        check_numbers(self, _LIMITS)
        for value in self.rho:
            number: float | str = value.rpartition("=")[2]
            with suppress(ValueError):
                number = float(number)
            check_number(f"--rho {value}: the radius", number, least=0)
        for name in self.adaptations:
            check_name("adaptation", name, ADAPTATIONS)
        check_name("parc_on", self.parc_on, ("episode", "domain"))
        if self.parc_on == "episode" and self.shots == 1:
            raise ValueError("PARC has no score for 1-shot episodes. Add --parc_on domain, or choose more shots.")
        if self.train_steps == 0 and not self.pretrained:
            raise ValueError("train_steps=0 needs pretrained models: add --pretrained with folders or names.")

    def pick(self, *names: str) -> dict[str, Any]:
        """Return the options with these names, as a mapping."""
        return {name: getattr(self, name) for name in names}


def values_by_key(option: str, values: Sequence[str], keys: Collection[str]) -> dict[str, str]:
    """Read an option whose values have the form VALUE, which applies to all keys, or KEY=VALUE.

    Args:
        option: the name of the option, for error messages.
        values: the values of the option.
        keys: the allowed keys.

    Returns:
        Key to value; the empty key stands for all keys.

    Raises:
        ValueError: a key is unknown, or has two values.

    Example:
        >>> values_by_key("rho", ["0.05", "digits=0.1"], ["digits", "emoji"])
        {'': '0.05', 'digits': '0.1'}
    """
    read: dict[str, str] = {}
    for value in values:
        key, equals, rest = value.partition("=")
        if not equals or (key not in keys and Path(value).is_dir()):
            key, rest = "", value
        elif key not in keys:
            raise ValueError(f"--{option} {value}: {key!r} is not one of {', '.join(keys)}.")
        if key in read:
            raise ValueError(f"--{option} has two values for {key or 'everything'}: {read[key]!r} and {rest!r}.")
        read[key] = rest
    return read
