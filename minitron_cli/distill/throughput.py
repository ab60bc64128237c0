"""How much a training run computes, how fast, and what part that is of what its devices could."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape

PEAK_FLOPS = {  # dense bf16, from the makers' data sheets; the longest name that fits is meant
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
    """Steps and the time they took; what happens between steps does not count."""

    step_tokens: int
    step_flops: int
    peak_flops: float | None
    """Per second, of all devices; None if it is not known."""
    steps: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """One more step."""
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
        """The part of the devices' peak that the steps took, where the peak is known."""
        if self.peak_flops is None or not self.seconds:
            return None
        return self.steps * self.step_flops / self.seconds / self.peak_flops

    def shown(self) -> dict[str, float | str]:
        """What a progress line says of it."""
        share = {} if self.mfu is None else {"MFU": f"{self.mfu:.1%}"}
        return {"tokens/s": f"{self.tokens_per_second:,.0f}", **share}

    def summary(self) -> dict[str, float | str | bool]:
        """What a result's record says of it."""
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
    """Of one step: forward and backward pass of the student, forward pass of the teacher, half of the text in view.

    What is computed twice to save memory counts once.
    """
    per_token = 3 * _forward(student, length // 2) + (_forward(teacher, length // 2) if teacher is not None else 0)
    return tokens * per_token


def _forward(model: Any, context: int) -> int:
    return Shape.of(family_of(model.config), model.config).flops_per_token(context)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Per second, of one device; None if it is not known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """By the device's full name, such as "NVIDIA H100 80GB HBM3"."""
    words = re.split(r"[\s-]+", name)
    found = [known for known in PEAK_FLOPS if all(word in words for word in known.split())]
    return PEAK_FLOPS[max(found, key=len)] if found else None
