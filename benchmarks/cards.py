"""Put the cards that the recipes wrote into model_cards/, with the results that every figure of them comes from.

python benchmarks/cards.py   # after benchmarks/compare.py for each of the configs, seed 0
"""

import json
import shutil
from pathlib import Path

from hf_sharp.reports.model_card import write_card
from hf_sharp.reports.results import RESULTS

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ("quickstart", "fashion_mnist_lt", "debian_sections_minilm")
PLAIN, SHARP = "baseline", "focal_sam+logit_adjusted"


def main() -> None:
    """Copy results and configs, and write the cards from them."""
    for config in CONFIGS:
        source, target = ROOT / "outputs" / "benchmarks" / config / "seed_0", ROOT / "model_cards" / config
        for run in (PLAIN, SHARP):
            (target / run).mkdir(parents=True, exist_ok=True)
            results = json.loads((source / run / RESULTS).read_text())
            (target / run / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
        shutil.copy(source / SHARP / "config.json", target / SHARP)
        print(f"wrote {write_card(target / SHARP).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
