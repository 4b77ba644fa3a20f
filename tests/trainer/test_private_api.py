"""Which private parts of Trainer we rely on, and whether the installed transformers still has them."""

import inspect
import re
from pathlib import Path

import pytest
from transformers import Trainer

import hf_sharp
from hf_sharp import SharpTrainer
from hf_sharp.trainer.private_api import CALLED, OVERRIDDEN

OURS = list(SharpTrainer.__mro__[: SharpTrainer.__mro__.index(Trainer)])


def is_private_of_trainer(name):
    return name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)


def test_every_overridden_private_method_is_listed():
    assert {name for cls in OURS for name in vars(cls) if is_private_of_trainer(name)} == OVERRIDDEN.keys()


def test_every_called_private_method_is_listed():
    source = "".join(file.read_text() for file in Path(hf_sharp.__path__[0], "trainer").glob("*.py"))
    called = {
        name for name in re.findall(r"(?:self|trainer)\.(_[a-z]\w+)\b", source) if callable(getattr(Trainer, name, 0))
    }
    assert {name for name in called if is_private_of_trainer(name)} - OVERRIDDEN.keys() == CALLED.keys()


@pytest.mark.parametrize("name", [*OVERRIDDEN, *CALLED])
def test_transformers_still_has_it(name):
    method = getattr(Trainer, name, None)
    assert method is not None, f"this transformers has no Trainer.{name} any more"
    expected = (OVERRIDDEN | CALLED)[name].parameters
    assert tuple(inspect.signature(method).parameters)[1:] == expected, f"Trainer.{name} takes other parameters"


def test_at_most_two_classes_stand_between_sharp_trainer_and_trainer():
    assert len(OURS) - 1 <= 2
