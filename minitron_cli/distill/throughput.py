"""FLOPs of a training run, its tokens per second, and its model FLOPs utilization (MFU)."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from minitron_cli.cost.compute import TRAINING
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape

PEAK_FLOPS = {  # dense bf16, from the vendors' data sheets; of several names that match, the longest is used
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H800": 989e12,
    "L4": 121e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "RTX 6000 Ada": 364e12,
}


@dataclass
class TrainingThroughput:
    """Number of steps and the time they took; evaluations and checkpoints between steps are not included."""

    step_tokens: int
    step_flops: int
    peak_flops: float | None
    """Peak FLOPs per second of all devices together; None if unknown."""
    steps: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Record one step."""
        self.steps += 1
        self.seconds += seconds

    @property
    def tokens(self) -> int:
        return self.steps * self.step_tokens

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization: share of the devices' peak; None if the peak is unknown."""
        if self.peak_flops is None or not self.seconds:
            return None
        return self.steps * self.step_flops / self.seconds / self.peak_flops

    def shown(self) -> dict[str, float | str]:
        """Figures of the progress line."""
        share = {} if self.mfu is None else {"MFU": f"{self.mfu:.1%}"}
        return {"tokens/s": f"{self.tokens_per_second:,.0f}", **share}

    def summary(self) -> dict[str, float | str | bool]:
        """Figures of the result's `run.json`."""
        share = {} if self.mfu is None else {"mfu": round(self.mfu, 4)}
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "training_seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "flops_per_step": self.step_flops,
            **share,
        }


def step_flops(student: Any, teacher: Any | None, tokens: int, length: int) -> int:
    """FLOPs of one step: forward and backward pass of the student (three forward passes), forward pass of the teacher.

    Attention spans half of the `length` tokens of a block on average. Recomputed activations count once.
    """
    of_teacher = _forward(teacher, length // 2) if teacher is not None else 0
    return tokens * (TRAINING * _forward(student, length // 2) + of_teacher)


def _forward(model: Any, context: int) -> int:
    return Shape.of(family_of(model.config), model.config).flops_per_token(context)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak dense FLOPs per second of one device; None if unknown."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Peak of the device with this full name, such as "NVIDIA H100 80GB HBM3"; None if unknown."""
    words = re.split(r"[\s-]+", name)
    found = [known for known in PEAK_FLOPS if all(word in words for word in known.split())]
    return PEAK_FLOPS[max(found, key=len)] if found else None
