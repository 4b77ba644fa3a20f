"""Lists are checked, not remembered: methods, losses, fields, configs and what the README says of them."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments

from hf_sharp import SharpTrainingArguments
from hf_sharp.losses import LOSSES
from hf_sharp.losses.registry import loss_options
from hf_sharp.sharpness import METHODS, RHO_SCHEDULES
from hf_sharp.sharpness.coefficients import method_options

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
OURS = [item for item in fields(SharpTrainingArguments) if item.name not in {f.name for f in fields(TrainingArguments)}]


def rows_of(section):
    text = README.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    return [re.findall(r"`([^`]+)`", row.split("|")[1])[0] for row in text.splitlines() if row.startswith("| `")]


def test_the_readme_has_a_row_for_every_method_and_every_loss():
    assert rows_of("Which method") == list(METHODS)
    assert rows_of("Which loss") == list(LOSSES)


def test_the_readme_has_a_row_for_every_option_with_its_default():
    rows = {}
    for row in README.split("## Options\n", 1)[1].split("\n## ", 1)[0].splitlines():
        if row.startswith("| `"):
            name, default = row.split("|")[1:3]
            rows[name.strip(" `")] = default.strip(" `")
    assert rows == {item.name: str(item.default) for item in OURS}


def test_options_of_methods_and_losses_are_fields():
    names = {item.name for item in OURS}
    for method in METHODS:
        assert method_options(method) <= names
    for loss in LOSSES:
        assert loss_options(loss) <= names


@pytest.mark.parametrize("field", ["sharpness", "loss", "rho_schedule"])
def test_help_lists_the_choices(field):
    choices = {"sharpness": METHODS, "loss": LOSSES, "rho_schedule": RHO_SCHEDULES}[field]
    text = next(item for item in OURS if item.name == field).metadata["help"]
    assert text.endswith(f"One of: {', '.join(choices)}.")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: file.stem)
def test_every_config_has_a_row_in_the_readme_and_says_where_its_output_goes(config):
    assert f"recipes/configs/{config.name}" in README
    assert yaml.safe_load(config.read_text())["output_dir"] == f"outputs/{config.stem}"


def test_paths_that_the_readme_names_exist():
    named = set(re.findall(r"(?:recipes|benchmarks|docs|hf_sharp|tests)/[\w./-]+\.\w+", README))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_numbers_in_the_readme_are_those_of_the_committed_results():
    check = [sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_ten_lines_of_the_readme_run(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    assert "SharpTrainer" in code
    code = code.replace("num_train_epochs=100", "max_steps=3")
    result = {}
    exec(compile(code, "README.md", "exec"), result)
    assert "eval_balanced_accuracy" in result["metrics"]


def test_git_holds_no_weights_no_data_and_no_path_of_a_machine():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert not [file for file in files if file.endswith((".safetensors", ".bin", ".pt", ".arrow", ".parquet", ".whl"))]
    for file in filter(None, files):
        path = ROOT / file
        if path.exists() and path.suffix in (".py", ".md", ".yaml", ".toml", ".json", ".txt", ".cff"):
            assert not re.search(r"/(work|root|home)/[a-z]", path.read_text()), file
