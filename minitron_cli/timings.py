"""Times measured on this machine, kept in the user's cache. They are no part of any result."""

import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from minitron_cli import canonical_json, io, strict_json

RECENT_SECONDS = 3600


def cached(facts: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Measured figures: those kept for these facts, which are everything they depend on, or new ones, which are kept.

    A damaged file is measured again; where there is no cache, or it cannot be written, nothing is kept.
    """
    path = _path(facts)
    return _kept(path) or _keep(path, facts, dict(measure()))


def fastest(facts: Mapping[str, Any], measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Times in seconds, each the least ever measured for these facts: what else the machine did then made it longer.

    Kept as in `cached`, and measured again when they have not been for `RECENT_SECONDS`.
    """
    path = _path(facts)
    kept = _kept(path)
    if path and kept and _is_recent(path):
        return kept
    found = dict(measure())
    return _keep(path, facts, {name: min(value, (kept or found).get(name, value)) for name, value in found.items()})


def _keep(path: Path | None, facts: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    if path:
        with suppress(OSError):
            io.make_dirs(path.parent)
            io.replace(path, canonical_json.pretty({"timing": found, "of": facts}))
    return found


def machine(device: str) -> dict[str, Any]:
    """What tells this machine and its device from others, as far as speed goes."""
    import torch

    on_cpu = torch.device(device).type == "cpu"
    return {
        "host": platform.node(),
        "processor": _processor() if on_cpu else torch.cuda.get_device_name(device) if "cuda" in device else device,
        "threads": torch.get_num_threads() if on_cpu else None,
        "torch": torch.__version__,
    }


def _path(facts: Mapping[str, Any]) -> Path | None:
    cache = io.user_cache()
    return cache / "timings" / f"{canonical_json.digest(facts)}.json" if cache else None


def _is_recent(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < RECENT_SECONDS
    except OSError:
        return False


def _kept(path: Path | None) -> dict[str, Any] | None:
    try:
        timing = strict_json.load(path)["timing"] if path else None
    except (OSError, ValueError, KeyError):
        return None
    return timing if isinstance(timing, dict) else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
