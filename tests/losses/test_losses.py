import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_sharp.losses import LOSSES, build_loss

COUNTS = [500, 60, 12, 3]
LOGITS = np.random.default_rng(0).normal(size=(16, 4)) * 3
LABELS = np.random.default_rng(1).integers(0, 4, 16)

# The values of shared/reference/losses.json for the losses that exist: logits, labels and what each loss gives.
REFERENCE = json.loads((Path(__file__).parent / "reference.json").read_text())


def naive(logits, labels, tau):
    """−log softmax(z + τ log π)[y] and its gradient, row by row."""
    adjusted = logits + tau * np.log(np.array(COUNTS) / sum(COUNTS))
    values, gradients = [], []
    for row, label in zip(adjusted, labels, strict=True):
        shifted = np.exp(row - row.max())
        p = shifted / shifted.sum()
        values.append(-np.log(p[label]))
        gradients.append(p - np.eye(4)[label])
    return np.array(values), np.array(gradients)


@pytest.mark.parametrize(
    ("name", "options", "tau"),
    [
        ("cross_entropy", {}, 0.0),
        ("logit_adjusted", {}, 1.0),
        ("logit_adjusted", {"loss_tau": 1.5}, 1.5),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradient_equal_the_naive_reference(name, options, tau, dtype, tolerance):
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    losses = build_loss(name, COUNTS, **options)(logits, torch.tensor(LABELS))
    losses.sum().backward()
    values, gradients = naive(LOGITS, LABELS, tau)
    np.testing.assert_allclose(losses.detach().numpy(), values, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(logits.grad.numpy(), gradients, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("key", REFERENCE["per_example"])
def test_reference_numbers(key):
    name, _, options = key.partition("(")
    options = {f"loss_{k}": float(v) for k, v in (pair.split("=") for pair in options.strip(")").split(",") if pair)}
    loss = build_loss(name, REFERENCE["class_counts"], **options)
    values = loss(torch.tensor(REFERENCE["logits"], dtype=torch.float64), torch.tensor(REFERENCE["labels"]))
    np.testing.assert_allclose(values.numpy(), REFERENCE["per_example"][key], atol=5e-10)


def test_tau_zero_is_cross_entropy():
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    adjusted = build_loss("logit_adjusted", COUNTS, loss_tau=0.0)(logits, labels)
    assert torch.equal(adjusted, build_loss("cross_entropy", COUNTS)(logits, labels))


def test_equal_counts_are_cross_entropy():
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    adjusted = build_loss("logit_adjusted", [7, 7, 7, 7])(logits, labels)
    torch.testing.assert_close(adjusted, build_loss("cross_entropy", COUNTS)(logits, labels), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_adding_a_constant_to_all_logits_changes_nothing(name):
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    loss = build_loss(name, COUNTS)
    torch.testing.assert_close(loss(logits + 5, labels), loss(logits, labels), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_labels_give_exactly_zero_loss_and_gradient(name):
    logits = torch.tensor(LOGITS, requires_grad=True)
    labels = torch.tensor(LABELS)
    labels[3] = -100
    losses = build_loss(name, COUNTS)(logits, labels)
    losses.sum().backward()
    assert losses[3] == 0
    assert torch.equal(logits.grad[3], torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_at_least_float32_and_finite_for_large_logits(name, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 5.0], [-1e4, 1e4, 0.0, 5.0]], dtype=dtype, requires_grad=True)
    losses = build_loss(name, COUNTS)(logits, torch.tensor([1, 1]))
    losses.sum().backward()
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_without_examples_is_finite(name):
    loss = build_loss(name, [10, 5, 0, 2])
    logits = torch.zeros(4, 4, requires_grad=True)
    losses = loss(logits, torch.arange(4))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
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
def test_shapes_that_do_not_fit(logits, labels):
    with pytest.raises(ValueError, match=r"expected logits of shape \(N, 4\) and labels of shape \(N,\)"):
        build_loss("cross_entropy", COUNTS)(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))


def test_unknown_loss_and_unknown_option():
    with pytest.raises(ValueError, match="unknown loss 'crossentropy'; the losses are cross_entropy, logit_adjusted"):
        build_loss("crossentropy", COUNTS)
    with pytest.raises(ValueError, match="loss 'cross_entropy' does not take loss_tau; it takes no options"):
        build_loss("cross_entropy", COUNTS, loss_tau=1.0)


@pytest.mark.parametrize("tau", [float("nan"), float("inf")])
def test_tau_that_is_not_a_number(tau):
    with pytest.raises(ValueError, match="loss_tau must be a finite number"):
        build_loss("logit_adjusted", COUNTS, loss_tau=tau)
