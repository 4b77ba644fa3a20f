"""What the error says about a number that is a text, NaN, out of range or of the wrong kind."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from hf_sharp import ClassFrequencies, SharpTrainingArguments, split_validation
from hf_sharp.curvature import LossSurface, average_sharpness, measure_curvature, stratified_sample
from hf_sharp.datasets import digits, long_tail
from hf_sharp.few_shot import EpisodeSampler, evaluate, make_domain, parc_score
from hf_sharp.geometry import gram_distance, train_ufm
from hf_sharp.losses import build_loss
from hf_sharp.metrics import long_tail_report
from hf_sharp.model.confidence import class_thresholds, fit_temperature, fold_temperature, prediction_sets
from hf_sharp.model.cosine_head import use_cosine_head
from hf_sharp.model.head_init import init_head_from_class_means
from hf_sharp.posthoc import adjust_head, estimate_shares
from hf_sharp.registry.limits import check_number


@pytest.mark.parametrize(
    ("value", "limits", "said"),
    [
        ("2", {}, "x must be a finite number, got '2'."),
        (True, {}, "x must be a finite number, got True."),
        (None, {"least": 0}, "x must be a finite number >= 0, got None."),
        ([1], {"above": 0}, "x must be a finite number > 0, got [1]."),
        (math.inf, {"above": 0}, "x must be a finite number > 0, got inf."),
        (10**400, {"above": 0}, "x must be a finite number > 0, got 1"),
        (math.nan, {"above": 0, "below": 1}, "x must be a number > 0 and < 1, got nan."),
        (0, {"above": 0, "most": 0.5}, "x must be a number > 0 and <= 0.5, got 0."),
        (3.0, {"least": 1, "whole": True}, "x must be an integer >= 1, got 3.0."),
        (2**32, {"least": 0, "below": 2**32, "whole": True}, "x must be an integer >= 0 and < 4294967296, got"),
        (95, {"above": 0, "below": 1, "share": True}, "got 95. For 95 % write 0.95."),
        (1, {"above": 0, "below": 1, "share": True}, "got 1."),
        (80, {"above": 0, "most": 0.5, "share": True}, "got 80."),
    ],
)
def test_what_an_error_says(value, limits, said):
    with pytest.raises(ValueError, match="x must be") as error:
        check_number("x", value, **limits)
    assert said in str(error.value)
    assert ("%" in str(error.value)) == ("%" in said)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(1), torch.tensor(0.5), Fraction(1, 3)])
def test_numbers_of_any_kind(value):
    check_number("x", value, above=0, most=1)


@pytest.mark.parametrize(("value", "whole"), [(np.int64(3), True), (3, True), (None, True), (None, False)])
def test_integers_and_no_value(value, whole):
    check_number("x", value, least=1, whole=whole, optional=True)


def linear():
    return torch.nn.Sequential(torch.nn.Linear(2, 2))


LOGITS, LABELS = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
DATA = [{"input": torch.eye(2), "labels": torch.tensor([0, 1])}]


def surface():
    return LossSurface(linear(), DATA, ClassFrequencies.from_counts([300, 3]))


def domain():
    return make_domain(digits()["test"], "digits")


def some(x):
    """Where None stands for the default."""
    return "none" if x is None else x


CALLS = {
    "loss_tau": lambda x: build_loss("logit_adjusted", [3, 1], loss_tau=some(x)),
    "loss_beta": lambda x: build_loss("class_balanced", [3, 1], loss_beta=some(x)),
    "lm_momentum": lambda x: build_loss("large_margin", [3, 1], feature_dim=2, lm_momentum=some(x)),
    "rho": lambda x: measure_curvature(linear(), DATA, [300, 3], rho=x),
    "probes": lambda x: measure_curvature(linear(), DATA, [300, 3], probes=x),
    "directions": lambda x: average_sharpness(surface(), directions=x),
    "size": lambda x: stratified_sample([0, 0, 1], x),
    "imbalance_factor": lambda x: long_tail(digits()["train"], x),
    "the fraction to hold out": lambda x: split_validation(digits()["train"], x),
    "ways": lambda x: EpisodeSampler([0, 0, 1, 1], ways=some(x)),
    "episodes": lambda x: evaluate(linear(), domain(), episodes=x),
    "ridge": lambda x: train_ufm(build_loss("cross_entropy", [3, 1]), x),
    "rare_threshold": lambda x: long_tail_report([0, 1], [0, 1], [3, 1], rare_threshold=x),
    "common_threshold": lambda x: ClassFrequencies.from_counts([3, 1], common_threshold=x),
    "precision": lambda x: class_thresholds([[0.5, 0.5]], [0], x),
    "coverage": lambda x: prediction_sets([[0.5, 0.5]], [[0.1], [0.2]], x),
    "temperature": lambda x: fold_temperature(linear(), x, 2),
    "scale": lambda x: use_cosine_head(linear(), 2, scale=x),
    "examples_per_class": lambda x: init_head_from_class_means(linear(), DATA, [1, 1], examples_per_class=some(x)),
    "strength": lambda x: adjust_head(linear(), [3, 1], "tau_norm", strength=x),
    "bootstrap": lambda x: estimate_shares(LOGITS, LABELS, LOGITS, [3, 1], bootstrap=x),
    "focal_gamma": lambda x: SharpTrainingArguments("out", sharpness="focal_sam", focal_gamma=x),
    "cc_phi": lambda x: SharpTrainingArguments("out", sharpness="cc_sam", cc_phi=x),
    "learning_rate": lambda x: SharpTrainingArguments("out", learning_rate=some(x)),
    "weight_decay": lambda x: SharpTrainingArguments("out", weight_decay=some(x)),
    "seed": lambda x: SharpTrainingArguments("out", seed=some(x)),
}


@pytest.mark.parametrize("value", ["large", math.nan, True, None], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_every_function_names_the_number(name, value):
    with pytest.raises(ValueError, match=rf"^(--)?{name}.* must be an? .*got "):
        CALLS[name](value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "call",
    [
        lambda rows, labels: estimate_shares(rows, labels, rows, labels + 1, bootstrap=20).shares,
        lambda rows, labels: class_thresholds(rows, labels, 0.5),
        lambda rows, labels: fit_temperature(rows, labels),
        lambda rows, labels: prediction_sets(rows, list(rows.T), 0.5),
        lambda rows, labels: long_tail_report(rows.argmax(1), labels, [30, 1, 1, 1], rows),
        lambda rows, labels: gram_distance(rows, rows[[1, 2, 3, 0]]),
        lambda rows, labels: parc_score(rows, labels // 2),
        lambda rows, labels: stratified_sample(labels, 2),
        lambda rows, labels: ClassFrequencies.from_counts(labels).counts,
        lambda rows, labels: build_loss("logit_adjusted", labels).offset,
        lambda rows, labels: EpisodeSampler(labels // 2, ways=2, shots=1, queries=1).draw(0).query,
    ],
)
def test_tensors_of_any_dtype_with_gradients_are_read_as_arrays(call, dtype):
    rows = [[0.5, 0.25, 0.125, 0.125], [0.0, 0.75, 0.25, 0.0], [0.125, 0.0, 0.5, 0.375], [0.25, 0.0, 0.0, 0.75]]
    labels = torch.tensor([0, 1, 2, 3])
    tensors = call(torch.tensor(rows, dtype=dtype, requires_grad=True), labels)
    assert str(tensors) == str(call(np.array(rows), labels.numpy()))
