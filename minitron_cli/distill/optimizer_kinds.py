"""Kinds of AdamW by where and how finely its moments are held, and the memory that each takes. Needs no torch."""

from importlib.util import find_spec
from typing import Literal, NamedTuple

from minitron_cli.errors import RecipeError

OptimizerKind = Literal["adamw", "adamw_8bit", "adamw_offload"]

BLOCK = 256  # values that share one fp32 scale in 8 bits: torchao's default, and that of Dettmers et al. 2021


class TrainedBytes(NamedTuple):
    """Bytes per trained parameter."""

    device: float
    """On the device of the student: fp32 weight and gradient, and the moments unless they are offloaded."""
    host: float
    """In the host's memory beside that."""

    def on(self, device: str) -> float:
        """Bytes in the memory of a device; on a CPU, which is the host, the gradient is there once."""
        if not device.startswith("cpu"):
            return self.device
        return self.device + (self.host - 4 if self.host else 0)


def trained_bytes(kind: OptimizerKind) -> TrainedBytes:
    """Memory per trained parameter at the optimizer's step, activations aside."""
    weight_and_gradient = 4 + 4
    if kind == "adamw_offload":  # the host updates weights of its own
        return TrainedBytes(weight_and_gradient, weight_and_gradient + _moments(kind))
    return TrainedBytes(weight_and_gradient + _moments(kind), 0)


def saved_bytes(kind: OptimizerKind) -> float:
    """Bytes per trained parameter of a saved state: the fp32 weight and the moments."""
    return 4 + _moments(kind)


def _moments(kind: OptimizerKind) -> float:
    """Bytes per trained parameter of both moments, wherever they are."""
    return 2 * (1 + 4 / BLOCK) if kind == "adamw_8bit" else 4 + 4


def check(kind: OptimizerKind, section: str) -> None:
    """RecipeError if the optimizer set in a section of the recipe needs a package that is missing."""
    if kind == "adamw_8bit" and find_spec("torchao") is None:
        raise RecipeError(
            f"{section}.optimizer={kind} needs torchao: run `pip install 'minitron-cli[low-memory]'`, "
            f"or set {section}.optimizer=adamw_offload"
        )
