"""A cache of hashes that knows small files, and files that were just written."""

import pytest

from minitron_cli.artifacts import file_hashes


@pytest.fixture
def hash_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LARGE_BYTES", "TICK_NS", "COARSE_TICK_NS"):
        monkeypatch.setattr(file_hashes, name, 0)
