"""Whether a model fits."""

import pytest

from minitron_cli import memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n")
    return tmp_path


def test_what_is_available_is_what_the_machine_says(machine):
    assert memory.available_bytes("cpu") == 8_000_000 * 1024


def test_a_container_has_less(machine):
    (machine / "memory.max").write_text("3000000\n")
    (machine / "memory.stat").write_text("anon 1000000\nfile 5000\n")
    assert memory.available_bytes("cpu") == 2_000_000
    (machine / "memory.max").write_text("max\n")
    assert memory.available_bytes("cpu") == 8_000_000 * 1024


def test_a_model_fits_with_room_for_loading_it(machine):
    assert memory.fits(5_900_000_000, 10**9, "cpu")
    assert not memory.fits(5_900_000_000, 2 * 10**9, "cpu")
    assert not memory.fits(7 * 10**9, 0, "cpu")
