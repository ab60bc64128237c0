"""Where a run happens: which of how many processes this is, on what device, in which precision.

Of accelerate this takes the process group and the device only. Its wrapper for models would average gradients over
processes instead of tokens, and torch's DDP sums in an order that depends on how many steps the process has seen, so
that a resumed run would differ in the last bits; its mixed precision is global to the process, where two runs in a row
may differ. So gradients are summed here, and `torch.autocast` is used as it is.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from torch import Tensor, distributed

Precision = Literal["fp32", "bf16"]
T = TypeVar("T")

TIMEOUT = timedelta(hours=2)  # with others, who may be tokenising or hashing a checkpoint; a launcher ends the dead


class ProcessGroup:
    """This process among those that train together; there is one, unless a launcher such as torchrun says more."""

    def __init__(self, device: str, *, alone: bool = False) -> None:
        from accelerate import PartialState

        self._state = PartialState(cpu=torch.device(device).type == "cpu", timeout=TIMEOUT)
        self.rank: int = 0 if alone else self._state.process_index
        self.size: int = 1 if alone else self._state.num_processes
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        self.device = torch.device(device) if self.size == 1 else self._state.device

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in each tensor's place."""
        if self.size > 1:
            for work in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def sum(self, value: float) -> float:
        total = torch.tensor(float(value), dtype=torch.float64)
        total = total if self.size == 1 or self.device.type == "cpu" else total.to(self.device)
        self.sum_([total])
        return total.item()

    def any(self, claim: bool) -> bool:
        """Whether any process claims it; all of them learn the same."""
        return self.sum(claim) > 0

    def broadcast(self, value: T) -> T:
        """The first process's value."""
        values: list[T] = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def all_gather(self, value: T) -> list[T]:
        """Every process's value, in their order."""
        values = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self._state.wait_for_everyone()


def resolve_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """What "auto" means here: bf16 where the hardware multiplies it, never fp16."""
    if precision != "auto":
        return precision
    return "bf16" if _has_bf16(device) else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
