"""What the commands import: light ones start without torch. Modules are counted, not seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# `datasets` imports the bare package scipy itself.
HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "sklearn",
    "scipy.stats",
    "scipy.special",
    "matplotlib",
    "hf_sharp.recipe.runs",
}


def modules_after(code):
    """The modules that a fresh Python has imported after running some code."""
    report = "\nimport json, sys; print('MODULES', json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, env=environment, check=True
    )
    return set(json.loads(done.stdout.rpartition("MODULES")[2]))


@pytest.mark.parametrize(
    "code", ["import hf_sharp", "from hf_sharp import cli; assert cli.main(['--help']) == 0"], ids=["import", "help"]
)
def test_the_package_and_its_help_import_only_the_standard_library(code):
    modules = modules_after(code)
    assert not modules & {*HEAVY, "datasets", "numpy", "pandas", "pyarrow", "rich"}
    assert len(modules) < 150


def test_counts_on_a_csv_imports_neither_torch_nor_transformers(tmp_path):
    (tmp_path / "mails.csv").write_text("text,label\nhello,ham\nbuy,spam\nhi,ham\n")
    code = f"from hf_sharp import cli; assert cli.main(['counts', {str(tmp_path / 'mails.csv')!r}]) == 0"
    modules = modules_after(code)
    assert "datasets" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("command", ["train", "card"])
def test_commands_that_only_start_others_or_write_text_do_not_import_the_trainer(command):
    modules = modules_after(
        f"from hf_sharp import cli\ntry: cli.main([{command!r}, '--help'])\nexcept SystemExit: pass"
    )
    assert "transformers.trainer" not in modules


@pytest.mark.parametrize("config", ["nowhere.yaml", "table.csv"])
def test_a_config_that_cannot_be_read_is_named_without_starting_a_training(config, tmp_path):
    (tmp_path / "table.csv").write_text("text,label\nhello,ham\n")
    argv = ["train", str(tmp_path / config)]
    modules = modules_after(f"from hf_sharp import cli; assert 'the config file' in cli.main({argv!r})")
    assert not modules & HEAVY
