"""The `hf-sharp` command as a whole."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import hf_sharp
from hf_sharp import cli

COMMAND = Path(sys.executable).parent / "hf-sharp"


def test_help_lists_every_command():  # that it is fast: test_startup.py
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, check=True)
    for name, what in cli.COMMANDS.items():
        assert name in done.stdout
        assert what in done.stdout


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_fits_80_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        cli.main([*name.split(), "--help"])
    printed = capsys.readouterr().out
    assert "usage: hf-sharp" in printed
    names = " -["  # argparse folds texts, but not the names of an option
    assert [line for line in printed.splitlines() if len(line) > 80 and line.strip()[0] not in names] == []


def test_version_and_unknown_commands(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == hf_sharp.__version__
    assert cli.main(["adjsut"]).startswith("error: unknown command 'adjsut'; the commands are ")
    assert cli.main([]) == 0


@pytest.mark.parametrize("words", [["counts", "digits"], ["evaluate", "m", "digits"], ["adjust", "m", "--output", "o"]])
def test_an_unknown_flag_is_one_line_with_the_nearest_one(words):
    assert (
        cli.main([*words, "--label_colum", "x"]) == "error: unknown flag: 'label_colum'. Did you mean 'label_column'?"
    )


def test_words_too_many_are_named():
    assert cli.main(["counts", "digits", "more"]) == "error: unexpected arguments on the command line: more"


@pytest.mark.parametrize("flag", ["--licence", "--license"])
def test_a_card_is_written_again_from_the_results_with_a_licence(flag, tmp_path):
    source = Path(__file__).parent.parent / "model_cards" / "quickstart" / "sam+logit_adjusted"
    folder = shutil.copytree(source, tmp_path / "model")
    assert cli.main(["card", str(folder), flag, "mit", "--language", "en"]) == 0
    assert ModelCard.load(folder / "README.md").data.license == "mit"


@pytest.mark.parametrize("name", ["evaluate", "sharpness", "adjust", "calibrate", "predict", "shift"])
def test_every_command_that_opens_a_model_can_be_told_to_trust_its_code(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert "--trust_remote_code" in capsys.readouterr().out
