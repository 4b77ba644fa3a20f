"""Text classification on long-tailed data, with SharpTrainer and, if asked, plain training beside it.

accelerate launch recipes/text_classification.py --config recipes/configs/debian_sections_minilm.yaml
"""

import sys
from typing import Any

import torch

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.recipe import (
    ModelArguments,
    RecipeParser,
    RunArguments,
    TextArguments,
    load_splits,
    load_text_model,
    load_tokenizer,
    plan_runs,
    prepare_texts,
    run_recipe,
    run_side_by_side,
)


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Run the recipe; the results of every run are returned and saved."""
    parser = RecipeParser((TextArguments, ModelArguments, RunArguments, SharpTrainingArguments), argv)
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())
    data, model, _, args = parser.build()
    runs = plan_runs(parser)
    tokenizer = load_tokenizer(model, data)
    with args.main_process_first(desc="loading and tokenizing"):
        splits = load_splits(data, args.label_column)
        splits = prepare_texts(splits, tokenizer, data, args.label_column)
    class_names = splits["train"].features[args.label_column].names

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        return SharpTrainer(
            model=load_text_model(model, class_names),
            args=args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=tokenizer,
        )

    title = f"{data.dataset}: {len(splits['train']):,} training texts, {len(class_names)} classes"
    return run_side_by_side(runs, make_trainer, splits["test"], title, args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
