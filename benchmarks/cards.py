"""Copy the cards that the recipes wrote into model_cards/, with the results that all their figures come from.

python benchmarks/cards.py   # after benchmarks/compare.py for each of the configs

A card describes the model of seed 0, and also has the figures over all seeds, from benchmarks/results.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from compare import METRICS

from hf_sharp.reports.model_card import write_card
from hf_sharp.reports.results import RESULTS

ROOT = Path(__file__).resolve().parent.parent
# Config to the run that is published.
CONFIGS = {"quickstart": "sam+logit_adjusted", "fashion_mnist_lt": "focal_sam+logit_adjusted"}
PLAIN = "baseline"


def over_seeds(config: str, sharp: str) -> dict[str, Any]:
    """Read the figures of every seed, for `build_card`."""
    result = json.loads((ROOT / "benchmarks" / "results" / f"{config}.json").read_text())
    found = {
        name: {metric: row["per_seed"] for metric, row in result["runs"][run].items() if metric in METRICS}
        for name, run in (("metrics", sharp), ("plain", PLAIN))
    }
    return {"seeds": result["seeds"], **found}


def main() -> None:
    """Copy new results and configs, if there are any, and write the cards from them."""
    for config, sharp in CONFIGS.items():
        source, target = ROOT / "outputs" / "benchmarks" / config / "seed_0", ROOT / "model_cards" / config
        for run in (PLAIN, sharp) if source.is_dir() else ():
            (target / run).mkdir(parents=True, exist_ok=True)
            results = json.loads((source / run / RESULTS).read_text())
            (target / run / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
        file = target / sharp / RESULTS
        results = json.loads(file.read_text()) | {"over_seeds": over_seeds(config, sharp)}
        file.write_text(json.dumps(results, indent=1) + "\n")
        if source.is_dir():
            shutil.copy(source / sharp / "config.json", target / sharp)
        card = write_card(target / sharp, opened=f"outputs/{config}/{sharp}")
        print(f"wrote {card.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
