"""Calibration with several processes: each observes a share of the samples, then all merge their observations.

The processes are those of a launcher such as torchrun; without one there is a single process and nothing is sent.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, distributed

from minitron_cli import progress
from minitron_cli.device import without_index
from minitron_cli.layerwise.observer import Observer

if TYPE_CHECKING:
    from accelerate import PartialState


class Processes(NamedTuple):
    """Rank of this process and number of processes."""

    rank: int
    size: int

    def share(self, count: int | None) -> int | None:
        """Number of the first `count` samples that this process has (`rank_slice`); None: all of its samples."""
        return None if count is None else len(range(self.rank, count, self.size))

    def merge(self, observers: Iterable[Observer]) -> None:
        """Merge the observations of all processes, in the order of their ranks, into every process's observers."""
        if self.size == 1:
            return
        for observer in observers:
            first, *others = self._gather(observer.state())
            observer.restore(first)
            for state in others:
                observer.merge(state)

    def all(self, claim: bool) -> bool:
        """Whether the claim is true in every process; the same answer in all of them."""
        claims = [claim] * self.size
        if self.size > 1:
            distributed.all_gather_object(claims, claim)
        return all(claims)

    def _gather(self, state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        gathered: list[dict[str, Tensor]] = [{}] * self.size
        distributed.all_gather_object(gathered, {name: tensor.cpu() for name, tensor in state.items()})
        return gathered


ALONE = Processes(0, 1)
TIMEOUT = timedelta(hours=2)
"""Of what processes wait for: the first may write and hash a checkpoint meanwhile, or one go on in an earlier layer.
Launchers end failed processes sooner."""


def say_if_on_cpu(processes: int, device: torch.device) -> None:
    """Remark that several processes share the CPU where the user asked for accelerators (`--gpus`)."""
    if processes > 1 and device.type == "cpu":
        progress.warn_once(f"{processes} processes run on the CPU and share its cores: no accelerator is used")


def process_state(device: str) -> "PartialState":
    """accelerate's state of the processes, of which there is one: whoever makes it first sets its timeout."""
    from accelerate import PartialState

    return PartialState(cpu=torch.device(device).type == "cpu", timeout=TIMEOUT)


def join_processes(device: str) -> tuple[Processes, str]:
    """Processes of this run, and the device of this one: one accelerator per process."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE, device
    state = process_state(device)
    say_if_on_cpu(state.num_processes, state.device)
    return Processes(state.process_index, state.num_processes), str(without_index(state.device))
