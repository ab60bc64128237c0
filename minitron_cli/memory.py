"""Available memory, and whether a model fits in it."""

import os
import resource
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own

SPARE = 1.2  # peak memory of loading weights, relative to their size


def fits(model_bytes: int, other_bytes: int, device: str) -> bool:
    """Whether a device has memory for a model of `model_bytes` and `other_bytes` besides."""
    return model_bytes * SPARE + other_bytes <= available_bytes(device)


def available_bytes(device: str) -> float:
    """Bytes that can be allocated on a device without swapping; infinity if unlimited."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min(_machine(), _container())


def peak_bytes(device: str) -> int | None:
    """Peak memory of this process on a device so far; None if the system does not report it."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if not STATUS.exists():
        return _counted_peak()
    return _kilobytes(STATUS, "VmHWM") * 1024  # getrusage includes the process before exec


def resident_bytes() -> int:
    """Memory that this process holds, libraries included; 0 if the system does not report it."""
    if not STATUS.exists():
        return 0
    return _kilobytes(STATUS, "VmRSS") * 1024


def _kilobytes(path: Path, name: str) -> int:
    """Number of kilobytes in a line `name: 123 kB` of a file in /proc."""
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return int(fields[name].split()[0])


def _counted_peak() -> int | None:
    """The peak that the system counts, in bytes, where it is macOS; units differ elsewhere."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if sys.platform == "darwin" else None


def _machine() -> int:
    if MEMINFO.exists():
        return _kilobytes(MEMINFO, "MemAvailable") * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # macOS does not report what is in use


def _container() -> float:
    """Limit of the container minus its anonymous memory; infinity without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else int(limit) - int(statistics["anon"])
