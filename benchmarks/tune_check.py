"""Check that `hf-sharp tune` finds settings as good as the evidence's grids: 20 runs on a task, then the final seeds.

python benchmarks/tune_check.py wordnet                # resumes; needs benchmarks/results/evidence_wordnet.json

The search uses the training and validation examples of tuning seed 0, with the rate and the base that the evidence
chose. Its choice is then trained with the final seeds, and compared with the rows of the evidence. Writes
benchmarks/results/tune_check_TASK.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tasks
import torch
import yaml
from study import BACKBONES, CACHE, OUTPUTS, RESULTS, use_one_thread
from study.claims import LETS, best_row
from study.driver import read_finished, restore, work
from study.runs import BATCH, FINAL_SEEDS, TUNING_SEEDS, machine_class, make_run
from study.training import VIT

import hf_sharp

BUDGET = "20runs"
SEARCHED = ("sharpness", "ascent", "rho", "loss_tau")  # the options that a choice may set, besides the loss


def write_data(module: ModuleType, folder: Path) -> None:
    """Write the training and validation examples of the tuning seed as Parquet files, as a user would have them."""
    data = module.prepare(CACHE)
    train, validation, _test = module.split(data, TUNING_SEEDS[0])
    columns = ["text" if module.KIND == "text" else "image", "label"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("validation", validation), ("test", validation)):  # test: never read
        data.select(np.sort(rows)).select_columns(columns).to_parquet(folder / f"{name}.parquet")


def config_of(module: ModuleType, folder: Path, rate: float) -> dict[str, Any]:
    """Convert the training of the evidence to options of the recipe."""
    options: dict[str, Any] = {
        "dataset": str(folder),
        "validation_split": "validation",
        "learning_rate": rate,
        "num_train_epochs": module.EPOCHS,
        "per_device_train_batch_size": BATCH,
        "warmup_steps": 0.1,
        "seed": TUNING_SEEDS[0],
        "use_cpu": not torch.cuda.is_available(),
    }
    if module.KIND == "text":
        return options | {
            "model_name_or_path": str(BACKBONES / module.BACKBONE),
            "max_length": module.MAX_TOKENS,
            "bf16": True,
        }
    shape = {"model_type": "vit", "image_size": module.SIZE} | VIT | {"num_channels": 3}  # recipes train on colours
    return options | {"model_config": shape, "augment": "none"}


def main() -> None:
    """Search, train the choice with the final seeds, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("fashion_mnist", "wordnet", "foldoc"))
    task = parser.parse_args().task
    use_one_thread()
    torch.set_num_threads(1)
    module, evidence = tasks.load(task), json.loads((RESULTS / f"evidence_{task}.json").read_text())
    base, folder = tuple(evidence["base"]), OUTPUTS.with_name("tune_check") / task
    if base[0] == "lora" or base[1] != "noise":
        raise SystemExit(f"the better base of {task} is {base}; this check knows full training and a new head only.")
    rate = evidence["rates"]["/".join(base)]
    write_data(module, folder / "data")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(config_of(module, folder / "data", rate)))
    found = hf_sharp.tune(config, BUDGET, output_dir=folder / "search")

    chosen = {name: found["options"][name] for name in SEARCHED if name in found["options"]}
    chosen |= {"loss": found["options"].get("loss", hf_sharp.SharpTrainingArguments.loss)}
    if chosen.get("sharpness", "none") == "none":
        chosen = {"sharpness": "none"} | {name: chosen[name] for name in ("loss", "loss_tau") if name in chosen}
    restore(OUTPUTS / task, RESULTS / f"evidence_{task}.json")
    runs = [make_run(task, base, rate, seed, chosen) for seed in FINAL_SEEDS]
    for run in runs:
        work(run, OUTPUTS / task)
    finished = read_finished(OUTPUTS / task)

    def summary(seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
        values = [seed["balanced_accuracy"] for seed in seeds.values()]
        few = [seed["few_accuracy"] for seed in seeds.values()]
        return {
            "balanced_accuracy": statistics.fmean(values),
            "stdev": statistics.stdev(values),
            "few_accuracy": statistics.fmean(few),
        }

    best = best_row(evidence)
    rows = {name: summary(row["seeds"]) for name, row in evidence["rows"].items() if name in (best, *LETS)}
    result = {
        "command": f"python benchmarks/tune_check.py {task}",
        "machine": machine_class(),
        "budget": BUDGET,
        "final_seeds": list(FINAL_SEEDS),
        "chosen": chosen,
        "said": found["said"],
        "tuned": summary({str(run.seed): finished[run.key]["test"] for run in runs}),
        "best_row": best,
        "rows": rows,
        "searched_runs": len(found["runs"]),
        "searched_seconds": round(sum(run["seconds"] for run in found["runs"])),
    }
    (RESULTS / f"tune_check_{task}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
