"""Small real inputs of the tests: a tiny ViT, a tiny BERT, images and labels."""

import gc
import os
import threading

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import numpy as np
import pytest
import torch
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification, set_seed

from hf_sharp import SharpTrainer, SharpTrainingArguments

NUM_CLASSES = 4
CLASS_COUNTS = [40, 22, 9, 3]
ARGUMENTS = {
    "sharpness": "sam",
    "loss": "cross_entropy",
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}

torch.set_num_threads(1)
# Tests fork and kill processes. A process that dies while it holds tqdm's lock, which forks share, would block the
# others; so would a fork while tqdm's monitor thread holds it.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0
datasets.disable_progress_bars()


@pytest.fixture(autouse=True, scope="module")
def freeze_imports():
    """Every `train()` collects garbage: without this it would look through 460,000 objects of libraries each time."""
    gc.collect()
    gc.freeze()


def method_id(options) -> str:
    """A method's name in test ids; the matrix in docs/tested.md is checked against these."""
    return "asam" if options.get("adaptive") else options.get("sharpness", "sam")


def make_vit(
    dropout: float = 0.0, num_labels: int = NUM_CLASSES, num_channels: int = 1, dtype=torch.float32, seed: int = 0
):
    set_seed(seed)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=num_channels,
        num_labels=num_labels,
        hidden_dropout_prob=dropout,
        initializer_range=0.2,
    )
    return ViTForImageClassification(config).to(dtype)


def make_bert(num_labels: int = NUM_CLASSES, seed: int = 0):
    set_seed(seed)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=num_labels,
    )
    return BertForSequenceClassification(config)


def make_images(class_counts=CLASS_COUNTS, dtype=np.float32, seed: int = 0, label_column: str = "label"):
    """Shuffled images, each one a prototype of its class plus noise."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(class_counts)), class_counts))
    prototypes = np.random.default_rng(1).normal(size=(len(class_counts), 1, 8, 8))
    pixels = (prototypes[labels] + rng.normal(size=(len(labels), 1, 8, 8))).astype(dtype)
    features = datasets.Features(
        {
            "pixel_values": datasets.Array3D((1, 8, 8), "float64" if dtype == np.float64 else "float32"),
            label_column: datasets.ClassLabel(names=[f"class {i}" for i in range(len(class_counts))]),
        }
    )
    data = {"pixel_values": list(pixels), label_column: labels.tolist()}
    return datasets.Dataset.from_dict(data, features=features).with_format("torch")


@pytest.fixture
def make_trainer(tmp_path):
    """A SharpTrainer on tiny images; keywords are SharpTrainingArguments, or the Trainer's own."""

    def make(model=None, train_dataset=None, eval_dataset=None, trainer_class=SharpTrainer, trainer=None, **options):
        defaults = ARGUMENTS | {"output_dir": str(tmp_path / "out")}
        if "class_loss" in (trainer or {}):
            del defaults["loss"]
        return trainer_class(
            model=make_vit() if model is None else model,
            args=SharpTrainingArguments(**(defaults | options)),
            train_dataset=make_images() if train_dataset is None else train_dataset,
            eval_dataset=eval_dataset,
            **(trainer or {}),
        )

    return make


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"{len(different)} of {len(first)} tensors differ: {different[:5]}"
