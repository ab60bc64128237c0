"""Elapsed time of a stage, interrupted runs included, and the devices it ran on."""

import os
import time
from pathlib import Path
from typing import Any

from minitron_cli import canonical_json, io
from minitron_cli.artifacts.manifest import sealed, unsealed

CLOCK = "clock.json"


class Clock:
    """Time spent on one artifact, kept beside the state that the stage resumes from.

    A run killed with SIGKILL cannot record its time; it is estimated from the timestamps of the files it left.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch, self._path = scratch, scratch / CLOCK
        self._earlier = self._before()
        self._started = time.monotonic()
        self.stop()  # records the start, in case this run is killed

    @property
    def seconds(self) -> float:
        """Seconds of all runs so far."""
        return round(self._earlier + time.monotonic() - self._started, 3)

    def stop(self) -> None:
        """Record the time of an interrupted run."""
        if self._traces():
            io.replace(self._path, canonical_json.pretty(sealed({"seconds": self.seconds})))

    def _before(self) -> float:
        traces = self._traces()
        recorded = unsealed(self._path) if self._path.is_file() else None
        if recorded is None:
            return max(traces) - min(traces) if traces else 0.0
        recorded_at = self._path.stat().st_mtime  # end of the last run, or its start if it was killed
        return float(recorded["seconds"]) + max(0.0, max(traces, default=0.0) - recorded_at)

    def _traces(self) -> list[float]:
        """Modification times of the stage's files."""
        return [path.stat().st_mtime for path in self._scratch.rglob("*") if path.is_file() and path != self._path]


def devices(device: str) -> dict[str, Any]:
    """Product name of `device`, and number of processes, each of which uses one such device."""
    import torch

    name = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else device
    return {"device": name, "processes": int(os.environ.get("WORLD_SIZE", "1"))}
