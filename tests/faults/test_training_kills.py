"""A few of the kills of `training_kills`; `make kills` does a hundred."""

from pathlib import Path

import pytest

from tests.faults import training_kills
from tests.faults.training_kills import Fork, Setting, compare, study, train


@pytest.mark.slow
def test_killed_trainings_end_like_undisturbed_ones() -> None:
    found = study(runs=3, kills=9, of_two=1, seed=100)
    assert found["kills"] == 9
    assert {Setting(seed, 1).mask for seed in (100, 101, 102)} == {"none", "frozen", "refresh"}
    assert found["problems"] == []


@pytest.mark.slow
def test_a_run_that_differs_is_noticed(tmp_path: Path) -> None:
    """Another seed has other weights and other samples."""
    for name, seed in (("one", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        Fork.of(train, Setting(seed, 1), tmp_path / name).wait()
    problems = compare(tmp_path / "one", tmp_path / "other", failed=False)
    assert any(".safetensors differs" in problem for problem in problems)
    assert any("read other samples" in problem for problem in problems)
    assert len(training_kills.samples(tmp_path / "one")) == Setting(0, 1).config().steps
