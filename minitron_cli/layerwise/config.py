"""How a pass over calibration text runs."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from minitron_cli.spec import Quantity, Spec


class CalibrationConfig(Spec):
    """Samples and memory of a calibration pass."""

    samples: int = Field(1024, ge=1)
    """Blocks of training text to calibrate on (1024 in Muralidharan et al. 2024). Unless set, at most an eighth of the
    text, but 16 if it has so many."""
    batch_size: int = Field(8, ge=1)
    """Samples per forward pass. Larger is faster and takes more memory; scores agree to rounding."""
    mode: Literal["auto", "resident", "layer_major"] = "auto"
    """Hold the whole model in memory, or one layer at a time; auto: one at a time if the model does not fit."""
    activation_budget: Quantity = 1_000_000_000
    """Bytes of hidden states held in memory between two layers in layer-major mode; the rest waits on disk."""
    seed: int = 0
    """Seed of the draw of blocks."""


@dataclass(frozen=True)
class ObserverOptions:
    """Measurements of a calibration pass that are optional."""

    pre_activation: bool = False
    """Whether neurons are also observed before their activation function."""
    removal_lengths: tuple[int, ...] = (1,)
    """Numbers of consecutive layers without which the perplexity is measured; none: the LM head does not run."""
    removal_samples: int | None = None
    """Number of samples, of all processes together, on which that is measured: the first ones; None: all."""
    removal_positions: int | None = None
    """Number of predicted tokens of each sample whose loss is taken for it, evenly spaced; None: all."""
    distance_lengths: tuple[int, ...] = ()
    """Numbers of consecutive layers whose input is compared with their output, on the samples of the removal."""
