"""Pack what benchmarks/gpu.sh needs on a machine without a network into `.gpu/` (ignored by git), about 75 MB.

python benchmarks/gpu_pack.py --python 3.12

- wheels of the packages that a machine with torch, transformers, accelerate, peft and pyarrow may lack, and,
  apart in `test_wheels`, what only the whole suite needs;
- wordnet, and Fashion-MNIST with its test set and every eighth training image, as `evidence.py --prepare` made them;
- MiniLM-L3 in half precision, as `backbones/convert.py` made it (training reads it into float32).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import tasks
import torch
from safetensors.torch import load_file, save_file
from study import BACKBONES, CACHE, ROOT

PACKAGES = (
    "datasets",
    "evaluate",
    "multiprocess",
    "dill",
    "xxhash",
    "pytorch-optimizer",
    "schedulefree",
)
TEST_PACKAGES = (
    "tensorboard",
    "optuna",
    "alembic",
    "colorlog",
    "sqlalchemy",
    "mako",
    "greenlet",
    "kornia",
    "kornia-rs",
    "hatchling",
    "trove-classifiers",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
FOLDER = ROOT / ".gpu"


def pack_wheels(packages: tuple[str, ...], folder: str, python: str) -> None:
    """Download wheels for a version of Python on Linux."""
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *platforms]
    subprocess.run([*command, "-d", FOLDER / folder, *packages], check=True)


def pack_task(name: str) -> None:
    """Copy a task's data; of Fashion-MNIST's training images every eighth."""
    module = tasks.load(name)
    data = module.prepare(CACHE)
    if "is_test" in data.column_names:
        is_test = np.asarray(data["is_test"][:])
        data = data.select(np.flatnonzero(is_test | (np.arange(len(data)) % 8 == 0)))
    data.save_to_disk(FOLDER / "data/evidence" / f"{name}_{module.VERSION}")


def pack_backbone(name: str) -> None:
    """Copy a backbone with weights of half precision."""
    target = FOLDER / "data/backbones" / name
    shutil.copytree(BACKBONES / name, target)
    weights = load_file(target / "model.safetensors")
    halves = {key: value.half() if value.dtype == torch.float32 else value for key, value in weights.items()}
    save_file(halves, target / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="version of Python on the GPU machine")
    arguments = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    pack_wheels(PACKAGES, "wheels", arguments.python)
    pack_wheels(TEST_PACKAGES, "test_wheels", arguments.python)
    for name in ("wordnet", "fashion_mnist"):
        pack_task(name)
    pack_backbone(tasks.load("wordnet").BACKBONE)
    megabytes = sum(file.stat().st_size for file in Path(FOLDER).rglob("*") if file.is_file()) / 1e6
    print(f"{FOLDER.name}/ holds {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
