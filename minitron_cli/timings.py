"""Times measured on this machine, kept in the user's cache. They are no part of any result."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minitron_cli import canonical_json, io, strict_json


def cached(facts: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Measured figures: those kept for these facts, which are everything they depend on, or new ones, which are kept.

    A damaged file is measured again; where the cache cannot be written, nothing is kept.
    """
    path = _path(facts)
    if kept := _kept(path):
        return kept
    found = dict(measure())
    try:
        io.make_dirs(path.parent)
        io.replace(path, canonical_json.pretty({"timing": found, "of": facts}))
    except OSError:
        pass
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


def _path(facts: Mapping[str, Any]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "minitron" / "timings" / f"{canonical_json.digest(facts)}.json"


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        timing = strict_json.load(path)["timing"]
    except (OSError, ValueError, KeyError):
        return None
    return timing if isinstance(timing, dict) else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
