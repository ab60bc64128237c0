"""Work of one stage shared by several processes, which exchange values through the scratch directory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from minitron_cli import progress
from minitron_cli.artifacts.build import StageBuild
from minitron_cli.layerwise.processes import Processes

POLL_SECONDS = 0.2

Costs = dict[str, dict[str, float]]  # name -> kind of cost -> cost


@dataclass(frozen=True)
class WorkerGroup:
    """Processes that share a search; each value is computed by one and read by all."""

    work: StageBuild
    processes: Processes

    def map(self, title: str, names: Sequence[str], compute: Callable[[int], float]) -> list[float]:
        """Value of every name; each process computes its share, less what an interrupted run left."""
        mine = range(self.processes.rank, len(names), self.processes.size)
        with progress.track(title, len(mine), "candidates") as step:
            for i in mine:
                found = self.work.remember(names[i], partial(_value, compute, i))
                step(1, score=found["value"])
        return [float(self._found(name)["value"]) for name in names]

    def from_rank0(self, name: str, compute: Callable[[], Costs]) -> Costs:
        """Result of `compute` in process 0, in every process."""
        return self.work.remember(name, compute) if self.processes.rank == 0 else self._found(name)

    def _found(self, name: str) -> dict[str, Any]:
        while (
            found := self.work.remembered(name)
        ) is None:  # torchrun stops every process if the one that writes it fails
            time.sleep(POLL_SECONDS)
            progress.raise_if_stopped()
        return found

    def barrier(self) -> None:
        """Wait for all processes, so that none reads a file that another is about to replace or remove."""
        if self.processes.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def _value(compute: Callable[[int], float], i: int) -> dict[str, float]:
    return {"value": compute(i)}
