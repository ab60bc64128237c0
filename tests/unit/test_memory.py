"""Whether a model fits."""

import os
import resource
import sys
from types import SimpleNamespace

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


def test_a_system_without_proc_is_trusted_with_half_its_memory(machine, monkeypatch):
    """As macOS, which does not say how much of its memory is in use."""
    monkeypatch.setattr(memory, "MEMINFO", machine / "absent")
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.available_bytes("cpu") == 1000 * 4096 // 2


@pytest.mark.parametrize(("system", "peak"), [("darwin", 123_456), ("freebsd14", None)])
def test_a_peak_without_proc_is_the_systems_own_count(tmp_path, monkeypatch, system, peak):
    """In bytes on macOS; elsewhere the unit of ru_maxrss differs, so none is given."""
    monkeypatch.setattr(memory, "STATUS", tmp_path / "absent")
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=123_456))
    assert memory.peak_bytes("cpu") == peak
