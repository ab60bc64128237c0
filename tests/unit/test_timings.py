"""Times that are kept: for how long, and which of several."""

import os
import time
from pathlib import Path

import pytest

from minitron_cli import timings

FACTS = {"figure": "head", "machine": "this one"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def measured(*seconds):
    """A measurement that gives these values in turn, and fails when asked once more."""
    left = list(seconds)
    return lambda: {"seconds": left.pop(0)}


def age(cache: Path, seconds: float) -> None:
    (file,) = cache.rglob("*.json")
    os.utime(file, (time.time() - seconds,) * 2)


def test_a_recent_time_is_not_measured_again(cache):
    measure = measured(2.0)
    assert timings.fastest(FACTS, measure) == timings.fastest(FACTS, measure) == {"seconds": 2.0}


def test_of_times_measured_at_different_loads_the_least_is_kept(cache):
    measure = measured(3.0, 1.0, 2.0)
    found = []
    for _ in range(3):
        found.append(timings.fastest(FACTS, measure)["seconds"])
        age(cache, timings.RECENT_SECONDS + 1)
    assert found == [3.0, 1.0, 1.0]


def test_other_facts_have_a_time_of_their_own():
    measure = measured(3.0, 1.0)
    assert [timings.fastest(FACTS | {"n": n}, measure)["seconds"] for n in (1, 2)] == [3.0, 1.0]


def test_a_damaged_file_is_measured_again(cache):
    timings.fastest(FACTS, measured(3.0))
    (file,) = cache.rglob("*.json")
    file.write_text("{")
    assert timings.fastest(FACTS, measured(2.0)) == {"seconds": 2.0}


def test_an_empty_cache_variable_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    timings.fastest(FACTS, measured(2.0))
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("no home")))
    found = [timings.cached({"of": 1}, lambda: {"seconds": 2.0}), timings.fastest({"of": 2}, lambda: {"seconds": 3.0})]
    assert found == [{"seconds": 2.0}, {"seconds": 3.0}]
