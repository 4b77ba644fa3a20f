import numpy as np
import pytest
from transformers import TrainerCallback

from hf_sharp.data.sampling import SAMPLERS, ClassSampler, class_probabilities
from tests.conftest import make_images

COUNTS = np.array([400, 80, 16, 4])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))


@pytest.mark.parametrize("name", SAMPLERS)
def test_shares_of_the_classes_are_those_of_the_formula(name):
    q = {"instance": 1.0, "square_root": 0.5, "class_balanced": 0.0, "progressive": 1.0}[name]
    expected = np.array([n**q for n in COUNTS]) / sum(n**q for n in COUNTS)
    np.testing.assert_allclose(class_probabilities(name, COUNTS), expected, rtol=1e-12)
    drawn = np.concatenate([LABELS[epoch_of(name, epoch, num_epochs=1e9)] for epoch in range(40)])
    shares = np.bincount(drawn) / len(drawn)
    np.testing.assert_allclose(shares, expected, atol=4 * np.sqrt(0.25 / len(drawn)))


def epoch_of(name, epoch, seed=0, num_epochs=4.0):
    return list(ClassSampler(LABELS, name, seed, lambda: (epoch, num_epochs)))


def test_progressive_goes_from_instance_to_balanced_over_the_epochs():
    few = [np.mean(LABELS[np.concatenate([epoch_of("progressive", e, s) for s in range(20)])] == 3) for e in range(4)]
    expected = [(1 - t) * 4 / 500 + t / 4 for t in (0.125, 0.375, 0.625, 0.875)]
    np.testing.assert_allclose(few, expected, atol=0.02)
    np.testing.assert_allclose(class_probabilities("progressive", COUNTS, 1.0), np.full(4, 0.25))


def test_within_a_class_nothing_comes_twice_before_all_have_come_once():
    drawn = np.array(epoch_of("class_balanced", 0))
    for c, count in enumerate(COUNTS):
        of_class = drawn[LABELS[drawn] == c]
        rounds = [of_class[start : start + count] for start in range(0, len(of_class), count)]
        assert all(len(set(r)) == len(r) for r in rounds)
    assert len(drawn) == len(LABELS)


def test_the_same_epoch_draws_the_same_and_another_epoch_or_seed_draws_others():
    assert epoch_of("square_root", 1) == epoch_of("square_root", 1)
    assert epoch_of("square_root", 1) != epoch_of("square_root", 2)
    assert epoch_of("square_root", 1) != epoch_of("square_root", 1, seed=1)


def test_a_class_without_examples_is_never_drawn():
    labels = np.array([0, 0, 0, 2])
    for name in SAMPLERS:
        assert class_probabilities(name, np.bincount(labels))[1] == 0
        assert set(ClassSampler(labels, name)) <= {0, 1, 2, 3}


def test_an_unknown_sampler_lists_the_samplers():
    with pytest.raises(ValueError, match="unknown sampler 'balanced'; expected one of instance, square_root, class_b"):
        ClassSampler(LABELS, "balanced")


def drawn_by(trainer):
    """The labels of the batches that a training sees, step by step, and how many epochs began."""
    seen = []
    step = trainer.training_step

    def training_step(model, inputs, num_items_in_batch=None):
        seen.append(inputs["labels"].numpy())
        return step(model, inputs, num_items_in_batch)

    trainer.training_step = training_step
    trainer.train()
    return np.concatenate(seen)


@pytest.mark.parametrize("length", [{"max_steps": 30}, {"num_train_epochs": 1.5, "max_steps": -1}], ids=str)
def test_progressive_ends_balanced_however_long_the_training_is(make_trainer, length):
    counts = [1600, 320, 64, 16] if "max_steps" in length and length["max_steps"] > 0 else [160, 32, 6, 2]
    trainer = make_trainer(train_dataset=make_images(counts), sharpness="none", sampler="progressive", **length)
    labels = drawn_by(trainer)
    last = labels[-len(labels) // 4 :]
    # At t = 7/8 the frequent class has a share of 0.1 + 0.875 / 4; at t near 0 it would be 0.8.
    assert np.mean(last == 0) < 0.5
    assert np.mean(labels[: len(labels) // 4] == 0) > 0.6


def test_an_epoch_that_was_left_early_is_counted(make_trainer):
    class Leave(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_epoch_stop = state.global_step == 2

    trainer = make_trainer(sharpness="none", sampler="class_balanced", max_steps=6)
    trainer.add_callback(Leave())
    labels = drawn_by(trainer)
    assert not np.array_equal(labels[:16], labels[16:32]), "the second epoch has draws of its own"
