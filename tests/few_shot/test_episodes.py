"""Episodes: the formulas' ranges and means, disjoint sets, and the same draw for whoever asks."""

import numpy as np
import pytest

from hf_sharp.few_shot import EpisodeSampler, sample_episode

SIZES = [3, 7, 12, 25, 40, 80, 150, 400, 9, 18, 33, 60]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)) * 10, SIZES))


def test_every_episode_keeps_to_the_formulas():
    episodes = list(EpisodeSampler(LABELS, seed=1)(300))
    ways = [len(episode.classes) for episode in episodes]
    assert set(ways) == set(range(5, 13)), "U{5 … 12} over 300 draws"
    for episode in episodes:
        assert len(np.unique(episode.classes)) == len(episode.classes)
        sizes = np.array([SIZES[c // 10] for c in episode.classes])
        queries = min(10, sizes.min() // 2)
        assert np.bincount(episode.query_labels).tolist() == [queries] * len(sizes)
        shots = np.bincount(episode.support_labels, minlength=len(sizes))
        assert (shots >= 1).all()
        assert (shots <= sizes - queries).all()
        assert len(episode.support) <= 500
        rows = np.concatenate([episode.support, episode.query])
        assert len(np.unique(rows)) == len(rows), "an example is in both sets, or twice in one"
        np.testing.assert_array_equal(LABELS[episode.support], episode.classes[episode.support_labels])
        np.testing.assert_array_equal(LABELS[episode.query], episode.classes[episode.query_labels])


def test_the_support_is_as_large_as_its_formula_says_on_average():
    # 20 equal classes of 1,000: q = 10, |S| = min(500, k ⌊100 β + 1⌋), and the support loses at most k to rounding.
    labels = np.repeat(np.arange(20), 1000)
    episodes = list(EpisodeSampler(labels, seed=0)(1500))
    rng = np.random.default_rng(5)
    expected, lowest = [], []
    for k in rng.integers(5, 21, 40_000):
        total = min(500, k * np.floor(100 * rng.random() + 1))
        expected.append(total)
        lowest.append(total - k)
    mean = np.mean([len(episode.support) for episode in episodes])
    assert np.mean(lowest) - 15 < mean < np.mean(expected) + 15
    assert np.mean([len(episode.classes) for episode in episodes]) == pytest.approx(12.5, abs=0.4)
    assert max(len(episode.support) for episode in episodes) > 480


def test_shares_within_the_support_vary_by_a_factor_of_four_at_most():
    labels = np.repeat(np.arange(10), 1000)
    ratios = []
    for episode in EpisodeSampler(labels, seed=3)(300):
        if len(episode.support) > 400:
            shots = np.bincount(episode.support_labels)
            ratios.append(shots.max() / shots.min())
    assert max(ratios) > 2.5, "α makes classes unequal"
    assert max(ratios) < 4.6, "e^{log 2 − log ½} = 4, and rounding"


def test_larger_classes_get_more_of_the_support():
    labels = np.repeat(np.arange(6), [100, 100, 100, 100, 100, 1000])
    shots = np.zeros(6)
    for episode in EpisodeSampler(labels, ways=6, seed=0)(200):
        shots[episode.classes] += np.bincount(episode.support_labels)
    assert shots[5] > 3 * shots[:5].max()


@pytest.mark.parametrize("shots", [1, 5])
def test_fixed_ways_and_shots(shots):
    episode = sample_episode(LABELS, ways=5, shots=shots, queries=4, seed=2)
    assert np.bincount(episode.support_labels).tolist() == [shots] * 5
    assert np.bincount(episode.query_labels).tolist() == [4] * 5


def test_a_class_of_exactly_shots_and_one_query_takes_part():
    episode = sample_episode(np.repeat(np.arange(5), 6), ways=5, shots=5)
    assert (len(episode.support), len(episode.query)) == (25, 5)


def test_draws_repeat_by_seed_and_number_and_not_by_order():
    sampler = EpisodeSampler(LABELS, seed=4)
    third = sampler.draw(3)
    for one, other in zip(third, list(EpisodeSampler(LABELS, seed=4)(5))[3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(third.query, sampler.draw(4).query)
    assert not np.array_equal(third.query, EpisodeSampler(LABELS, seed=5).draw(3).query)


def test_a_task_is_an_episode_without_its_answers():
    episode = sample_episode(LABELS)
    assert set(episode.task._fields) == {"support", "support_labels", "query"}
    assert episode.task.ways == len(episode.classes)


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (
            np.repeat(np.arange(4), 20),
            {},
            "needs 5 classes with at least 2 examples each .* 4 of the 4 classes have them",
        ),
        (np.repeat(np.arange(4), 20), {"ways": 5}, "needs 5 classes"),
        (np.arange(30), {}, "0 of the 30 classes have them"),
        (np.repeat(np.arange(6), 5), {"shots": 5}, "at least 6 examples each .5 for the support set, 1 to query"),
        (np.repeat(np.arange(6), 5), {"shots": 3, "queries": 3}, "at least 6 examples"),
        (LABELS, {"ways": 1}, "ways must be an integer >= 2, got 1"),
        (LABELS, {"shots": 0}, "shots must be an integer >= 1, got 0"),
        (LABELS, {"queries": 0}, "queries must be an integer >= 1, got 0"),
        (np.eye(3), {}, "one per example"),
    ],
)
def test_what_cannot_be_drawn_is_refused(labels, options, said):
    with pytest.raises(ValueError, match=said):
        sample_episode(labels, **options)


def test_more_fixed_ways_than_the_support_is_meant_to_have():
    task = EpisodeSampler(np.repeat(np.arange(700), 20), ways=600).draw(0).task
    assert np.bincount(task.support_labels, minlength=600).min() == 1
