"""Both passes draw the same numbers, whoever draws them."""

import random

import numpy as np
import pytest
import torch

from tests.conftest import make_vit, weights_of

DRAWS = {"torch": lambda: torch.rand(1).item(), "numpy": np.random.rand, "random": random.random}


@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.parametrize("options", [{"sharpness": "sam"}, {"sharpness": "focal_sam"}], ids=str)
def test_both_passes_see_the_same_numbers_and_the_next_step_others(make_trainer, source, options):
    trainer = make_trainer(make_vit(), max_steps=3, rho=0.3, **options)
    drawn = []
    trainer.model.register_forward_pre_hook(lambda *_: drawn.append(DRAWS[source]()))
    trainer.train()
    pairs = list(zip(drawn[::2], drawn[1::2], strict=True))
    assert all(first == second for first, second in pairs)
    assert len({first for first, _ in pairs}) == 3


@pytest.mark.parametrize("source", DRAWS)
def test_afterwards_the_numbers_go_on_as_in_plain_training(make_trainer, source):
    def after(sharpness):
        trainer = make_trainer(make_vit(), max_steps=2, sharpness=sharpness)
        trainer.model.register_forward_pre_hook(lambda *_: DRAWS[source]() and None)
        trainer.train()
        assert weights_of(trainer.model)
        return DRAWS[source]()

    assert after("sam") == after("none")
