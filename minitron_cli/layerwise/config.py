"""Options of a pass over calibration text."""

from typing import Literal

from pydantic import Field

from minitron_cli.spec import Quantity, Spec


class CalibrationConfig(Spec):
    """Samples, batch size and memory of a calibration pass."""

    samples: int = Field(1024, ge=1)
    """Blocks of training text to calibrate on (1024 in Muralidharan et al. 2024)."""
    batch_size: int = Field(8, ge=1)
    """Samples per forward pass. Larger is faster and takes more memory; results agree to rounding."""
    mode: Literal["auto", "resident", "layer_major"] = "auto"
    """Hold the whole model in memory (resident) or one layer at a time (layer_major); auto: the whole model if it fits."""
    activation_budget: Quantity = 1_000_000_000
    """Bytes of hidden states held in memory between two layers in layer-major mode; the rest is stored on disk."""
    seed: int = 0
    """Seed by which calibration blocks are drawn."""
