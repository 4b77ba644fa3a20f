from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_sharp.sharpness.ascent import (
    average_over_processes,
    check_first_moment,
    first_moments,
    gradient_to_perturbation,
    gradients_in,
    perturbed,
)
from hf_sharp.sharpness.replay import running_statistics_kept


def test_sam_epsilon_has_length_rho_along_the_gradient():
    gradients = [torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    before = [gradient.clone() for gradient in gradients]
    norm = gradient_to_perturbation([torch.zeros_like(g) for g in gradients], gradients, rho=0.3)
    flat, epsilon = torch.cat([g.flatten() for g in before]), torch.cat([g.flatten() for g in gradients])
    torch.testing.assert_close(norm, flat.norm(), rtol=1e-14, atol=0)
    torch.testing.assert_close(epsilon, 0.3 * flat / flat.norm(), rtol=1e-11, atol=0)


def test_asam_scales_matrices_by_weight_and_vectors_by_one():
    matrix, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    g_matrix, g_bias = torch.randn_like(matrix), torch.randn_like(bias)
    t = torch.cat([(matrix.abs() + 0.01).flatten(), torch.ones(5, dtype=torch.float64)])
    g = torch.cat([g_matrix.flatten(), g_bias])
    gradients = [g_matrix.clone(), g_bias.clone()]
    gradient_to_perturbation([matrix, bias], gradients, rho=0.5, adaptive_eta=0.01)
    epsilon = torch.cat([gradient.flatten() for gradient in gradients])
    torch.testing.assert_close(epsilon, 0.5 * t**2 * g / (t * g).norm(), rtol=1e-11, atol=0)


def test_asam_moves_a_weight_that_is_zero():
    weight, gradient = torch.zeros(2, 2), [torch.ones(2, 2)]
    gradient_to_perturbation([weight], gradient, rho=0.5, adaptive_eta=0.01)
    assert (gradient[0] > 0).all()


def test_zero_gradient_gives_zero_epsilon():
    gradients = [torch.zeros(3), torch.zeros(2, 2)]
    for eta in (None, 0.01):
        norm = gradient_to_perturbation([torch.ones(3), torch.ones(2, 2)], gradients, rho=0.5, adaptive_eta=eta)
        assert norm == 0
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_the_norm_of_bfloat16_gradients_is_float32():
    gradients = [torch.full((1000,), 0.1, dtype=torch.bfloat16)]
    expected = gradients[0].float().norm()
    norm = gradient_to_perturbation([torch.zeros(1000, dtype=torch.bfloat16)], gradients, rho=1.0)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_restoring_is_exact_where_subtracting_is_not(dtype):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(10_000).to(dtype))
    before, epsilon = weight.detach().clone(), (torch.randn(10_000) * 1e-3).to(dtype)
    assert not torch.equal((before + epsilon) - epsilon, before)
    with perturbed([weight], [epsilon.clone()]):
        assert torch.equal(weight, before + epsilon)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_restoring_after_an_exception(error):
    weight = nn.Parameter(torch.randn(10))
    before = weight.detach().clone()

    def fail_inside():
        with perturbed([weight], [torch.ones(10)]):
            assert not torch.equal(weight, before)
            raise error

    with pytest.raises(error):
        fail_inside()
    assert torch.equal(weight, before)


def test_nan_epsilon_is_undone():
    weight = nn.Parameter(torch.randn(10))
    before = weight.detach().clone()
    with perturbed([weight], [torch.full((10,), float("nan"))]):
        assert weight.isnan().all()
    assert torch.equal(weight, before)


def test_epsilon_is_freed_before_the_second_pass():
    epsilon = [torch.ones(10)]
    with perturbed([nn.Parameter(torch.zeros(10))], epsilon):
        assert epsilon == []


def test_autocast_uses_the_perturbed_weights_in_an_outer_region():
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = layer(x)
        with perturbed([layer.weight], [torch.ones(8, 8)]):
            inside = layer(x)
        after = layer(x)
    assert not torch.equal(before, inside)
    assert torch.equal(before, after)


