"""LETS: the derivative on a quartic, the limits of its approximations, and its state in the trainer."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_sharp.sharpness import Examples, LearnedRadius, MicroBatch, drawn_rows, sharpness_aware_backward
from hf_sharp.sharpness.radius import RHO_HESSIANS, RHO_OBJECTIVES, hessian_direction, radius_derivative
from tests.conftest import assert_same_bits, make_images, make_vit, method_id, weights_of
from tests.distributed.test_processes import train
from tests.processes import run_processes
from tests.trainer.test_modes import SHARP

RNG = np.random.default_rng(0)
A = torch.tensor(RNG.normal(size=(4, 4)))
SIDES = {side: torch.tensor(RNG.normal(size=4)) for side in ("train", "validation")}
LR = 0.05


def quartic(w, side="train"):
    """Σ ((A w)_i − t_i)⁴ / 4 + w·w, whose derivatives are known."""
    return ((A @ w - SIDES[side]) ** 4).sum() / 4 + w @ w


def gradient(w, side="train"):
    w = w.detach().requires_grad_()
    return torch.autograd.grad(quartic(w, side), w)[0]


START = torch.tensor(RNG.normal(size=4)) * 0.3


def after_a_step(rho):
    g = gradient(START)
    unit = g / g.norm()
    return START - LR * gradient(START + rho * unit)


def objective(kind, rho, measured_at=None):
    if kind == "alignment":  # of the step with the validation gradient after a step with radius `measured_at`
        g = gradient(START)
        step = gradient(START + rho * g / g.norm())
        return -torch.cosine_similarity(gradient(after_a_step(measured_at), "validation"), step, dim=0)
    w = after_a_step(rho)
    validation, training = quartic(w, "validation"), quartic(w)
    return validation if kind == "validation" else (validation - training) ** 2 / 2


def derivative(kind, hessian, rho):
    g = gradient(START)
    unit = g / g.norm()
    at_epsilon = (START + rho * unit).requires_grad_()
    direction, step = hessian_direction(
        hessian,
        quartic(at_epsilon),
        [at_epsilon],
        rho=torch.tensor(rho, dtype=torch.float64),
        gradients=[g],
        unit=[unit],
    )
    w = after_a_step(rho)
    losses = quartic(w, "validation"), quartic(w)
    return radius_derivative(kind, LR, losses, ([gradient(w, "validation")], [gradient(w)]), direction, step).item()


@pytest.mark.parametrize("kind", RHO_OBJECTIVES)
@pytest.mark.parametrize("rho", [0.01, 0.2, 0.7])
def test_the_derivative_equals_central_differences(kind, rho):
    h = 1e-4
    behind, ahead, before, further = (objective(kind, rho + n * h, rho) for n in (-1, 1, -2, 2))
    numerical = ((8 * (ahead - behind) - (further - before)) / (12 * h)).item()
    assert derivative(kind, "exact", rho) == pytest.approx(numerical, rel=1e-9, abs=1e-11)


def test_the_secant_becomes_exact_as_rho_goes_to_0():
    errors = [abs(derivative("gap", "secant", rho) / derivative("gap", "exact", rho) - 1) for rho in (0.1, 0.01, 0.001)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-2


def test_fisher_is_exact_where_the_hessian_is_the_diagonal_of_squared_gradients():
    """L = −Σ log(w_i): ∇ = −1/w, H = diag(1/w²) = diag(∇²)."""
    w = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    unit = [torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)]
    exact, fisher = (
        hessian_direction(kind, -w.log().sum(), [w], rho=torch.tensor(0.1), unit=unit)[0]
        for kind in ("exact", "fisher")
    )
    torch.testing.assert_close(fisher, exact)


@pytest.mark.parametrize("hessian", RHO_HESSIANS)
def test_loss_scaling_cancels(hessian):
    w = (START + 0.1).requires_grad_()
    g = gradient(START)
    common = {"rho": torch.tensor(0.1), "gradients": [g], "unit": [g / g.norm()]}
    one, other = (
        hessian_direction(hessian, quartic(w), [w], grad_scale=scale, **common) for scale in (1.0, torch.tensor(1024.0))
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("objective", ["gap", "alignment"])
@pytest.mark.parametrize("adaptive_eta", [None, 0.01])
@pytest.mark.parametrize("hessian", RHO_HESSIANS)
def test_the_update_from_the_passes_of_a_step_equals_the_formula(hessian, adaptive_eta, objective, every_step):
    model = torch.nn.ParameterList([START.clone(), START.clone()[:, None]])
    radius = LearnedRadius(0.2, 0.1, hessian=hessian, objective=objective, adaptive_eta=adaptive_eta)

    def losses(side="train"):
        return torch.stack([quartic(model[0], side), 2 * quartic(model[1][:, 0], side)])

    def step():
        micro_batch = MicroBatch(lambda rows: losses(), Examples(None, torch.ones(2)))
        options = {"reduce": torch.mean, "observer": radius, "adaptive_eta": adaptive_eta}
        return sharpness_aware_backward(model, [micro_batch], radius.rho, **options)

    w = [p.detach().clone() for p in model]
    radius.watch(0, LR)
    step()
    descent = [p.grad.clone() for p in model]
    with torch.no_grad():
        for p, g in zip(model, descent, strict=True):
            p -= LR * g
    half = losses("validation").mean()
    radius.validate(half.detach(), list(torch.autograd.grad(half, list(model))))
    for p in model:
        p.grad = None
    if every_step:  # the ascent of this step uses the radius it started with, not the updated one
        radius.watch(1, LR)
        step()
        assert len(radius.direction) == 2
        if hessian == "secant":
            beside = LearnedRadius(0.2, 0.0, objective=objective, adaptive_eta=adaptive_eta)
            beside.watch(1, LR)
            micro_batch = MicroBatch(lambda rows: losses(), Examples(None, torch.ones(2)))
            options = {"reduce": torch.mean, "observer": beside, "adaptive_eta": adaptive_eta}
            sharpness_aware_backward(model, [micro_batch], beside.rho, **options)
            torch.testing.assert_close(radius.direction, beside.direction)
    else:
        step()
    assert radius.derivative != 0

    def flat(tensors):
        return torch.cat([tensor.flatten() for tensor in tensors])

    def total(vector, side="train"):
        return (quartic(vector[:4], side) + 2 * quartic(vector[4:], side)) / 2

    def grad(vector, side="train"):
        vector = vector.detach().requires_grad_()
        return torch.autograd.grad(total(vector, side), vector)[0]

    w = flat(w)
    t = torch.ones(8, dtype=w.dtype)
    if adaptive_eta is not None:
        t[4:] = w[4:].abs() + adaptive_eta  # the matrix
    g = grad(w)
    unit = t**2 * g / (t * g).norm()
    there = (w + 0.2 * unit).requires_grad_()
    (direction,), _ = hessian_direction(
        hessian, total(there), [there], rho=torch.tensor(0.2, dtype=torch.float64), gradients=[g], unit=[unit]
    )
    after = w - LR * grad(there)
    if objective == "gap":
        gap, across = total(after, "validation") - total(after), grad(after, "validation") - grad(after)
        expected = -LR * gap * across @ direction
    else:
        v, u = grad(after, "validation"), grad(there)
        v, u, length = v / v.norm(), u / u.norm(), u.norm()
        expected = -(v - v @ u * u) @ direction / length
    assert radius.derivative.item() == pytest.approx(expected.item(), rel=1e-9)
    assert radius.rho.item() == pytest.approx(0.2 * np.exp(-0.1 * np.sign(expected.item())), rel=1e-6)


def test_rho_is_clamped_and_an_overflow_changes_nothing():
    radius = LearnedRadius(0.05, 5.0)
    for _ in range(5):
        radius.update(torch.tensor(-1.0))
    assert radius.rho.item() == pytest.approx(10.0)
    for _ in range(50):
        radius.update(torch.tensor(1.0))
    assert radius.rho.item() == pytest.approx(1e-4)
    fresh = LearnedRadius(0.05, 5.0)
    fresh.update(torch.tensor(float("nan")))
    assert fresh.rho.item() == 0.05


def test_rows_are_drawn_without_replacement_and_in_new_orders():
    drawn = [row for number in range(10) for row in drawn_rows(number, 4, 10, seed=3).tolist()]
    for start in range(0, 40, 10):
        assert sorted(drawn[start : start + 10]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert len(drawn_rows(0, 25, 10, seed=0)) == 25, "a batch larger than the set"


def test_a_batch_is_the_same_whichever_were_drawn_before():
    order = [np.random.default_rng((3, number)).permutation(10) for number in range(4)]  # as since the first version
    rows = np.concatenate(order).tolist()
    for number in (9, 0, 5, 5, 2, 8):
        assert drawn_rows(number, 4, 10, seed=3).tolist() == rows[4 * number : 4 * number + 4]
        assert drawn_rows(number, 4, 11, seed=4).tolist() != rows[4 * number : 4 * number + 4], "another set of rows"


@pytest.mark.parametrize("processes", [1, 4])
def test_a_draw_costs_as_much_as_its_batch(monkeypatch, processes):
    """Numbers that are put in order, on one process, against the rows that all processes draw."""
    ordered, generator = [], np.random.default_rng

    def counting(seed):
        rng = generator(seed)
        return SimpleNamespace(permutation=lambda examples: ordered.append(examples) or rng.permutation(examples))

    monkeypatch.setattr(np.random, "default_rng", counting)
    examples, batch_size, begun, batches = 1003, 8, 70, 500  # resumed at draw 70
    for draw in range(begun, begun + batches):
        drawn_rows(draw * processes + processes - 1, batch_size, examples, seed=1 + processes)
    assert sum(ordered) <= batches * batch_size * processes + 2 * examples


# ---- in the trainer ----------------------------------------------------------------------------------------------

LEARNED = {"rho_schedule": "learned", "rho_update_every": 2}


@pytest.mark.parametrize("options", SHARP, ids=method_id)
def test_with_learning_rate_0_training_is_the_plain_method_on_the_remaining_examples_bit_for_bit(make_trainer, options):
    more = {"max_steps": 8, "logging_steps": 1, "gradient_accumulation_steps": 2, **options}
    frozen = make_trainer(make_vit(dropout=0.2), rho_learning_rate=0.0, **LEARNED, **more)
    frozen.train()
    plain = make_trainer(make_vit(dropout=0.2), frozen.train_dataset, **more)
    plain.train()
    assert_same_bits(weights_of(frozen.model), weights_of(plain.model))
    assert any(log.get("rho_derivative") for log in frozen.state.log_history), "updates were made"


@pytest.mark.parametrize("options", SHARP, ids=method_id)
@pytest.mark.parametrize("more", [{}, {"rho_hessian": "fisher"}, {"rho_objective": "validation"}], ids=str)
def test_rho_moves_and_is_logged(make_trainer, options, more):
    trainer = make_trainer(max_steps=12, logging_steps=1, rho_learning_rate=0.1, **LEARNED, **options, **more)
    trainer.train()
    logged = [log["rho"] for log in trainer.state.log_history if "rho" in log]
    assert logged[0] == pytest.approx(options["rho"])
    assert 4 <= len(set(logged)) <= 6, "an update every second step, the first in the second step"
    assert all(abs(np.log(b / a)) < 0.5 for a, b in itertools.pairwise(logged))


def test_a_step_without_ascent_between_the_halves_drops_the_update(make_trainer):
    trainer = make_trainer(sharpness="imbsam", rho=0.1, rare_threshold=10, **(LEARNED | {"rho_update_every": 1}))
    trainer.create_optimizer_and_scheduler(10)
    rows = {rare: [row for row in trainer.train_dataset if (row["label"] == 3) == rare] for rare in (True, False)}
    for step, rare in enumerate((True, False, True)):
        trainer.state.global_step = step
        batch = trainer.data_collator(rows[rare][:2])
        batch["host_labels"] = batch["labels"].numpy()
        trainer.training_step(trainer.model, batch, torch.tensor(2))
    assert trainer.engine.learned_radius.draws == 0
    assert trainer.engine.learned_radius.watched == 2


def test_validation_examples_are_never_trained_on_and_class_counts_are_those_of_the_rest(make_trainer):
    data = make_images().add_column("index", range(74))
    trainer = make_trainer(train_dataset=data, remove_unused_columns=False, num_train_epochs=1, max_steps=-1, **LEARNED)
    held_out = set(np.asarray(trainer.rho_dataset["index"][:]).tolist())
    assert trainer.class_frequencies.counts.tolist() == [36, 20, 8, 3]
    assert len(held_out) == 7
    trained, validated, collator = [], [], trainer.data_collator
    step = trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        trained.extend(inputs.pop("index").tolist())
        return step(model, inputs, num_items_in_batch)

    def collate(rows):
        batch = collator(rows)
        if set(batch["index"].tolist()) <= held_out:
            validated.extend(batch.pop("index").tolist())
        return batch

    trainer.training_step, trainer.data_collator = training_step, collate
    trainer.train()
    assert set(trained) == set(range(74)) - held_out
    assert set(validated) == held_out


@pytest.mark.parametrize("stop", [4, 5])
def test_resume_is_bit_identical_even_between_the_two_halves_of_an_update(make_trainer, tmp_path, stop):
    def made(folder):
        options = {"rho": 0.3, "rho_learning_rate": 0.1, "max_steps": 9, "logging_steps": 1, "save_strategy": "steps"}
        out = {"output_dir": str(tmp_path / folder), "save_steps": stop}
        return make_trainer(make_vit(dropout=0.1), **LEARNED, **options, **out)

    whole, resumed = made("whole"), made("resumed")
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert_same_bits(weights_of(resumed.model), weights_of(whole.model))
    one, other = ([log["rho"] for log in t.state.log_history if "rho" in log] for t in (whole, resumed))
    assert one == other
    (tmp_path / "whole" / f"checkpoint-{stop}" / "method_0.pt").unlink()
    with pytest.raises(ValueError, match=r"method_0\.pt is missing"):
        made("again").train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))


def rho_of_both(ranks):
    """The logged radii of two processes, which must agree, and so must the weights."""
    assert_same_bits(ranks[0]["weights"], ranks[1]["weights"])
    logged = [[log["rho"] for log in rank["logs"] if "rho" in log] for rank in ranks]
    assert logged[0] == logged[1]
    return logged[0]


@pytest.mark.parametrize("sync", ["local", "global"])
def test_two_processes_have_one_rho(tmp_path, sync):
    options = {"sharpness": "sam", "rho": 0.3, "ascent_sync": sync, "rho_learning_rate": 0.1, "max_steps": 8, **LEARNED}
    ranks = run_processes(train, tmp_path / "two", options, folder=tmp_path)
    logged = rho_of_both(ranks)
    assert len(set(logged)) > 2


def test_a_separate_validation_set(make_trainer):
    trainer = make_trainer(trainer={"rho_dataset": make_images(seed=1)}, max_steps=4, logging_steps=1, **LEARNED)
    assert len(trainer.train_dataset) == 74
    trainer.train()
    assert trainer.state.log_history[-2]["rho"] != 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rho_schedule": "learned", "sharpness": "none"},
            "rho_schedule='learned' has no effect with sharpness='none'",
        ),
        ({"rho_learning_rate": 0.1}, "rho_learning_rate=0.1 has no effect with rho_schedule='constant'"),
        (
            LEARNED | {"rho_validation_fraction": 0.0},
            "rho_validation_fraction must be a number > 0 and <= 0.5, got 0.0",
        ),
        (
            LEARNED | {"rho_validation_fraction": 0.6},
            "rho_validation_fraction must be a number > 0 and <= 0.5, got 0.6",
        ),
        (LEARNED | {"rho_validation_fraction": 0.001}, "holds out no example"),
        (LEARNED | {"rho": 0.0}, "a learned radius starts, must be a finite number > 0"),
        (LEARNED | {"rho_update_every": 0}, "rho_update_every must be an integer >= 1"),
        (LEARNED | {"rho_hessian": "diagonal"}, "unknown rho_hessian 'diagonal'"),
        ({"trainer": {"rho_dataset": make_images()}}, "rho_dataset has no effect without rho_schedule='learned'"),
        (LEARNED | {"trainer": {"rho_dataset": make_images([5, 5, 5, 5, 5])}}, "rho_dataset has 'class 4'"),
        (LEARNED | {"train_dataset": list(make_images())}, "pass the validation part as rho_dataset="),
    ],
)
def test_invalid_input_is_an_error_before_training(make_trainer, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(**options)


def test_class_names_as_labels(make_trainer):
    images = make_images()
    names = [f"class {label}" for label in images.with_format(None)["label"]]
    named = images.remove_columns("label").add_column("label", names)
    model = make_vit()
    model.config.label2id = {f"class {i}": i for i in range(4)}
    model.config.id2label = {i: f"class {i}" for i in range(4)}
    make_trainer(model, named, **LEARNED).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho_hessian": "exact"}, "sdpa attention does not support. Load the model with attn_implementation='eager'"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "Set gradient_checkpointing_kwargs={'use_reentrant': False}",
        ),
        ({"trainer": {"rho_dataset": make_images().to_iterable_dataset()}}, "rho_dataset is a stream"),
    ],
)
def test_unsupported_setups_are_errors_before_training(make_trainer, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_trainer(**LEARNED, **options)


def test_two_processes_with_rare_examples_on_one_of_them(tmp_path):
    options = {"sharpness": "imbsam", "rare_threshold": 10, "rho": 0.3, "rho_learning_rate": 0.1, "max_steps": 12}
    options |= LEARNED | {"rho_update_every": 1}
    ranks = run_processes(train, tmp_path / "two", options, folder=tmp_path)
    logged = rho_of_both(ranks)
    assert len(set(logged)) > 5


@pytest.mark.parametrize("stop", [4, 5])
def test_resuming_with_another_number_of_processes_keeps_one_rho(tmp_path, stop):
    options = {"rho": 0.3, "rho_learning_rate": 0.1, "save_strategy": "steps", "save_steps": stop, **LEARNED}
    one = train(tmp_path / "out", options | {"max_steps": stop})
    checkpoint = str(tmp_path / "out" / f"checkpoint-{stop}")
    more = options | {"max_steps": stop + 4, "save_strategy": "no"}
    ranks = run_processes(train, tmp_path / "two", more, False, None, checkpoint, folder=tmp_path)
    logged = rho_of_both(ranks)
    before = [log["rho"] for log in one["logs"] if "rho" in log]
    assert logged[stop - 1] == before[-1]
    assert logged[-1] != before[-1]


def test_with_one_epsilon_the_update_equals_one_process_with_a_double_batch(tmp_path):
    options = {"rho": 0.05, "rho_objective": "validation", "rho_learning_rate": 0.1, "max_steps": 6, **LEARNED}
    one = train(tmp_path / "one", options | {"per_device_train_batch_size": 8})
    ranks = run_processes(train, tmp_path / "two", options | {"ascent_sync": "global"}, folder=tmp_path)
    for log, expected in zip(ranks[0]["logs"], one["logs"], strict=True):
        assert log == pytest.approx(expected, rel=1e-5)
    assert one["logs"][-2]["rho_derivative"] != 0


# ---- the published update ----------------------------------------------------------------------------------------

MATRICES = {side: torch.tensor(RNG.normal(size=(4, 4))) for side in ("train", "validation")}
CENTRES = {"train": torch.zeros(4, dtype=torch.float64), "validation": torch.tensor(RNG.normal(size=4))}


def quadratic(w, side):
    h = MATRICES[side].T @ MATRICES[side]
    return (w - CENTRES[side]) @ h @ (w - CENTRES[side]) / 2


def step_from(start, rho, eta):
    g = torch.func.grad(quadratic)(start, "train")
    unit = g / g.norm()
    return start - eta * torch.func.grad(quadratic)(start + rho * unit, "train"), unit


def test_lets_as_published_finds_the_radius_where_the_gap_closes():
    """On a quadratic, the losses after a step of radius ρ are known: LETS goes where they are equal."""
    eta, fixed = 0.05, 0.7
    start = torch.tensor(RNG.normal(size=4))
    theta, _ = step_from(start, fixed, eta)
    shift = quadratic(theta, "validation") - quadratic(theta, "train")  # makes the gap 0 at ρ = 0.7

    def gap_derivative(rho):
        theta, unit = step_from(start, rho, eta)
        losses = quadratic(theta, "validation") - shift, quadratic(theta, "train")
        gradients = [torch.func.grad(quadratic)(theta, side) for side in ("validation", "train")]
        direction = MATRICES["train"].T @ MATRICES["train"] @ unit
        return radius_derivative("gap", eta, losses, ([gradients[0]], [gradients[1]]), [direction])

    ends = {}
    for update in ("adam", "sign"):
        radius = LearnedRadius(0.2, learning_rate=0.02, objective="gap", update=update)
        for _ in range(1500):
            radius.update(gap_derivative(radius.rho))
        ends[update] = abs(radius.rho.item() - fixed)
    assert ends["adam"] < 1e-3
    assert ends["adam"] < ends["sign"] / 3, "a sign is as large at the fixed point as far from it"


def test_adam_sees_the_derivative_of_log_rho():
    one, other = (LearnedRadius(0.2, learning_rate=0.1, update="adam") for _ in range(2))
    for derivative in (1.0, 3.0, 2.0):
        one.update(torch.tensor(derivative))
        log_rho = other.log_scale.exp() * other.initial
        other.log_scale.grad = log_rho * derivative
        other.adam.step()
    assert one.rho.item() == other.rho.item()
    signed = LearnedRadius(0.2, learning_rate=0.1)
    for derivative in (1.0, 3.0, 2.0):
        signed.update(torch.tensor(derivative))
    assert signed.rho.item() != one.rho.item()


def test_the_paper_is_cited_for_the_published_algorithm_alone():
    from hf_sharp.sharpness.choices import CHOICES, LETS

    def cited(**options):
        values = {"rho_schedule": "learned", "rho_objective": "alignment", "rho_update": "sign"} | options
        return LETS in [paper for choice in CHOICES if choice.applies(values) for paper in choice.citations]

    assert cited(rho_objective="gap", rho_update="adam")
    assert not cited()
    assert not cited(rho_objective="gap")
    assert not cited(rho_schedule="constant", rho_objective="gap", rho_update="adam")
