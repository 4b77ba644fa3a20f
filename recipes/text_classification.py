"""Text classification on long-tailed data with SharpTrainer, optionally compared with plain training.

accelerate launch recipes/text_classification.py --config recipes/configs/debian_sections_minilm.yaml
"""

import sys

from hf_sharp.recipe import run_recipe, train_texts

main = train_texts  # hf_sharp/recipe/texts.py

if __name__ == "__main__":
    sys.exit(run_recipe(main))
