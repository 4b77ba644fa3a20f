"""Every loss against its reference in tests/naive.py, on random class counts, batches and options."""

import random
from functools import partial

import pytest

from hf_sharp.losses import LOSSES, build_loss
from hf_sharp.losses.registry import loss_options
from tests import draws, naive

HOUSE = LOSSES.builtin
SEEDS = range(30)


def draw_options(name, seed):
    return draws.draw_options(name, loss_options(name), random.Random(seed))


@pytest.mark.parametrize("name", HOUSE)
def test_every_loss_has_a_naive_reference(name):
    naive.reference("loss", name, loss_options(name))


def test_every_naive_reference_is_of_a_loss():
    unknown = naive.names("loss") - set(HOUSE)
    assert not unknown, f"tests/naive.py has references of losses that do not exist: {sorted(unknown)}"


def test_a_missing_reference_or_range_says_what_to_add():
    with pytest.raises(
        AssertionError, match=r"Write naive_loss_mine\(logits, labels, counts, epsilon\) in tests/naive"
    ):
        naive.reference("loss", "mine", {"epsilon"})
    with pytest.raises(
        AssertionError, match=r"naive_loss_cdt .* takes the options \['loss_gamma'\], but 'cdt' takes \['"
    ):
        naive.reference("loss", "cdt", {"loss_gamma", "epsilon"})
    with pytest.raises(
        AssertionError, match=r"option 'epsilon' of 'cdt' has no range. Add it to RANGES in tests/naive"
    ):
        draws.draw_options("cdt", {"epsilon"}, random.Random(0))


@pytest.mark.parametrize("name", HOUSE)
def test_every_option_of_a_loss_is_drawn_away_from_its_default(name):
    reference = naive.reference("loss", name, loss_options(name))
    draws.assert_away_from_defaults(reference, [draw_options(name, seed) for seed in SEEDS])


@pytest.mark.parametrize("name", HOUSE)
def test_every_loss_equals_its_naive_reference(name):
    reference = naive.reference("loss", name, loss_options(name))
    needs_features = LOSSES[name].needs_features
    for seed in SEEDS:
        rng, options = random.Random(seed), draw_options(name, seed)
        counts = draws.draw_counts(rng)
        size = {"feature_dim": draws.FEATURE_DIM} if needs_features else {}
        loss, earlier = build_loss(name, counts, **size, **options).double(), []
        for batch in (1, 2, 3):  # a loss with state sets it in the first and updates it in the second
            labels, inputs = draws.draw_batch(rng, len(counts))
            known = {"counts": counts, **options}
            if needs_features:
                known["earlier"] = list(earlier)
                features = naive.exact(inputs["features"])
                earlier.append((draws.counted(labels, features), draws.counted(labels, labels)))
            else:
                inputs = {"logits": inputs["logits"]}
            try:
                draws.assert_equal(loss, partial(reference, **known), labels, inputs, rng)
            except AssertionError as error:
                error.add_note(f"seed {seed}, batch {batch}: counts {counts}, labels {labels}, options {options}")
                raise
