import pytest

from hf_sharp.sharpness import scheduled_rho


def test_schedules_at_start_middle_and_end():
    assert [scheduled_rho(0.2, "constant", t) for t in (0, 0.5, 1)] == [0.2, 0.2, 0.2]
    assert [scheduled_rho(0.2, "linear", t) for t in (0, 0.5, 1)] == [0.2, 0.1, 0.0]
    assert [round(scheduled_rho(0.2, "cosine", t), 12) for t in (0, 0.25, 1)] == [0.2, 0.170710678119, 0.0]


def test_progress_beyond_the_end_counts_as_the_end():
    assert scheduled_rho(0.2, "linear", 1.5) == 0.0


def test_unknown_schedule_lists_the_schedules():
    with pytest.raises(ValueError, match=r"'step'.*constant, linear, cosine"):
        scheduled_rho(0.2, "step", 0.0)
