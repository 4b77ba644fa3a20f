"""sharpness_aware_backward on functions with known gradients."""

import pytest
import torch
from torch import nn

from hf_sharp.sharpness import Examples, MicroBatch, sharpness_aware_backward


def one_batch(model, losses, c, rho, *, all_perturbed=False, **options):
    clean = None if all_perturbed else Examples(None, 1 - c)
    batch = MicroBatch(lambda rows: losses(), Examples(None, c), clean)
    return sharpness_aware_backward(model, [batch], rho, **options)


class Quadratic(nn.Module):
    """ℓ_j(w) = ½ a_j ‖w − b_j‖² for three examples."""

    a = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]], dtype=torch.float64)

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def losses(self):
        return 0.5 * self.a * ((self.w - self.b) ** 2).sum(1)

    def mean_gradient(self, w, c):
        return (c * self.a) @ (w - self.b) / 3


@pytest.mark.parametrize("c", [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.1, 0.5, 0.9], [1.3, 0.2, 0.7], [0.0, 0.0, 0.0]])
def test_closed_form_on_a_quadratic(c):
    model, c, rho = Quadratic(), torch.tensor(c, dtype=torch.float64), 0.4
    w = model.w.detach().clone()
    g = model.mean_gradient(w, c)
    epsilon = rho * g / (g.norm() + 1e-12)
    expected = model.mean_gradient(w, 1 - c) + model.mean_gradient(w + epsilon, c)
    rise = (c * 0.5 * model.a * (((w + epsilon - model.b) ** 2).sum(1) - ((w - model.b) ** 2).sum(1))).mean()

    step = one_batch(model, model.losses, c, rho, reduce=torch.mean)

    torch.testing.assert_close(model.w.grad, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(step.loss, model.losses().mean().detach(), rtol=1e-15, atol=0)
    torch.testing.assert_close(step.ascent_grad_norm, g.norm(), rtol=1e-13, atol=0)
    torch.testing.assert_close(step.sharpness, rise, rtol=1e-12, atol=1e-15)
    assert torch.equal(model.w, w)
    assert model.frozen.grad is None
    assert model.unused.grad is None


def test_declaring_all_examples_perturbed_changes_only_the_cost():
    gradients = []
    for all_perturbed in (False, True):
        model = Quadratic()
        one_batch(
            model,
            model.losses,
            torch.ones(3, dtype=torch.float64),
            0.4,
            reduce=torch.mean,
            all_perturbed=all_perturbed,
        )
        gradients.append(model.w.grad)
    torch.testing.assert_close(*gradients, rtol=1e-15, atol=0)


@pytest.mark.parametrize(("all_perturbed", "forwards", "backwards"), [(True, 2, 2), (False, 2, 3)])
def test_passes_are_counted(all_perturbed, forwards, backwards):
    model, count = Quadratic(), {"forward": 0, "backward": 0}

    def losses():
        count["forward"] += 1
        return model.losses()

    def backward(loss, retain_graph):
        count["backward"] += 1
        loss.backward(retain_graph=retain_graph)

    c = torch.full((3,), 1.0 if all_perturbed else 0.5, dtype=torch.float64)
    one_batch(model, losses, c, 0.1, reduce=torch.mean, backward=backward, all_perturbed=all_perturbed)
    assert count == {"forward": forwards, "backward": backwards}


def test_earlier_micro_batches_in_grad_survive():
    model = Quadratic()
    model.w.grad = torch.tensor([10.0, 20.0], dtype=torch.float64)
    fresh = Quadratic()
    c = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    for each in (model, fresh):
        one_batch(each, each.losses, c, 0.4, reduce=torch.mean)
    expected = fresh.w.grad + torch.tensor([10.0, 20.0], dtype=torch.float64)
    torch.testing.assert_close(model.w.grad, expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["forward 1", "backward 1", "backward 2", "forward 2", "backward 3"])
def test_weights_and_earlier_gradients_survive_an_exception_at_every_pass(at, error):
    model, calls = Quadratic(), {"forward": 0, "backward": 0}
    weights, earlier = model.w.detach().clone(), torch.tensor([10.0, 20.0], dtype=torch.float64)
    model.w.grad = earlier.clone()
    random_before = torch.get_rng_state()

    def count(what):
        calls[what] += 1
        if f"{what} {calls[what]}" == at:
            raise error

    def losses():
        count("forward")
        return model.losses()

    def backward(loss, retain_graph):
        count("backward")
        loss.backward(retain_graph=retain_graph)

    c = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    with pytest.raises(error):
        one_batch(model, losses, c, 0.4, reduce=torch.mean, backward=backward)
    assert torch.equal(model.w, weights)
    assert torch.equal(torch.get_rng_state(), random_before)
    if at in ("forward 1", "backward 1", "backward 2"):
        assert torch.equal(model.w.grad, earlier)


def test_a_tensor_without_gradient_in_the_second_pass_is_restored():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.first_only = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
            self.passes = 0

        def losses(self):
            self.passes += 1
            return self.always**2 + (self.first_only**2 if self.passes == 1 else 0)

    model = Branching()
    one_batch(model, model.losses, torch.ones(2), 0.5, reduce=torch.mean, all_perturbed=True)
    assert torch.equal(model.first_only, torch.ones(2))
    assert torch.equal(model.always, torch.ones(2))
    assert model.first_only.grad is None


def test_a_nan_loss_keeps_the_weights_and_gives_a_nan_gradient():
    model = Quadratic()
    before = model.w.detach().clone()
    one_batch(model, lambda: model.losses() * float("nan"), torch.ones(3, dtype=torch.float64), 0.5, reduce=torch.mean)
    assert torch.equal(model.w, before)
    assert model.w.grad.isnan().all()


def test_a_zero_gradient_gives_no_nan():
    model = Quadratic()
    one_batch(model, lambda: model.losses() * 0.0, torch.ones(3, dtype=torch.float64), 0.5, reduce=torch.mean)
    assert torch.equal(model.w.grad, torch.zeros(2, dtype=torch.float64))


def test_loss_scaling_cancels_in_epsilon_and_in_the_logged_norm():
    results = []
    for scale in (1.0, 1024.0):
        model = Quadratic()
        step = one_batch(
            model,
            model.losses,
            torch.full((3,), 0.5, dtype=torch.float64),
            0.4,
            reduce=torch.mean,
            backward=lambda loss, retain_graph, scale=scale: (loss * scale).backward(retain_graph=retain_graph),
            grad_scale=scale,
        )
        results.append((model.w.grad / scale, step.ascent_grad_norm, step.sharpness))
    for plain, scaled in zip(*results, strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-12, atol=0)


def test_both_passes_see_the_same_dropout_mask():
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1)).train()
    x, masks = torch.randn(8, 4), []
    model[1].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    state = torch.get_rng_state()
    one_batch(model, lambda: model(x)[:, 0] ** 2, torch.ones(8), 0.05, reduce=torch.mean, all_perturbed=True)
    assert len(masks) == 2
    assert masks[0].any()
    assert torch.equal(masks[0], masks[1])
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    model(x)
    assert torch.equal(torch.get_rng_state(), after), "a step draws as much randomness as a plain one"


