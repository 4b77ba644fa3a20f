import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sharp.losses import LOSSES, ClassFrequencyLoss, build_loss
from hf_sharp.losses.registry import loss_options
from tests import naive

COUNTS = [500, 60, 12, 3]
LOGITS = np.random.default_rng(0).normal(size=(16, 4)) * 3
LABELS = np.random.default_rng(1).integers(0, 4, 16)

# Logits, labels, and the values of each loss, computed independently of this package.
REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())

OF_LOGITS = [name for name, loss in LOSSES.items() if not loss.needs_features]  # test_large_margin.py tests the other
OPTIONS = [
    ("cross_entropy", {}),
    ("weighted", {}),
    ("class_balanced", {}),
    ("class_balanced", {"loss_beta": 0.9}),
    ("focal", {}),
    ("focal", {"loss_gamma": 0.5}),
    ("logit_adjusted", {}),
    ("logit_adjusted", {"loss_tau": 1.5}),
    ("balanced_softmax", {}),
    ("cdt", {}),
    ("cdt", {"loss_gamma": -0.4}),
    ("ldt", {}),
    ("ldt", {"loss_gamma": 0.7}),
    ("vs", {}),
    ("vs", {"loss_gamma": 0.2, "loss_tau": 1.3}),
    ("ldam", {}),
    ("ldam", {"loss_margin": 0.2, "loss_scale": 3.0}),
]


def naive_loss_and_gradient(name, z, y, **options):
    """One example's loss, and its gradient by differences, in 40 digits."""
    reference = naive.reference("loss", name, loss_options(name))

    def loss(z):
        return reference([z], [y], COUNTS, **options)[0]

    z = naive.exact(z.tolist())
    return float(loss(z)), [float(value) for value in naive.gradient(loss, z)]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_the_naive_reference(name, options, dtype, tolerance):
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    losses = build_loss(name, COUNTS, **options)(logits, torch.tensor(LABELS))
    losses.sum().backward()
    expected = [naive_loss_and_gradient(name, z, y, **options) for z, y in zip(LOGITS, LABELS, strict=True)]
    values, gradients = zip(*expected, strict=True)
    np.testing.assert_allclose(losses.detach().numpy(), values, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(logits.grad.numpy(), gradients, rtol=tolerance, atol=tolerance)


def parsed(entry):
    """Split `vs(gamma=0.3,tau=1)` into the name and the options."""
    name, _, options = entry.rstrip(")").partition("(")
    return name, {f"loss_{key}": float(value) for key, value in (o.split("=") for o in options.split(",") if o)}


@pytest.mark.parametrize("entry", REFERENCE["per_example"])
def test_reference_values_computed_independently(entry):
    name, options = parsed(entry)
    losses = build_loss(name, REFERENCE["class_counts"], **options)(
        torch.tensor(REFERENCE["logits"], dtype=torch.float64), torch.tensor(REFERENCE["labels"])
    )
    np.testing.assert_allclose(losses.numpy(), REFERENCE["per_example"][entry], atol=1e-9)


def test_ldam_reference_values_computed_independently():
    reference = REFERENCE["ldam"]
    loss = build_loss("ldam", REFERENCE["class_counts"])
    losses = loss(torch.tensor(reference["cosine_logits"], dtype=torch.float64), torch.tensor(REFERENCE["labels"]))
    np.testing.assert_allclose(losses.numpy(), reference["per_example"], atol=1e-9)


def same(first, second, tolerance=1e-12):
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    torch.testing.assert_close(first(logits, labels), second(logits, labels), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("logit_adjusted", {"loss_tau": 0.0}), ("cross_entropy", {})),
        (("cdt", {"loss_gamma": 0.0}), ("cross_entropy", {})),
        (("ldt", {"loss_gamma": 0.0}), ("cross_entropy", {})),
        (("focal", {"loss_gamma": 0.0}), ("cross_entropy", {})),
        (("vs", {"loss_gamma": 0.0}), ("logit_adjusted", {})),
        (("vs", {"loss_tau": 0.0}), ("cdt", {})),
        (("balanced_softmax", {}), ("logit_adjusted", {"loss_tau": 1.0})),
        (("class_balanced", {"loss_beta": 0.0}), ("cross_entropy", {})),
    ],
)
def test_identities(first, second):
    same(build_loss(first[0], COUNTS, **first[1]), build_loss(second[0], COUNTS, **second[1]))


