"""Trains backbones on the images of one or more domains; validation episodes choose the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers import TrainerCallback

from hf_sharp.few_shot.adapters import add_lora
from hf_sharp.few_shot.backbone import load_backbone
from hf_sharp.few_shot.domain import Domain
from hf_sharp.few_shot.evaluation import average, evaluate
from hf_sharp.trainer.sharp_trainer import SharpTrainer
from hf_sharp.training_args import SharpTrainingArguments


class DomainImages(torch.utils.data.Dataset):
    """The images of one or more domains as pixel values, in memory; the classes of all domains are distinct.

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


class EpisodeValidation(TrainerCallback):
    """Keeps the weights with the best accuracy on validation episodes, and restores them at the end of training.

    The accuracy is that of `prototype`, averaged over domains; the authors of arXiv 2404.07696 choose checkpoints in
    the same way. In case of a tie, the earliest step is chosen.

    Args:
        domains: validation examples of every domain that the backbone is trained on.
        processor: the image processor.
        every: the number of optimizer steps between two validations. The last step is always validated.
        episodes: the number of episodes per domain, the same each time; the authors use 300.
        seed: the seed of the episodes.
        ways: the fixed number of classes; None to draw it as in Meta-Dataset.
        shots: the fixed number of support examples per class; None to draw it as in Meta-Dataset.
        features: the kind of features, as `load_backbone` takes it.

    Attributes:
        accuracies: step to accuracy.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        processor: Any,
        every: int,
        episodes: int = 300,
        seed: int = 0,
        ways: int | None = None,
        shots: int | None = None,
        features: str | None = None,
    ) -> None:
        self.domains, self.processor, self.every, self.features = domains, processor, max(every, 1), features
        self.options: dict[str, Any] = {"episodes": episodes, "seed": seed, "ways": ways, "shots": shots}
        self.accuracies: dict[int, float] = {}
        self._best: dict[str, torch.Tensor] = {}

    @property
    def best_step(self) -> int:
        """The step with the best accuracy."""
        return max(self.accuracies, key=self.accuracies.__getitem__)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Validate, and keep the weights if they are the best so far."""
        step, model = state.global_step, kwargs["model"]
        if step % self.every and step < state.max_steps:
            return
        backbone = load_backbone(model, self.processor, self.features)
        results = [evaluate(backbone, domain, **self.options) for domain in self.domains]
        self.accuracies[step] = average(results)[0]
        if self.best_step == step:
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the best weights."""
        kwargs["model"].load_state_dict(self._best)


def train_backbone(
    model: Any,
    images: DomainImages,
    processor: Any,
    args: SharpTrainingArguments,
    validation: EpisodeValidation | None = None,
    lora_rank: int = 0,
) -> dict[str, Any]:
    """Train a backbone with a classification head and save it in the arguments' output folder.

    Args:
        model: the model; its head has one output for each of the images' classes.
        images: the training images.
        processor: the image processor, saved with the model.
        args: the training arguments.
        validation: chooses the checkpoint; None keeps the last one.
        lora_rank: train the head and LoRA adapters of this rank, and merge the adapters afterwards; 0 trains all
            weights.

    Returns:
        The mean training loss; with validation also the step of the saved checkpoint and all validation accuracies.
    """
    trainer = SharpTrainer(
        model=add_lora(model, lora_rank, 2 * lora_rank) if lora_rank else model,
        args=args,
        train_dataset=images,
        processing_class=processor,
        callbacks=[validation] if validation else None,
    )
    results: dict[str, Any] = {"training_loss": trainer.train().training_loss}
    if lora_rank:
        trainer.model = cast(Any, trainer.model).merge_and_unload()
    trainer.save_model()
    if validation:
        results |= {"saved_step": validation.best_step, "validation_accuracies": validation.accuracies}
    return results
