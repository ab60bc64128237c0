"""What a user says about calibration."""

from pydantic import Field

from minitron_cli.spec import Spec


class ImportanceConfig(Spec):
    """One pass over a calibration set scores every axis, with every aggregation."""

    samples: int = Field(1024, ge=1)
    """Blocks of training text to calibrate on (1024 in Muralidharan et al. 2024)."""
    batch_size: int = Field(8, ge=1)
    """Samples per forward pass. Larger is faster and takes more memory; scores agree to rounding."""
    layer_removal: bool = True
    """Measure the perplexity without each layer too; it costs about half as many passes as there are layers."""
    seed: int = 0
    """Which blocks are drawn."""
