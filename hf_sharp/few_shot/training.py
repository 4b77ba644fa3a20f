"""Training of backbones on the images of one or more domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from hf_sharp.few_shot.adapters import add_lora
from hf_sharp.few_shot.domain import Domain
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments


class DomainImages(torch.utils.data.Dataset):
    """The images of one or more domains as pixel values, in memory, with the classes of all domains side by side.

    Args:
        domains: the domains; each must have images.
        processor: the image processor.

    Attributes:
        class_names: `domain/class` for every class that has examples.
    """

    def __init__(self, domains: Sequence[Domain], processor: Any) -> None:
        pixels, labels = [], []
        self.class_names: list[str] = []
        for domain in domains:
            classes, in_domain = np.unique(domain.labels, return_inverse=True)
            labels.append(in_domain + len(self.class_names))
            self.class_names += [f"{domain.name}/{domain.class_names[c]}" for c in classes]
            for start in range(0, len(domain), 256):
                images = [image.convert("RGB") for image in domain.dataset[start : start + 256][domain.column]]
                pixels.append(processor(images=images, return_tensors="pt")["pixel_values"])
        self.pixels, self.labels = torch.cat(pixels), np.concatenate(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self.pixels[row], "label": int(self.labels[row])}


def train_backbone(
    model: Any, images: DomainImages, processor: Any, args: SharpTrainingArguments, lora_rank: int = 0
) -> dict[str, float]:
    """Train a backbone with a classification head and save it in the arguments' output folder.

    Args:
        model: the model; its head has one output for each of the images' classes.
        images: the training images.
        processor: the image processor, saved with the model.
        args: the training arguments.
        lora_rank: train the head and LoRA adapters of this rank, and merge the adapters afterwards; 0 trains all
            weights.

    Returns:
        The mean training loss.
    """
    trainer = SharpTrainer(
        model=add_lora(model, lora_rank, 2 * lora_rank) if lora_rank else model,
        args=args,
        train_dataset=images,
        processing_class=processor,
    )
    loss = trainer.train().training_loss
    if lora_rank:
        trainer.model = cast(Any, trainer.model).merge_and_unload()
    trainer.save_model()
    return {"training_loss": loss}
