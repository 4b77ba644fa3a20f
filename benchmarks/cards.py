"""Put the cards that the recipes wrote into model_cards/, with the results that every figure of them comes from.

python benchmarks/cards.py   # after benchmarks/compare.py for each of the configs, seed 0
"""

import json
import shutil
from pathlib import Path

from hf_sharp.reports.model_card import write_card
from hf_sharp.reports.results import RESULTS

ROOT = Path(__file__).resolve().parent.parent
# The run that is published, by config.
CONFIGS = {"quickstart": "sam+logit_adjusted", "fashion_mnist_lt": "focal_sam+logit_adjusted"}
PLAIN = "baseline"


def main() -> None:
    """Copy results and configs where there are new ones, and write the cards from them."""
    for config, sharp in CONFIGS.items():
        source, target = ROOT / "outputs" / "benchmarks" / config / "seed_0", ROOT / "model_cards" / config
        for run in (PLAIN, sharp) if source.is_dir() else ():
            (target / run).mkdir(parents=True, exist_ok=True)
            results = json.loads((source / run / RESULTS).read_text())
            (target / run / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
        if source.is_dir():
            shutil.copy(source / sharp / "config.json", target / sharp)
        card = write_card(target / sharp, opened=f"outputs/{config}/{sharp}")
        print(f"wrote {card.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
