"""The learning rate at the edges of its two parts."""

import math
from itertools import pairwise

import pytest

from minitron_cli.distill.schedule import learning_rate


def rates(total: int, warmup: int, peak: float = 1.0, floor: float = 0.1) -> list[float]:
    return [learning_rate(step, total, peak, floor, warmup) for step in range(total)]


def test_rises_in_equal_steps_to_the_peak() -> None:
    assert rates(100, 4)[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_falls_from_the_peak_to_the_floor_in_the_last_step() -> None:
    tail = rates(100, 4)[3:]
    assert tail[0] == 1.0
    assert tail[-1] == pytest.approx(0.1, abs=1e-15)
    assert all(a > b for a, b in pairwise(tail))


def test_is_halfway_in_the_middle_of_the_cosine() -> None:
    assert learning_rate(11, 20, 1.0, 0.2, 4) == pytest.approx(0.6)
    assert learning_rate(7, 20, 1.0, 0.2, 4) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))


def test_no_warm_up_starts_just_under_the_peak() -> None:
    assert rates(2, 0) == pytest.approx([0.55, 0.1])
    assert rates(1, 0) == pytest.approx([0.1])


def test_a_run_no_longer_than_its_warm_up_only_rises() -> None:
    assert rates(4, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(2, 4) == pytest.approx([0.25, 0.5])


def test_equal_peak_and_floor_stay_where_they_are() -> None:
    assert rates(5, 1, peak=0.3, floor=0.3) == pytest.approx([0.3] * 5)
