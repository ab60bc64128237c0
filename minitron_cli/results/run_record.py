"""How a result was made: clock, machine and speed. Outside of a result's identity."""

from collections.abc import Mapping
from typing import Any

from minitron_cli.results.price import Price
from minitron_cli.spec import Spec


class ExportCheck(Spec):
    """How much of a child was compared with its parent before it was kept."""

    compared: str
    seconds: float


class ModelSpeed(Spec):
    """Generation speed of one model; ratios are medians over rounds in which it took turns with the parent."""

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token_seconds: float
    peak_bytes: int | None = None
    libraries_bytes: int | None = None
    """Memory of the process before the model was loaded."""
    prefill_ratio: float | None = None
    """Prefill speed over the parent's; None for the parent."""
    prefill_range: tuple[float, float] | None = None
    """Lowest and highest ratio of a round."""
    decode_ratio: float | None = None
    decode_range: tuple[float, float] | None = None


class SpeedRecord(Spec):
    """Generation speed of all models of an evaluation."""

    settings: Mapping[str, Any]
    """The `evaluate.speed` section: batch size, prompt and new tokens, rounds, cache."""
    device: str
    models: Mapping[str, ModelSpeed]


class ThroughputRecord(Spec):
    """Speed of this process's part of a training run."""

    seconds: float
    """With evaluations and checkpoints."""
    steps: int
    tokens: int
    training_seconds: float
    tokens_per_second: float
    flops_per_step: int
    mfu: float | None = None
    """Model FLOPs utilization; None where the device's peak is unknown."""
    processes: int
    precision: str
    sharded: bool


class RunRecord(Spec):
    """Content of `run.json`."""

    seconds: float
    """Duration of the run that finished the work."""
    seconds_in_all: float
    """Duration including runs that were interrupted."""
    minitron: str
    python: str
    torch: str
    host: str
    threads: int
    cpu_capability: str
    device: str
    processes: int
    export_check: ExportCheck | None = None
    speed: SpeedRecord | None = None
    training: ThroughputRecord | None = None
    price: Price | None = None
    """What the run was expected to take, before its first batch."""
    measured: Mapping[str, Mapping[str, float]] = {}
    """Shape of a candidate -> kind of constraint -> measured cost."""

    def device_hours(self) -> float:
        """Hours of all devices together."""
        return self.seconds_in_all * self.processes / 3600
