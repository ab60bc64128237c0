"""The processes that train together: rank, device, collective operations, and the precision of a device.

Only the process group and the device come from accelerate. Its model wrapper averages gradients over processes instead
of tokens. torch's DDP sums in an order that depends on how many steps a process has run, so a resumed run would differ
in the last bits. accelerate's mixed precision is global to the process, and two runs in one process may differ in it.
Therefore gradients are summed here, and `torch.autocast` is used directly.
"""

import os
from collections.abc import Sequence
from signal import SIGTERM
from typing import Literal, TypeVar

import torch
from torch import Tensor, distributed

from minitron_cli import stopping
from minitron_cli.device import multiplies_bf16, without_index
from minitron_cli.layerwise.processes import process_state, say_if_on_cpu

Precision = Literal["fp32", "bf16"]
T = TypeVar("T")


class ProcessGroup:
    """The processes that train together, seen from one of them. One process, unless a launcher started several."""

    def __init__(self, device: str, *, alone: bool = False) -> None:
        self._state = process_state(device)
        self.rank: int = 0 if alone else self._state.process_index
        self.size: int = 1 if alone else self._state.num_processes
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.device = without_index(torch.device(device) if self.size == 1 else self._state.device)
        say_if_on_cpu(self.size, self.device)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.size > 1:
            for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def sum(self, value: float) -> float:
        """Sum of every process's value, in fp64."""
        total = torch.tensor(float(value), dtype=torch.float64)
        total = total if self.size == 1 or self.device.type == "cpu" else total.to(self.device)
        self.sum_([total])
        return total.item()

    def any(self, claim: bool) -> bool:
        """Whether the claim is true in any process; the same answer in all of them."""
        return self.sum(claim) > 0

    def broadcast(self, value: T) -> T:
        """Value of the process of rank 0."""
        values: list[T] = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def all_gather(self, value: T) -> list[T]:
        """Values of all processes, by rank."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def stop_if_asked(self) -> None:
        """Raise Interrupted in all processes if any was asked to stop. All must call this equally often."""
        if not self.any(stopping.stop_requested()):
            return
        if not stopping.stop_requested():
            stopping.request_stop(SIGTERM)
        raise stopping.interrupted()

    def barrier(self) -> None:
        """Return once all processes have called this."""
        if self.size > 1:
            self._state.wait_for_everyone()


def resolve_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """Precision to compute in; "auto" is bf16 where the hardware multiplies it natively, else fp32, and never fp16."""
    if precision != "auto":
        return precision
    return "bf16" if multiplies_bf16(str(device)) else "fp32"
