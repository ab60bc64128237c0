"""How long a result was worked on, by how many of which devices: the runs that were stopped on the way included."""

import os
import time
from pathlib import Path
from typing import Any

from minitron_cli import canonical_json, io, strict_json

CLOCK = "clock.json"


class Clock:
    """Beside the state that a stage resumes from, while there is any.

    A run that is killed outright tells nobody: of it, the time between the files that it left is known.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._path = scratch, scratch / CLOCK
        self._earlier = self._before()
        self._started = time.monotonic()
        self.stop()  # so that the next run, should this one be killed, knows when it began

    @property
    def seconds(self) -> float:
        return round(self._earlier + time.monotonic() - self._started, 3)

    def stop(self) -> None:
        """The work ends before it is done."""
        if self._traces():
            io.replace(self._path, canonical_json.pretty({"seconds": self.seconds}))

    def _before(self) -> float:
        traces = self._traces()
        if not self._path.is_file():
            return max(traces) - min(traces) if traces else 0.0
        told_at = self._path.stat().st_mtime  # when the last run began, or ended if it could say so
        return strict_json.load(self._path)["seconds"] + max(0.0, max(traces, default=0.0) - told_at)

    def _traces(self) -> list[float]:
        """When the stage's own files were written."""
        return [path.stat().st_mtime for path in self._scratch.rglob("*") if path.is_file() and path != self._path]


def devices(device: str) -> dict[str, Any]:
    """What works on a result: `device` by its maker's name, and how many processes, each with one of them."""
    import torch

    name = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else device
    return {"device": name, "processes": int(os.environ.get("WORLD_SIZE", "1"))}
