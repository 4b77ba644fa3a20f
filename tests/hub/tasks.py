"""Functions that the tests call in the client's processes."""

import hashlib
import importlib
import resource
import signal
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils import _http
from PIL import Image
from transformers import TrainerCallback, ViTConfig, ViTForImageClassification, ViTImageProcessor, pipeline

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.recipe import train_images
from tests.conftest import ARGUMENTS, make_images, make_vit

torch.set_num_threads(1)


class Colour:
    """Collates images with one channel into batches with three channels, which `pipeline` reads."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.stack([example["pixel_values"] for example in examples])
        labels = torch.tensor([int(example["label"]) for example in examples])
        return {"pixel_values": pixels.repeat(1, 3, 1, 1), "labels": labels}


def hurry() -> None:
    """Shorten the client's waits between retries to a hundredth."""
    _http.time = types.SimpleNamespace(**vars(time) | {"sleep": lambda seconds: time.sleep(seconds / 100)})


def trainer_for(out: str, large: bool = False, **options: Any) -> SharpTrainer:
    model = make_vit(dropout=0.1, num_channels=3)
    if large:  # some megabytes, so that a connection can be cut in the middle of a file
        sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8192}
        model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=4, **sizes))
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    args = SharpTrainingArguments(out, **(ARGUMENTS | {"sharpness": "sam", "loss": "logit_adjusted"} | options))
    return SharpTrainer(model, args, Colour(), make_images(), processing_class=processor)


class Wait(TrainerCallback):
    """Continues training only after the push, so that every commit has the weights of its step."""

    trainer: SharpTrainer

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._finish_current_push()


def train(out: str, options: dict[str, Any], resume: str | None = None, push: bool = False) -> dict[str, Any]:
    """Train, and return the repository and the last step."""
    hurry()
    trainer = trainer_for(out, **options)
    trainer.add_callback(wait := Wait())
    wait.trainer = trainer
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(f"{out}-end", _internal_call=True)
    if push:
        trainer.push_to_hub()
    return {"repo": trainer.hub_model_id, "step": trainer.state.global_step}


def train_adapter(out: str, base: str, options: dict[str, Any], push: bool = False) -> None:
    """Train an adapter of a local base model, with a run of tensorboard beside the checkpoints."""
    hurry()
    peft = importlib.import_module("peft")
    make_vit(num_channels=3).save_pretrained(base)
    model = ViTForImageClassification.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]))
    args = SharpTrainingArguments(out, **(ARGUMENTS | options))
    data, processor = make_images(), ViTImageProcessor(size={"height": 8, "width": 8})
    trainer = SharpTrainer(model, args, Colour(), data, data, processing_class=processor)
    trainer.add_callback(wait := Wait())
    wait.trainer = trainer
    trainer.train()
    if push:
        trainer.push_to_hub()


def push(out: str, options: dict[str, Any], times: int = 1, large: bool = False, most: int | None = None) -> list[str]:
    """Push an untrained model, and return the oids of the commits."""
    hurry()
    trainer = trainer_for(out, large=large, **options)
    trainer.create_model_card()
    fill_disk(most)
    return [trainer.push_to_hub().oid for _ in range(times)]


def save_large(out: str) -> None:
    """Save the files that `Trainer` pushes, with some megabytes of weights."""
    trainer = trainer_for(out, large=True)
    trainer.save_model()
    trainer.create_model_card()


def push_again(repo: str, out: str) -> str:
    """Push a folder as `Trainer` does, and return the oid of the commit."""
    hurry()
    ignored = ["_*", "checkpoint-*"]
    return HfApi().upload_folder(repo_id=repo, folder_path=out, commit_message="again", ignore_patterns=ignored).oid


def push_in_pipeline(repo: str, out: str) -> str:
    """Push a folder as a client with hf_xet does: threads of a pipeline hash, upload and commit it."""
    constants.HF_HUB_DISABLE_XET = False
    return push_again(repo, out)


def download_from_xet(repo: str, cache: str) -> str:
    constants.HF_HUB_DISABLE_XET = False
    return download(repo, cache)


def names_in_xet(out: str) -> dict[str, tuple[str, bytes]]:
    """The names that Xet's storage gives the files of a folder, and their contents, by sha256."""
    hf_xet = importlib.import_module("hf_xet")
    files = [path for path in Path(out).iterdir() if path.is_file()]
    names = [info.hash for info in hf_xet.hash_files([str(path) for path in files])]
    contents = [path.read_bytes() for path in files]
    return {hashlib.sha256(c).hexdigest(): (name, c) for name, c in zip(names, contents, strict=True)}


def fill_disk(most: int | None) -> None:
    """Limit the size of files from now on: writing more raises OSError, as on a full disk."""
    if most is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def download(repo: str, cache: str, most: int | None = None, options: dict[str, Any] | None = None) -> str:
    """Download a repository, with files limited to `most` bytes, and return its folder."""
    hurry()
    constants.DOWNLOAD_CHUNK_SIZE = 100_000  # the default of ten megabytes is larger than the files of these tests
    fill_disk(most)
    return snapshot_download(repo, cache_dir=cache, **(options or {}))


def call(method: str, *arguments: Any) -> Any:
    """Call a method of the client, and return its result as text; the last argument may be its keywords."""
    keywords = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    result = getattr(HfApi(), method)(*(value for value in arguments if value is not keywords), **keywords)
    return dict(result) if isinstance(result, dict) else str(result)


def upload(repo: str, path: str, text: str) -> None:
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id=repo)


def listing(repo: str) -> list[str]:
    return sorted(entry.path for entry in HfApi().list_repo_tree(repo, recursive=True))


def load_back(repo: str) -> list[dict[str, Any]]:
    """Classify a picture with the pipeline."""
    return pipeline("image-classification", model=repo, top_k=4)(picture())


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def recipe(argv: list[str]) -> None:
    """Train as the recipe for images does."""
    hurry()
    train_images(argv)
