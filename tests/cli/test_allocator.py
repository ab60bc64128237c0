"""Freed memory serves the next tensors, unless the user says otherwise."""

import ctypes
import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from minitron_cli import memory
from minitron_cli.cli import allocator

PAGES = """
import os, resource, torch
from minitron_cli.cli import allocator

def pages_of(tensors):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.ones(50 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {kept}:
    allocator.keep_freed(os.environ)
pages_of(30)  # until what is kept is one piece
print(pages_of(10))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_serves_the_next_tensor():
    """Every page of a tensor that the system gives is a fault."""

    def faults(kept, **environment):
        own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", PAGES.format(kept=kept)]
        return int(subprocess.run(command, env=own | environment, capture_output=True, text=True, check=True).stdout)

    pages = 10 * (50 << 20) // mmap.PAGESIZE
    assert faults(False) >= pages
    assert faults(True) < pages / 10
    assert faults(True, MALLOC_TRIM_THRESHOLD_=str(1 << 17)) >= pages, "a user's setting stays"


@pytest.fixture
def asked(monkeypatch):
    """`asked(free)`: options that a C library takes, whose threshold is at most `most`, with so much free memory."""

    def of(free, environment=None, most=1 << 40):
        taken = {}

        def mallopt(option, value):
            if option == allocator.MMAP_THRESHOLD and value > most:
                return 0
            taken[option] = value
            return 1

        monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
        monkeypatch.setattr(memory, "available_bytes", lambda device: free)
        monkeypatch.setattr(sys, "platform", "linux")
        allocator.keep_freed(environment or {})
        return taken

    return of


@pytest.mark.parametrize(("free", "kept"), [(8_000_000_000, 500_000_000), (80_000_000_000, 512 << 20)])
def test_a_small_machine_keeps_less(free, kept, asked):
    assert asked(free) == {allocator.MMAP_THRESHOLD: kept // 2, allocator.TRIM_THRESHOLD: kept}


def test_with_little_memory_glibc_adapts_by_itself(asked):
    """A fixed threshold below the 32 MiB that it would rise to makes every smaller tensor a page fault."""
    assert asked(1_000_000_000) == {}
    assert asked(16 * (64 << 20)) == {allocator.MMAP_THRESHOLD: 32 << 20, allocator.TRIM_THRESHOLD: 64 << 20}


def test_a_threshold_that_is_refused_is_lowered_or_nothing_is_set(asked):
    """Before version 2.35 glibc takes 32 MiB at most. The trim threshold alone would fix the other at 128 KiB."""
    assert asked(80_000_000_000, most=32 << 20) == {
        allocator.MMAP_THRESHOLD: 32 << 20,
        allocator.TRIM_THRESHOLD: 512 << 20,
    }
    assert asked(80_000_000_000, most=1 << 20) == {}


def test_settings_of_the_user_stay(asked):
    assert asked(80_000_000_000, {"MALLOC_ARENA_MAX": "2"}) == {}
    assert asked(80_000_000_000, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}) == {}
    assert asked(80_000_000_000, {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"})


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: SimpleNamespace())
    monkeypatch.setattr(sys, "platform", "linux")
    allocator.keep_freed({})
