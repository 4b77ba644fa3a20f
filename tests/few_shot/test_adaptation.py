"""Adaptations: known optima, naive references, answers that are not looked at, backbones that stay as they are."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.nn import functional

from hf_sharp.few_shot import ADAPTATIONS, Embedded, EpisodeSampler, Task, embed, evaluate, load_backbone
from hf_sharp.few_shot import adaptation as module
from hf_sharp.few_shot.adaptation import published_rates
from tests.conftest import assert_same_bits, make_vit, weights_of
from tests.few_shot.conftest import embedded_of, gaussians, task_of

FROZEN = ("prototype", "linear", "affine")


def run(name, embedded, task, **options):
    return next(iter(ADAPTATIONS[name](embedded, [task], **options)))


def test_prototype_reaches_the_known_optimum_of_two_gaussians():
    features, labels = gaussians([[1.2, 0.5, -0.5], [-1.2, -0.5, 0.5]], 20_000)
    task, answers = task_of(labels, 5000)
    accuracy = (run("prototype", embedded_of(features), task).argmax(1).numpy() == answers).mean()
    optimum = norm.cdf(np.linalg.norm([1.2, 0.5, 0.5]))
    assert accuracy == pytest.approx(optimum, abs=4 * np.sqrt(optimum * (1 - optimum) / len(answers)))


def test_prototype_reaches_the_known_optimum_of_several_gaussians():
    ways, distance = 6, 2.5
    features, labels = gaussians(distance * np.eye(ways), 8000)
    task, answers = task_of(labels, 3000)
    accuracy = (run("prototype", embedded_of(features), task).argmax(1).numpy() == answers).mean()
    optimum = quad(lambda t: norm.pdf(t) * norm.cdf(t + distance) ** (ways - 1), -9, 9)[0]
    assert accuracy == pytest.approx(optimum, abs=4 * np.sqrt(optimum * (1 - optimum) / len(answers)))


def test_prototype_is_ten_times_the_cosine_to_the_class_mean():
    features, labels = gaussians(np.random.default_rng(0).normal(size=(4, 5)), 9)
    task, _ = task_of(labels, 3)
    x = features.double().numpy()
    expected = np.empty((len(task.query), 4))
    for i, row in enumerate(task.query):
        for c in range(4):
            mean = x[task.support[task.support_labels == c]].mean(0)
            expected[i, c] = 10 * x[row] @ mean / np.linalg.norm(x[row]) / np.linalg.norm(mean)
    np.testing.assert_allclose(run("prototype", embedded_of(features), task).numpy(), expected, atol=1e-5)


def naive_affine(features, task, steps, learning_rate=1.0, rho=0.9, eps=1e-6):
    """Adadelta by its formulas on the loss by its formula, one task."""
    x = features.double()
    support, labels = x[torch.as_tensor(task.support)], torch.as_tensor(task.support_labels)
    means = torch.stack([support[labels == c].mean(0) for c in range(task.ways)])
    a = torch.eye(x.shape[1], dtype=torch.float64)
    squares, deltas = torch.zeros_like(a), torch.zeros_like(a)

    def logits(rows, a):
        return 10 * functional.cosine_similarity((rows @ a.T)[:, None], (means @ a.T)[None], dim=-1)

    for _ in range(steps):
        a.requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits(support, a), labels), a)
        a = a.detach()
        squares = rho * squares + (1 - rho) * gradient**2
        step = torch.sqrt(deltas + eps) / torch.sqrt(squares + eps) * gradient
        deltas = rho * deltas + (1 - rho) * step**2
        a = a - learning_rate * step
    return logits(x[torch.as_tensor(task.query)], a)


@pytest.mark.parametrize("numbers", [100, 4_000_000])
def test_affine_is_that_of_the_naive_reference_however_tasks_are_batched(numbers, monkeypatch):
    monkeypatch.setattr(module, "_BATCH_NUMBERS", numbers)  # one by one, or all at once
    monkeypatch.setattr(module, "_WINDOW", 5)
    features, labels = gaussians(np.random.default_rng(0).normal(size=(9, 12)), 25)
    tasks = [episode.task for episode in EpisodeSampler(labels, seed=2)(8)]
    assert len({(len(task.support), task.ways) for task in tasks}) > 5, "of different shapes"
    found = list(ADAPTATIONS["affine"](embedded_of(features), tasks))
    assert len(found) == len(tasks)
    for task, logits in zip(tasks, found, strict=True):
        expected = naive_affine(features, task, 40)
        # Early in Adadelta a gradient near zero decides by its sign: float32 and float64 part a little.
        np.testing.assert_allclose(logits.numpy(), expected.numpy(), atol=0.1)
        assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.97


def test_the_gradient_by_hand_is_that_of_automatic_differentiation():
    torch.manual_seed(0)
    rows, maps = torch.randn(2, 7, 5).double(), torch.randn(2, 5, 5).double()
    one_hot = functional.one_hot(torch.tensor([[0, 1, 2, 0, 1, 2, 0], [1, 0, 1, 0, 0, 0, 0]]), 3).double()
    rows[1, 4:], one_hot[1, 4:] = 0, 0  # the second task is smaller, and has two classes
    means = one_hot.mT @ rows / one_hot.sum(1).clamp(min=1)[..., None]
    found = module._gradient_of_maps(maps, rows, means, one_hot)
    for i, (size, ways) in enumerate([(7, 3), (4, 2)]):
        a = maps[i].clone().requires_grad_(True)
        z, p = rows[i, :size] @ a.T, means[i, :ways] @ a.T
        logits = 10 * functional.cosine_similarity(z[:, None], p[None], dim=-1)
        functional.cross_entropy(logits, one_hot[i, :size].argmax(1)).backward()
        torch.testing.assert_close(found[i], a.grad)


def test_affine_without_steps_is_prototype_and_with_steps_better_where_a_feature_only_disturbs():
    rng = np.random.default_rng(0)
    means = np.concatenate([2 * rng.normal(size=(5, 6)), np.zeros((5, 2))], 1)
    features, labels = gaussians(means, 200)
    features[:, 6:] *= 12  # loud, and the same for all classes
    task, answers = task_of(labels, 40)
    embedded = embedded_of(features)
    plain = run("prototype", embedded, task)
    torch.testing.assert_close(run("affine", embedded, task, steps=0), plain)
    before, after = ((x.argmax(1).numpy() == answers).mean() for x in (plain, run("affine", embedded, task)))
    assert after > before + 0.1


def test_linear_is_logistic_regression_on_normalised_features():
    from sklearn.linear_model import LogisticRegression

    features, labels = gaussians(np.random.default_rng(1).normal(size=(3, 6)), 20)
    task, _ = task_of(labels, 8)
    x = (10 * features / features.norm(dim=1, keepdim=True)).double().numpy()
    expected = LogisticRegression(C=0.5, max_iter=1000).fit(x[task.support], task.support_labels)
    found = run("linear", embedded_of(features), task, C=0.5)
    np.testing.assert_allclose(found.numpy(), expected.predict_log_proba(x[task.query]), atol=1e-4)


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_a_query_set_without_a_class_does_not_change_the_ways(name, images):
    backbone = load_backbone(make_vit(num_labels=6))
    embedded = Embedded(backbone, images, embed(backbone, images))
    episode = EpisodeSampler(images.labels, seed=1).draw(0)
    options = {"steps": 3} if name in ("affine", "lora", "finetune") else {}
    whole = run(name, embedded, episode.task, **options)
    assert whole.shape == (len(episode.query), len(episode.classes))
    some = episode.query_labels >= 2
    task = Task(episode.support, episode.support_labels, episode.query[some])
    torch.testing.assert_close(run(name, embedded, task, **options), whole[torch.as_tensor(some)], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ADAPTATIONS)
def test_the_backbone_is_afterwards_what_it_was(name, training, images):
    model = make_vit(num_labels=6, dropout=0.1).train(training)
    model.vit.embeddings.eval()  # a part that somebody froze
    next(model.parameters()).requires_grad_(False)
    before, modules = weights_of(model), [str(m) for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    evaluate(model, images, name, episodes=2, **({"steps": 3} if name in ("affine", "lora", "finetune") else {}))
    assert_same_bits(weights_of(model), before)
    assert [str(m) for m in model.modules()] == modules, "adapters were left in it"
    assert ([p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]) == flags
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name", ["lora", "finetune"])
def test_what_changes_a_copy_of_the_backbone_learns_the_support_set(name, images):
    backbone = load_backbone(make_vit(num_labels=6))
    embedded = Embedded(backbone, images, embed(backbone, images))
    rows = np.random.default_rng(0).permutation(np.flatnonzero(images.labels < 5))[:30]
    task = Task(rows, images.labels[rows], rows)  # asked for what it has learnt: the loss must have fallen
    labels = torch.as_tensor(images.labels[rows])
    rate = {"learning_rate": 1e-2} if name == "finetune" else {}
    before = functional.cross_entropy(run(name, embedded, task, steps=0, **rate), labels)
    torch.testing.assert_close(before, functional.cross_entropy(run("prototype", embedded, task), labels))
    adapted = run(name, embedded, task, **rate)
    assert functional.cross_entropy(adapted, labels) < 0.5 * before
    torch.testing.assert_close(run(name, embedded, task, **rate), adapted)  # seeded
    state = torch.get_rng_state()
    run(name, embedded, task, steps=1)
    assert torch.equal(torch.get_rng_state(), state), "the user's random numbers are the user's"


@pytest.mark.parametrize("name", ["lora", "finetune"])
def test_features_alone_are_not_enough_to_change_a_backbone(name):
    features, labels = gaussians(np.eye(3), 4)
    with pytest.raises(ValueError, match=f"{name!r} needs a backbone to change, but only features were given"):
        run(name, embedded_of(features), task_of(labels, 2)[0])


def test_lora_trains_adapters_and_the_map_each_at_its_rate(images, monkeypatch):
    backbone = load_backbone(make_vit(num_labels=6))
    embedded = Embedded(backbone, images, embed(backbone, images))
    task = EpisodeSampler(images.labels, seed=1).draw(0).task
    optimizers = []
    real = torch.optim.Adadelta
    monkeypatch.setattr(torch.optim, "Adadelta", lambda *args: optimizers.append(real(*args)) or optimizers[-1])
    run("lora", embedded, task, steps=2, learning_rate=0.3, map_learning_rate=0.7)
    adapters, (matrix,) = (group["params"] for group in optimizers[0].param_groups)
    assert [group["lr"] for group in optimizers[0].param_groups] == [0.3, 0.7]
    moved = [p for p in adapters if p.shape[1] == 4 and not torch.equal(p, torch.zeros_like(p))]
    assert len(adapters) > 10
    assert moved, "the adapters' second factors start at zero and must have moved"
    assert not torch.equal(matrix, torch.eye(16))


def test_the_default_rates_are_those_for_unseen_domains():
    defaults = {name: inspect.signature(ADAPTATIONS[name]).parameters for name in ("affine", "lora")}
    for name, parameters in defaults.items():
        for option, rate in published_rates(name, seen=False).items():
            assert parameters[option].default == rate


def test_embedded_is_not_changed_by_adapting(images):
    backbone = load_backbone(make_vit(num_labels=6))
    embedded = Embedded(backbone, images, embed(backbone, images))
    copy = embedded.features.clone()
    for name in FROZEN:
        run(name, embedded, EpisodeSampler(images.labels).draw(0).task)
    assert torch.equal(embedded.features, copy)
    assert dataclasses.is_dataclass(embedded)


@pytest.mark.parametrize("name", ["prototype", "affine", "linear"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_features_of_any_type(name, dtype):
    features, labels = gaussians(np.random.default_rng(1).normal(size=(3, 6)), 10)
    task = EpisodeSampler(labels, ways=3, shots=2).draw(0).task
    logits = [next(ADAPTATIONS[name](Embedded(None, None, f), [task])) for f in (features.float(), features.to(dtype))]
    torch.testing.assert_close(*logits, rtol=0.05, atol=0.05)