def test_running_statistics_see_the_first_pass_only():
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)).train()

    model, plain, x = make(), make(), torch.randn(8, 4)
    plain(x)
    one_batch(model, lambda: model(x)[:, 0] ** 2, torch.ones(8), 0.5, reduce=torch.mean, all_perturbed=True)
    assert torch.equal(model[1].running_mean, plain[1].running_mean)
    assert torch.equal(model[1].running_var, plain[1].running_var)
    assert model[1].num_batches_tracked == 1


# ---- a window of micro-batches -----------------------------------------------------------------------------------


def part(model, rows, c):
    return MicroBatch(lambda _: model.losses()[rows], Examples(None, c[rows]), Examples(None, 1 - c[rows]))


@pytest.mark.parametrize("c", [[1.0, 1.0, 1.0], [0.2, 0.5, 0.9]])
@pytest.mark.parametrize("rows", [[[0], [1], [2]], [[0], [1, 2]], [[0, 1], [2]]])
def test_a_window_in_parts_equals_the_whole_window(c, rows):
    c, whole, parts = torch.tensor(c, dtype=torch.float64), Quadratic(), Quadratic()
    weights = whole.w.detach().clone()

    def third(losses):
        return losses.sum() / 3

    one = sharpness_aware_backward(whole, [part(whole, [0, 1, 2], c)], 0.4, reduce=third, mean=third)
    many = sharpness_aware_backward(parts, [part(parts, r, c) for r in rows], 0.4, reduce=third, mean=third)
    torch.testing.assert_close(parts.w.grad, whole.w.grad, rtol=1e-13, atol=0)
    for figure, other in zip(one, many, strict=True):
        torch.testing.assert_close(figure, other, rtol=1e-12, atol=0)
    assert torch.equal(parts.w, weights)
    apart = Quadratic()
    for r in rows:
        sharpness_aware_backward(apart, [part(apart, r, c)], 0.4, reduce=third, mean=third)
    assert (apart.w.grad - whole.w.grad).abs().max() > 1e-3, "one ε per part is another method"


