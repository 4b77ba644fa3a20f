"""Every sharpness method against its reference in tests/naive.py, on random class counts and options."""

import random
from functools import partial

import numpy as np
import pytest

from hf_sharp.sharpness import METHODS, class_coefficients
from hf_sharp.sharpness.coefficients import method_options
from tests import draws, naive

HOUSE = METHODS.builtin
SEEDS = range(60)


def draw_options(name, seed):
    return draws.draw_options(name, method_options(name), random.Random(seed))


@pytest.mark.parametrize("name", HOUSE)
def test_every_method_has_a_naive_reference(name):
    naive.reference("coefficients", name, method_options(name))


def test_every_naive_reference_is_of_a_method():
    unknown = naive.names("coefficients") - set(HOUSE)
    assert not unknown, f"tests/naive.py has references of methods that do not exist: {sorted(unknown)}"


@pytest.mark.parametrize("name", HOUSE)
def test_every_option_of_a_method_is_drawn_away_from_its_default(name):
    reference = naive.reference("coefficients", name, method_options(name))
    draws.assert_away_from_defaults(reference, [draw_options(name, seed) for seed in SEEDS])


def coefficients_or_refused(function, counts, options):
    try:
        return [float(coefficient) for coefficient in function(counts, **options)]
    except ValueError:
        return "refused"


@pytest.mark.parametrize("name", HOUSE)
def test_every_method_equals_its_naive_reference(name):
    reference, results = naive.reference("coefficients", name, method_options(name)), []
    for seed in SEEDS:
        counts, options = draws.draw_counts(random.Random(seed)), draw_options(name, seed)
        expected = coefficients_or_refused(reference, counts, options)
        coefficients = coefficients_or_refused(partial(class_coefficients, name), counts, options)
        draw = f"seed {seed}: counts {counts}, options {options}"
        assert (coefficients == "refused") == (expected == "refused"), f"{coefficients}, not {expected}; {draw}"
        if expected != "refused":
            np.testing.assert_allclose(coefficients, expected, rtol=1e-12, atol=1e-12, err_msg=draw)
        results.append(expected)
    assert results.count("refused") < len(SEEDS) / 2, "most draws are refused: change the ranges of the options"
