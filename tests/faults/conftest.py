import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tqdm

from minitron_cli import memory


@pytest.fixture(scope="module", autouse=True)
def _locks_are_not_shared_with_forks() -> Iterator[None]:
    """tqdm's own lock is a semaphore of all processes, and a fork that is killed may have held it."""
    before = tqdm.tqdm.get_lock()
    tqdm.tqdm.set_lock(threading.RLock())
    yield
    tqdm.tqdm.set_lock(before)


@pytest.fixture(scope="module", autouse=True)
def _memory_stays_free() -> Iterator[None]:
    """What does not fit into free memory is not measured, and another program may take memory between two runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available_bytes", lambda device: 2**36)
        yield


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    """Memory where there is some: thousands of synced files are slow on a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="minitron-faults-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