def test_a_part_without_perturbed_examples_costs_one_pass_of_each_kind():
    model, forwards, syncs = Quadratic(), [], []
    c = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)

    class WithoutSync:
        def __enter__(self):
            syncs.append("off")

        def __exit__(self, *error):
            syncs.append("on")

    def losses(rows):
        forwards.append((rows, syncs[-1:] == ["off"]))
        return model.losses()[rows]

    one = Examples(None, torch.ones(1, dtype=torch.float64))
    parts = [{"clean": one}, {"perturbed": one}, {"clean": one}]
    batches = [MicroBatch(lambda _, r=r: losses([r]), **part) for r, part in enumerate(parts)]
    sharpness_aware_backward(
        model, batches, 0.4, reduce=lambda x: x.sum() / 3, mean=lambda x: x.sum() / 3, without_sync=WithoutSync
    )
    assert forwards == [([0], True), ([1], True), ([2], True), ([1], False)], "only the last pass is synchronised"
    whole = Quadratic()
    one_batch(whole, whole.losses, c, 0.4, reduce=torch.mean)
    torch.testing.assert_close(model.w.grad, whole.w.grad, rtol=1e-13, atol=0)


def test_every_part_of_a_window_sees_its_own_dropout_mask_twice():
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1)).train()
    x, masks = torch.randn(2, 8, 4), []
    model[1].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    one = Examples(None, torch.ones(8))
    batches = [MicroBatch(lambda _, i=i: model(x[i])[:, 0] ** 2, one) for i in range(2)]
    sharpness_aware_backward(model, batches, 0.05, reduce=torch.mean)
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])


def test_one_epsilon_of_the_averaged_gradient():
    c, model, other = torch.ones(3, dtype=torch.float64), Quadratic(), torch.tensor([3.0, -1.0], dtype=torch.float64)
    w = model.w.detach().clone()

    def average(gradients):
        assert len(gradients) == 2, "also that of a parameter without gradient here: another process may have one"
        gradients[0].add_(other).div_(2)

    batch = MicroBatch(lambda rows: model.losses(), Examples(None, c))
    sharpness_aware_backward(model, [batch], 0.4, reduce=torch.mean, average=average)
    g = (model.mean_gradient(w, c) + other) / 2
    torch.testing.assert_close(model.w.grad, model.mean_gradient(w + 0.4 * g / g.norm(), c), rtol=1e-12, atol=0)
    assert torch.equal(model.unused, torch.ones(2, dtype=torch.float64))
