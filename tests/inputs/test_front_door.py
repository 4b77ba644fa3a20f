"""What a newcomer gets wrong first: names, files, columns, shares. The message says what was meant, and how to type it."""

import logging
import sys

import pytest

from hf_sharp import SharpTrainingArguments, cli
from hf_sharp.losses import build_loss
from hf_sharp.recipe import RecipeParser, run_recipe
from hf_sharp.recipe.options import OPTIONS


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("lr", "learning_rate"), ("epochs", "num_train_epochs"), ("labels", "label_column"), ("los", "loss")],
)
def test_flags_of_other_programs_are_known(flag, meant):
    with pytest.raises(ValueError, match=f"unknown flag: '{flag}'. Did you mean '{meant}'"):
        RecipeParser(OPTIONS, [f"--{flag}", "1"])


def test_the_nearest_name_is_named():
    assert cli.main(["count"]).endswith(" Did you mean 'counts'?")
    with pytest.raises(ValueError, match="unknown loss 'crossentropy'; .* Did you mean 'cross_entropy'"):
        build_loss("crossentropy", [2, 1])
    with pytest.raises(ValueError, match="unknown sampler 'Square-root'; .* Did you mean 'square_root'"):
        SharpTrainingArguments("out", sampler="Square-root", report_to="none")


@pytest.mark.parametrize(("name", "meant"), [("baselin", "baseline"), ("plian.yaml", "plain.yaml")])
def test_a_config_that_does_not_exist_is_compared_with_those_that_do(name, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.yaml").write_text("loss: focal\n")
    with pytest.raises(ValueError, match=f"config file '{name}' does not exist. Did you mean '{meant}'"):
        RecipeParser(OPTIONS, []).read(name)


def test_a_command_says_every_warning_once(caplog, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    logger = logging.getLogger("hf_sharp.option_checks")

    def main():
        for count in (1, 1, 2, 1):
            logger.warning("%d runs", count)
            logging.getLogger("mine").warning("mine")

    for _ in range(2):
        caplog.clear()
        assert run_recipe(main) is None
        assert [text for text in caplog.messages if text != "mine"] == ["1 runs", "2 runs"]
        assert caplog.messages.count("mine") == 4