def test_grad_is_restored_and_the_gradients_of_the_block_add_up():
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    weights[0].grad = kept = torch.full((2,), 7.0)
    gradients = [None, None, None]
    for _ in range(2):
        with gradients_in(gradients, weights):
            (3 * weights[0] + weights[1]).sum().backward()
    assert weights[0].grad is kept
    assert kept.tolist() == [7, 7]
    assert [None if g is None else g.tolist() for g in gradients] == [[6, 6], [2, 2], None]
    assert [w.grad for w in weights[1:]] == [None, None]


def test_grad_is_restored_when_the_block_raises():
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    weights[0].grad = kept = torch.ones(2)

    def fail_inside():
        with gradients_in([None, None], weights):
            assert weights[0].grad is None
            weights[1].grad = torch.zeros(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert weights[0].grad is kept
    assert weights[1].grad is None


def test_an_interrupt_while_the_weights_are_restored(monkeypatch):
    weight = nn.Parameter(torch.tensor([1.1, 2.2]))
    before, copy, calls = weight.detach().clone(), torch._foreach_copy_, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        copy(*args)

    monkeypatch.setattr(torch, "_foreach_copy_", interrupted)
    with pytest.raises(KeyboardInterrupt), perturbed([weight], [torch.ones(2)]):
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("bucket_bytes", [1, 24, 2**25])
def test_an_average_over_processes_keeps_shapes_and_types_with_any_bucket_size(monkeypatch, bucket_bytes):
    sent = []

    def all_reduce(flat):  # three processes, whose tensors are these times 1, 2 and 3
        sent.append(flat.numel())
        flat *= 6

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    tensors = [torch.ones(2, 2), torch.arange(3, dtype=torch.float64), torch.full((), 5.0), torch.ones(4)]
    expected = [2 * tensor for tensor in tensors]
    average_over_processes(tensors, bucket_bytes)
    for tensor, value in zip(tensors, expected, strict=True):
        assert tensor.dtype == value.dtype
        assert torch.equal(tensor, value)
    assert len(sent) == {1: 4, 24: 3, 2**25: 2}[bucket_bytes]


def test_running_statistics_are_restored_even_from_nan():
    norm = nn.BatchNorm1d(3).train()
    norm(torch.randn(8, 3))
    before = [buffer.clone() for buffer in norm.buffers()]
    with running_statistics_kept([norm]):
        norm(torch.full((8, 3), float("nan")))
        assert norm.running_mean.isnan().any()
    assert all(torch.equal(a, b) for a, b in zip(before, norm.buffers(), strict=True))


def test_first_moments_of_8_bits_are_read_block_by_block():
    """As bitsandbytes keeps them: a code per entry, a value per code, the largest absolute value of each block."""
    rng = torch.Generator().manual_seed(0)
    parameter = torch.zeros(100, 70)
    codes = torch.randint(0, 256, (100, 70), dtype=torch.uint8, generator=rng)
    values, absmax = torch.linspace(-1, 1, 256), torch.rand(28, generator=rng)  # 7000 entries in blocks of 256
    state = {parameter: {"state1": codes, "qmap1": values, "absmax1": absmax, "step": 3}}
    (moment,) = first_moments(SimpleNamespace(state=state), [parameter])
    expected = [values[code].item() * absmax[i // 256].item() for i, code in enumerate(codes.flatten().tolist())]
    torch.testing.assert_close(moment.flatten(), torch.tensor(expected))


def test_small_tensors_keep_whole_moments_beside_8_bit_ones():
    parameter, moment = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])
    (found,) = first_moments(SimpleNamespace(state={parameter: {"state1": moment, "step": 1}}), [parameter])
    assert torch.equal(found, moment)
    assert found is not moment


@pytest.mark.parametrize("how", ["fused", "foreach", "plain"])
def test_every_implementation_of_adamw_keeps_first_moments(how):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), **{name: name == how for name in ("fused", "foreach")})
    check_first_moment(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    moments = first_moments(optimizer, list(model.parameters()))
    torch.testing.assert_close(moments[1], 0.1 * torch.ones(2))
