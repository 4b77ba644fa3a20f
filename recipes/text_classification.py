"""Text classification on long-tailed data, with SharpTrainer and, if asked, plain training beside it.

accelerate launch recipes/text_classification.py --config recipes/configs/debian_sections_minilm.yaml
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from hf_sharp import SharpTrainer, SharpTrainingArguments
from hf_sharp.recipe import (
    DataArguments,
    ModelArguments,
    RecipeParser,
    RunArguments,
    head_options,
    load_splits,
    plan_runs,
    run_recipe,
    run_side_by_side,
)


@dataclass
class TextArguments(DataArguments):
    """Which texts."""

    text_column: str = field(default="text", metadata={"help": "The column with the texts."})
    max_length: int = field(default=128, metadata={"help": "Texts are cut after this many tokens."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "The tokenizer's name or folder, if it is not the model's."}
    )


def load_model(model: ModelArguments, class_names: list[str]) -> PreTrainedModel:
    """Load the pretrained model with a new head, or make one from its config."""
    head = head_options(class_names)
    if model.model_name_or_path:
        return AutoModelForSequenceClassification.from_pretrained(
            model.model_name_or_path, ignore_mismatched_sizes=True, **head
        )
    return AutoModelForSequenceClassification.from_config(model.make_config(**head))


def tokenize(splits: datasets.DatasetDict, tokenizer: Any, data: TextArguments, label_column: str) -> Any:
    """Replace the texts by their tokens; padding waits until a batch is made."""

    def to_tokens(batch: dict[str, list]) -> dict[str, Any]:
        return tokenizer(batch[data.text_column], truncation=True, max_length=data.max_length)

    others = [name for name in splits["train"].column_names if name != label_column]
    return splits.map(to_tokens, batched=True, remove_columns=others, desc="tokenizing")


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Run the recipe; the results of every run are returned and saved."""
    parser = RecipeParser((TextArguments, ModelArguments, RunArguments, SharpTrainingArguments), argv)
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())
    data, model, _, args = parser.build()
    runs = plan_runs(parser)
    tokenizer_name = data.tokenizer_name or model.model_name_or_path
    if tokenizer_name is None:
        raise ValueError("a model from scratch needs a tokenizer: set tokenizer_name to a name or folder.")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    with args.main_process_first(desc="loading and tokenizing"):
        splits = load_splits(data, args.label_column)
        if getattr(splits["train"].features.get(data.text_column), "dtype", None) not in ("string", "large_string"):
            raise ValueError(
                f"column {data.text_column!r} is not a text column; the columns are {splits['train'].features}."
            )
        splits = tokenize(splits, tokenizer, data, args.label_column)
    class_names = splits["train"].features[args.label_column].names

    def make_trainer(args: SharpTrainingArguments) -> SharpTrainer:
        return SharpTrainer(
            model=load_model(model, class_names),
            args=args,
            train_dataset=splits["train"],
            eval_dataset=splits.get("validation"),
            processing_class=tokenizer,
        )

    title = f"{data.dataset}: {len(splits['train']):,} training texts, {len(class_names)} classes"
    return run_side_by_side(runs, make_trainer, splits["test"], title, args.output_dir)


if __name__ == "__main__":
    sys.exit(run_recipe(main))
