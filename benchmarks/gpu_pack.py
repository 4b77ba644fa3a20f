"""Pack what benchmarks/gpu.sh needs on a machine without a network into `.gpu/` (ignored by git), about 75 MB.

python benchmarks/gpu_pack.py --python 3.12
python benchmarks/gpu_pack.py --tasks clipart solar_cells   # for the phase `tasks` of gpu.sh

- wheels of the packages that a machine with torch, transformers, accelerate, peft and pyarrow may lack; those that only
  the test suite needs are in `test_wheels`;
- the data of tasks, as made by `evidence.py --prepare` (for Fashion-MNIST, the test set and every eighth training
  image);
- their backbones, as made by `backbones/convert.py`, those for texts in half precision (training converts to float32).
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import tasks
import torch
from PIL import Image
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
    "textalloc",
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


def in_webp(row: dict[str, Any]) -> dict[str, Any]:
    """Store an image as lossless WebP: the same pixels in two thirds of the bytes."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(row["image"]["bytes"])).save(buffer, "webp", lossless=True, quality=100)
    return {"image": {"bytes": buffer.getvalue(), "path": None}}


def pack_task(name: str) -> None:
    """Copy a task's data; for Fashion-MNIST, only every eighth training image."""
    module = tasks.load(name)
    data = module.prepare(CACHE)
    if "is_test" in data.column_names:
        is_test = np.asarray(data["is_test"][:])
        data = data.select(np.flatnonzero(is_test | (np.arange(len(data)) % 8 == 0)))
    elif module.KIND == "image":
        feature = data.features["image"]
        data = data.cast_column("image", datasets.Image(decode=False)).map(in_webp).cast_column("image", feature)
    data.save_to_disk(FOLDER / "data/evidence" / f"{name}_{module.VERSION}")


def pack_backbone(name: str, kind: str) -> None:
    """Copy a backbone; those for texts, which are large, with weights in half precision."""
    target = FOLDER / "data/backbones" / name
    shutil.copytree(BACKBONES / name, target)
    if kind == "text":
        weights = load_file(target / "model.safetensors")
        halves = {key: value.half() if value.dtype == torch.float32 else value for key, value in weights.items()}
        save_file(halves, target / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["wordnet", "fashion_mnist"], help="of the evidence")
    parser.add_argument("--python", default="3.12", help="version of Python on the GPU machine")
    arguments = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    pack_wheels(PACKAGES, "wheels", arguments.python)
    pack_wheels(TEST_PACKAGES, "test_wheels", arguments.python)
    # hf_sharp's code is used from the checkout, but its version and its command come from the wheel.
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", FOLDER / "wheels", ROOT], check=True)
    for name in arguments.tasks:
        pack_task(name)
    for backbone, kind in {(tasks.load(name).BACKBONE, tasks.load(name).KIND) for name in arguments.tasks}:
        if backbone is not None:
            pack_backbone(backbone, kind)
    megabytes = sum(file.stat().st_size for file in Path(FOLDER).rglob("*") if file.is_file()) / 1e6
    print(f"{FOLDER.name}/ holds {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