def test_class_balanced_becomes_weighted_as_beta_goes_to_one():
    same(build_loss("class_balanced", COUNTS, loss_beta=1 - 1e-10), build_loss("weighted", COUNTS), tolerance=1e-5)


# Losses that only scale, shift and weight by class; the others change the cross-entropy itself.
AFFINE = [
    name
    for name in OF_LOGITS
    if LOSSES[name].unweighted is ClassFrequencyLoss.unweighted and LOSSES[name].adjust is ClassFrequencyLoss.adjust
]


@pytest.mark.parametrize("name", AFFINE)
def test_equal_counts_give_cross_entropy(name):
    same(build_loss(name, [7, 7, 7, 7]), build_loss("cross_entropy", COUNTS))


def test_the_focal_loss_takes_p_from_the_unweighted_cross_entropy():
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    p = logits.softmax(1)[torch.arange(len(labels)), labels]
    expected = (1 - p) ** 2 * -p.log()
    torch.testing.assert_close(build_loss("focal", COUNTS)(logits, labels), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_the_focal_gradient_is_finite_where_the_model_is_certain(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)
    build_loss("focal", COUNTS, loss_gamma=gamma)(logits, torch.tensor([0])).sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", [name for name in OF_LOGITS if name not in ("cdt", "vs")])
def test_adding_a_constant_to_all_logits_changes_nothing(name):
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    loss = build_loss(name, COUNTS)
    torch.testing.assert_close(loss(logits + 5, labels), loss(logits, labels), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_ignored_labels_give_exactly_zero_loss_and_gradient(name):
    logits = torch.tensor(LOGITS, requires_grad=True)
    labels = torch.tensor(LABELS)
    labels[3] = -100
    losses = build_loss(name, COUNTS)(logits, labels)
    losses.sum().backward()
    assert losses[3] == 0
    assert torch.equal(logits.grad[3], torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_at_least_float32_and_finite_for_large_logits(name, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 5.0], [-1e4, 1e4, 0.0, 5.0]], dtype=dtype, requires_grad=True)
    losses = build_loss(name, COUNTS)(logits, torch.tensor([1, 1]))
    losses.sum().backward()
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_class_without_examples_is_finite(name):
    loss = build_loss(name, [10, 5, 0, 2])
    logits = torch.zeros(4, 4, requires_grad=True)
    losses = loss(logits, torch.arange(4))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", OF_LOGITS)
def test_buffers_move_and_nothing_is_a_parameter_or_saved(name):
    loss = build_loss(name, COUNTS)
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    assert all(buffer.device.type == "meta" for buffer in loss.to("meta").buffers())


@pytest.mark.parametrize("label", [4, -1])
def test_label_outside_the_classes(label):
    with pytest.raises(ValueError, match=f"label {label} is outside the classes 0 to 3"):
        build_loss("cross_entropy", COUNTS)(torch.zeros(2, 4), torch.tensor([0, label]))


@pytest.mark.parametrize(("logits", "labels"), [((2, 5), (2,)), ((2, 3, 4), (2,)), ((2, 4), (3,)), ((2, 4), (2, 4))])
def test_mismatched_shapes(logits, labels):
    with pytest.raises(ValueError, match=r"expected logits of shape \(N, 4\) and labels of shape \(N,\)"):
        build_loss("cross_entropy", COUNTS)(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_unknown_loss_and_unknown_option():
    with pytest.raises(
        ValueError, match="unknown loss 'crossentropy'; expected one of cross_entropy, weighted, class_balanced"
    ):
        build_loss("crossentropy", COUNTS)
    with pytest.raises(ValueError, match="loss 'cross_entropy' does not take loss_tau; it takes no options"):
        build_loss("cross_entropy", COUNTS, loss_tau=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "option"),
    [("logit_adjusted", "loss_tau"), ("cdt", "loss_gamma"), ("vs", "loss_tau"), ("focal", "loss_gamma")],
)
def test_options_that_are_not_finite(name, option, value):
    with pytest.raises(ValueError, match=f"{option} must be a finite number"):
        build_loss(name, COUNTS, **{option: value})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("class_balanced", "loss_beta", 1.0),
        ("class_balanced", "loss_beta", -0.1),
        ("focal", "loss_gamma", -1.0),
        ("ldam", "loss_margin", -0.1),
        ("ldam", "loss_scale", 0.0),
    ],
)
def test_options_out_of_range(name, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        build_loss(name, COUNTS, **{option: value})


IMPORTANCE = [1.0, 2.0, 0.5, 4.0]


@pytest.mark.parametrize("name", OF_LOGITS)
def test_class_importance_multiplies_the_loss_of_a_class(name):
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    plain, important = build_loss(name, COUNTS), build_loss(name, COUNTS, class_importance=IMPORTANCE)
    expected = plain(logits, labels) * torch.tensor(IMPORTANCE, dtype=torch.float64)[labels]
    torch.testing.assert_close(important(logits, labels), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_loss_is_rebuilt_from_its_config_after_a_json_round_trip(name, options):
    loss = build_loss(name, COUNTS, class_importance=IMPORTANCE, **options)
    again = build_loss(class_counts=COUNTS, **json.loads(json.dumps(loss.config)))
    assert repr(again) == repr(loss)
    assert loss.config["name"] == name
    assert options.items() <= loss.config.items()
    same(again, loss, tolerance=0)


@pytest.mark.parametrize(
    "importance",
    [
        [1.0, 2.0],
        [1.0, 0.0, 1.0, 1.0],
        [1.0, -1.0, 1.0, 1.0],
        [1.0, float("nan"), 1.0, 1.0],
        {"a": 2.0},
        ["x"] * 4,
        "4",
    ],
)
def test_invalid_class_importance(importance):
    with pytest.raises(ValueError, match="class_importance must be 4 finite numbers > 0, one per class; got"):
        build_loss("cross_entropy", COUNTS, class_importance=importance)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, -1], "class counts must be integers >= 0; class 1 has -1"),
        ([3, 1.5], "class 1 has 1.5"),
        ([3, float("nan")], "class 1 has nan"),
        ([[3, 1]], "must be a vector of integers"),
        (["3", "1"], "must be a vector of integers"),
        ([3], "at least 2 classes"),
    ],
)
def test_invalid_class_counts(counts, message):
    with pytest.raises(ValueError, match=message):
        build_loss("logit_adjusted", counts)


@pytest.mark.parametrize("name", ["weighted", "class_balanced", "ldam"])
def test_absent_classes_do_not_change_the_weights_of_the_others(name):
    attribute = "margin" if name == "ldam" else "weight"
    alone, among = (getattr(build_loss(name, counts), attribute) for counts in ([90, 10], [90, 10] + 40 * [0]))
    torch.testing.assert_close(among[:2], alone)
    assert among.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype):
    loss, logits, labels = build_loss("logit_adjusted", [9, 5, 1]), torch.randn(3, 3), torch.arange(3)
    torch.testing.assert_close(loss(logits, labels.to(dtype)), loss(logits, labels))
    with pytest.raises(ValueError, match=r"got \(3, 3\) and \(3,\), of torch.float32"):
        loss(logits, labels.float())


def test_an_option_that_is_a_text_is_named():
    with pytest.raises(ValueError, match="loss_tau must be a finite number, got 'one'"):
        build_loss("logit_adjusted", [9, 5, 1], loss_tau="one")
