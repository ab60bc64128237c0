import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    """Memory where there is some: thousands of synced files are slow on a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="minitron-faults-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
