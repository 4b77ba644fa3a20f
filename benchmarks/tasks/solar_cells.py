"""Solar cells: predict from an electroluminescence photo of a cell how certainly it is defective, and its silicon.

Source: PyPI package `elpv-dataset` (Buerhop-Lutz et al. 2018, Deitsch et al. 2019; images CC BY-NC-SA 4.0, so they are
for non-commercial use only, are downloaded by the user, and are never shipped). The classes combine four levels of
defect (0, 1/3, 2/3, 1: how sure the expert was) with two kinds of silicon (mono- and polycrystalline).

8 classes with 920 down to 50 cells. Of the examples of each class that are not used for test and validation, training
takes a quarter, but at least 5: 217 down to 5. The grey photos of 300 pixels are scaled to 96. It is not recorded which
cells come from the same module, so cells of one module may be in training and test; this is the same for every method.
"""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from tasks.division import divide
from tasks.images import near_duplicate_key
from tasks.packages import cached, pypi_files

NAME, VERSION, KIND, BACKBONE = "solar_cells", 2, "image", "efficientnet-lite0"
EPOCHS = 20
RATES = {"full": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), "lora": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}
SIZE = 96
LEVELS = ("functional", "perhaps defective", "probably defective", "defective")
CLASSES = tuple(f"{kind}, {level}" for kind in ("mono", "poly") for level in LEVELS)


def read_line(line: str) -> tuple[str, int]:
    """Read one line of the labels.

    Args:
        line: a file name, the probability of a defect, and the kind of silicon.

    Returns:
        The file, and the class from 0 to 7.

    Example:
        >>> read_line("images/cell0001.png  0.3333333333333333   poly")
        ('images/cell0001.png', 5)
    """
    file, probability, kind = line.split()
    return file, 4 * (kind == "poly") + round(3 * float(probability))


@cached(f"{NAME}_{VERSION}")
def prepare(folder: Path) -> datasets.Dataset:
    """Download and read the photos, as the columns `image`, `label` (8 names) and `group` (of near-duplicates)."""
    root = pypi_files("elpv-dataset==1.0.0.post1", folder) / "elpv_dataset/data"
    rows = []
    for line in (root / "labels.csv").read_text().splitlines():
        file, label = read_line(line)
        with Image.open(root / file) as opened:
            image = opened.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
        rows.append({"image": image, "label": label, "group": near_duplicate_key(image).hex()})
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(CLASSES)),
            "group": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


def split(data: datasets.Dataset, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw 30 test and at most 20 validation cells of every class; train on a quarter of the rest."""
    return divide(
        data["label"][:],
        data["group"][:],
        seed,
        test_per_class=30,
        validation_per_class=20,
        training_counts=lambda left: np.minimum(left, np.maximum(left // 4, 5)),
    )
