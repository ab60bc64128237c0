"""Clocks are turned by hand: nothing here waits."""

import os

import pytest

from minitron_cli.artifacts import elapsed_time
from minitron_cli.artifacts.elapsed_time import CLOCK, Clock, devices


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Set the time; the second thing is what a stage does: leave a file with that time."""
    now = [1000.0]
    monkeypatch.setattr(elapsed_time.time, "monotonic", lambda: now[0])
    replace = elapsed_time.io.replace

    def stamped(path, content):
        replace(path, content)
        os.utime(path, (now[0], now[0]))

    monkeypatch.setattr(elapsed_time.io, "replace", stamped)

    def work(seconds: float, name: str | None = None) -> None:
        now[0] = 1000.0 + seconds
        if name:
            (tmp_path / name).write_text("")
            os.utime(tmp_path / name, (now[0], now[0]))

    return work


def test_a_run_that_is_not_disturbed_takes_its_own_time_and_writes_nothing(at, tmp_path):
    running = Clock(tmp_path)
    at(7.5)
    assert running.seconds == 7.5
    running.stop()
    assert list(tmp_path.iterdir()) == []


def test_runs_that_were_stopped_add_up_without_the_time_between_them(at, tmp_path):
    first = Clock(tmp_path)
    at(10, "state")
    at(12)
    first.stop()
    at(500)
    second = Clock(tmp_path)
    at(530, "more")
    second.stop()
    at(900)
    third = Clock(tmp_path)
    at(903)
    assert third.seconds == 12 + 30 + 3


def test_of_a_run_that_was_killed_the_time_until_its_last_file_counts(at, tmp_path):
    Clock(tmp_path)
    at(10, "state-1")
    at(25, "state-2")  # killed some time after that; nobody knows when it began
    at(500)
    second = Clock(tmp_path)
    assert second.seconds == 15
    at(540, "state-3")
    at(560)  # killed again, but it is known that it began at 500
    at(900)
    third = Clock(tmp_path)
    at(901)
    assert third.seconds == 15 + 40 + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [CLOCK, "state-1", "state-2", "state-3"]


def test_every_process_of_a_launcher_is_counted(monkeypatch):
    assert devices("cpu") == {"device": "cpu", "processes": 1}
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"Maker's {device}")
    assert devices("cuda") == {"device": "Maker's cuda", "processes": 4}


@pytest.mark.parametrize("damage", ["", "{}", '{"seconds": 12}', "[", '{"seconds": "x", "sha256": "0"}'])
def test_a_damaged_record_is_estimated_like_a_killed_run(at, tmp_path, damage):
    first = Clock(tmp_path)
    at(10, "state-1")
    at(22, "state-2")
    first.stop()
    (tmp_path / CLOCK).write_text(damage)
    at(500)
    assert Clock(tmp_path).seconds == 12
