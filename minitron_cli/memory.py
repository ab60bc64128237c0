"""How much memory there is, and whether a model fits in it."""

import os
import resource
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own

SPARE = 1.2  # times the weights: what loading them takes at its peak


def fits(model_bytes: int, other_bytes: int, device: str) -> bool:
    """Whether a model can be resident on a device, beside this much else."""
    return model_bytes * SPARE + other_bytes <= available_bytes(device)


def available_bytes(device: str) -> float:
    """What can still be allocated on a device without swapping."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min(_machine(), _container())


def peak_bytes(device: str) -> int | None:
    """The most that this process has held on a device so far; None where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if not STATUS.exists():
        return _counted_peak()
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024  # getrusage would count what the process was before it was ours


def _counted_peak() -> int | None:
    """The peak that the system counts, in bytes, where it is macOS; units differ elsewhere."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if sys.platform == "darwin" else None


def _machine() -> int:
    if MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2  # macOS does not say what is in use


def _container() -> float:
    """The container's limit less its anonymous memory; infinity without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else int(limit) - int(statistics["anon"])
