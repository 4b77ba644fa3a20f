"""Image classification on long-tailed data with SharpTrainer, optionally compared with plain training.

accelerate launch recipes/image_classification.py --config recipes/configs/quickstart.yaml
"""

import sys

from hf_sharp.recipe import run_recipe, train_images

main = train_images  # hf_sharp/recipe/images.py

if __name__ == "__main__":
    sys.exit(run_recipe(main))
