"""Speed of the disk: bytes written, synced and hashed, and bytes read, per second."""

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from minitron_cli import io, timings

PROBE_BYTES = 32 << 20


class DiskSpeed(NamedTuple):
    """Seconds per byte."""

    write: float
    """With a sync and the hash of what was written."""
    read: float


def speed(directory: Path) -> DiskSpeed:
    """Speed of the disk of a directory, or of its nearest parent that exists; kept as `timings.fastest` does."""
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    facts = {"figure": "disk", "device": place.stat().st_dev, "machine": timings.machine("cpu")}
    return DiskSpeed(**timings.fastest(facts, lambda: _measured(place)._asdict()))


def _measured(place: Path) -> DiskSpeed:
    try:
        return _timed(place)
    except OSError:  # nothing may be written there, or nothing more fits
        with tempfile.TemporaryDirectory() as elsewhere:
            return _timed(Path(elsewhere))


def _timed(place: Path) -> DiskSpeed:
    content = torch.randint(256, (PROBE_BYTES,), dtype=torch.uint8).numpy().tobytes()
    with tempfile.TemporaryDirectory(dir=place, prefix=io.TEMPORARY) as directory:
        file = Path(directory) / "speed"
        started = time.perf_counter()
        io.write_new(file, content)
        list(io.file_records([file]))
        written = time.perf_counter()
        file.read_bytes()
        return DiskSpeed((written - started) / PROBE_BYTES, (time.perf_counter() - written) / PROBE_BYTES)
