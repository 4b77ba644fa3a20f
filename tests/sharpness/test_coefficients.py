import numpy as np
import pytest
import torch

from hf_sharp.sharpness import METHODS, Method, class_coefficients, register_method

COUNTS = [500, 60, 12, 3]


def test_focal_sam_is_lambda_times_one_minus_prior_to_gamma():
    priors = np.array(COUNTS) / np.sum(COUNTS)
    coefficients = class_coefficients("focal_sam", COUNTS, focal_gamma=1.5, focal_lambda=0.7)
    np.testing.assert_allclose(coefficients.numpy(), 0.7 * (1 - priors) ** 1.5, rtol=1e-15)


def test_focal_sam_defaults_are_those_of_the_design():
    priors = np.array(COUNTS) / np.sum(COUNTS)
    np.testing.assert_allclose(class_coefficients("focal_sam", COUNTS).numpy(), 0.8 * (1 - priors), rtol=1e-15)


def test_imbsam_perturbs_rare_classes_only():
    assert class_coefficients("imbsam", COUNTS).tolist() == [0, 0, 1, 1]
    assert class_coefficients("imbsam", COUNTS, rare_threshold=12).tolist() == [0, 0, 0, 1]


def test_sam_and_none():
    assert class_coefficients("sam", COUNTS).tolist() == [1] * 4
    assert class_coefficients("none", COUNTS).tolist() == [0] * 4


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_float64_and_one_per_class(name):
    coefficients = class_coefficients(name, COUNTS)
    assert coefficients.dtype == torch.float64
    assert coefficients.shape == (4,)


def test_imbsam_without_a_rare_class_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"fewer than rare_threshold=20 .* smallest class has 30.*Raise rare_threshold"
    ):
        class_coefficients("imbsam", [100, 30])


def test_unknown_method_lists_the_methods():
    with pytest.raises(ValueError, match=r"'sma'.*none, sam, imbsam, focal_sam"):
        class_coefficients("sma", COUNTS)


def test_option_that_the_method_does_not_take():
    with pytest.raises(ValueError, match=r"'sam' does not take focal_gamma; it takes no options"):
        class_coefficients("sam", COUNTS, focal_gamma=2.0)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("option", ["focal_gamma", "focal_lambda"])
def test_focal_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=option):
        class_coefficients("focal_sam", COUNTS, **{option: value})


@pytest.mark.parametrize("method", ["sam", lambda priors: priors, Method(name="mine", coefficients=[1.0, 2.0])])
def test_only_methods_with_a_function_are_registered(method):
    with pytest.raises(ValueError, match="whose coefficients are a function of priors or class_counts; got"):
        register_method(method)
    assert "mine" not in METHODS
