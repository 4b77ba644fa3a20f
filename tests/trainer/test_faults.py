"""An error or an interrupt at any line of a step: the weights are what they were, and training goes on."""

import sys

import pytest
import torch

import hf_sharp
from tests.conftest import assert_same_bits, make_images, method_id, weights_of
from tests.trainer.test_sharp_trainer import METHODS

FILES = [
    f"{hf_sharp.__path__[0]}/{name}"
    for name in (
        "sharpness/step.py",
        "sharpness/ascent.py",
        "sharpness/ascents.py",
        "sharpness/engine.py",
        "trainer/sharp_trainer.py",
    )
]


class AtLine:
    """Counts the lines that run in the sharpness engine and the trainer; raises before one of them."""

    def __init__(self, error=None, at=None):
        self.error, self.at, self.count, self.where = error, at, 0, None

    def __enter__(self):
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise self.error
        return self


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("options", [*METHODS[1:], {"sharpness": "sam", "rho": 1.0, "adaptive": True}], ids=method_id)
def test_raised_at_every_line_of_a_step(make_trainer, options):
    trainer = make_trainer(max_steps=1, **options)
    trainer.train()  # makes the optimizer
    model = trainer.model
    batch = trainer.data_collator([make_images()[i] for i in range(12)])

    def step():
        model.zero_grad()
        trainer.training_step(model, dict(batch), torch.tensor(12))

    before = weights_of(model)
    with AtLine() as lines:
        step()
    expected = gradients(model)
    assert lines.count > 60
    assert_same_bits(weights_of(model), before)
    for at in range(1, lines.count + 1):
        error = KeyboardInterrupt if at % 2 else RuntimeError
        with pytest.raises(error), AtLine(error("planted"), at) as line:
            step()
        different = [name for name, value in weights_of(model).items() if not torch.equal(value, before[name])]
        assert not different, f"raised at {line.where}, {len(different)} tensors are not what they were"
        if at % 5 == 0:
            step()
            assert_same_bits(gradients(model), expected)
