"""Several processes at one stage's work: what one finds out, the others read in the scratch directory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from minitron_cli import progress, strict_json
from minitron_cli.artifacts.build import StageBuild
from minitron_cli.layerwise.processes import Processes

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class WorkerGroup:
    """The processes that share a search. What one finds out, the others read in the scratch directory."""

    work: StageBuild
    processes: Processes

    def map(self, title: str, names: Sequence[str], compute: Callable[[int], float]) -> list[float]:
        """A value for every name; each process computes its share, and each value is computed once."""
        mine = range(self.processes.rank, len(names), self.processes.size)
        with progress.track(title, len(mine), "candidates") as step:
            for i in mine:
                found = self.work.remember(names[i], partial(_value, compute, i))
                step(1, score=found["value"])
        return [float(self._found(name)["value"]) for name in names]

    def from_rank0(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the first process computes, for all."""
        return self.work.remember(name, compute) if self.processes.rank == 0 else self._found(name)

    def _found(self, name: str) -> dict[str, Any]:
        path = self.work.scratch / f"{name}.json"
        while not path.is_file():  # a launcher ends us all if the process that is to write it fails
            time.sleep(POLL_SECONDS)
            progress.raise_if_stopped()
        return dict(strict_json.load(path))

    def barrier(self) -> None:
        """Before anything is read that an earlier run may have left, and after everything is."""
        if self.processes.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def _value(compute: Callable[[int], float], i: int) -> dict[str, float]:
    return {"value": compute(i)}
