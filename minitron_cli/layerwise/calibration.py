"""One pass over calibration text: the samples of this process, and how the pass is saved, resumed and shared."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minitron_cli.data.batches import Batch, Batches, calibration_ids, rank_slice
from minitron_cli.data.pack import Blocks
from minitron_cli.layerwise.config import CalibrationConfig
from minitron_cli.layerwise.processes import ALONE, Processes
from minitron_cli.layerwise.resume import FILE, SavedState


@dataclass(frozen=True)
class Calibration:
    """Batches of one process, and how the pass over them runs."""

    batches: Iterable[Batch]
    samples: int | None = None
    """Number of samples in all batches, for the progress display; None if it is not known."""
    scratch: Path | None = None
    """Directory for the state of an unfinished pass; None: a killed pass starts over."""
    resume: bool = True
    """Whether the pass continues from the state in `scratch`."""
    save_every_s: float = 30
    """Seconds between two saved states."""
    activation_budget: int = 1_000_000_000
    """Bytes of hidden states that a layer-by-layer pass holds in memory; the rest waits in `scratch`."""
    processes: Processes = ALONE
    """Processes whose observations are merged; each has its own batches."""

    @classmethod
    def of(cls, config: CalibrationConfig, blocks: Blocks, processes: Processes = ALONE) -> Self:
        """Pass over the share of one process of the samples that the config draws from the blocks."""
        drawn = calibration_ids(config.seed, config.samples, len(blocks))
        ids = rank_slice(drawn, processes.rank, processes.size)
        batches = Batches(blocks, ids, config.batch_size)
        return cls(batches, len(ids), activation_budget=config.activation_budget, processes=processes)

    def saved_state(self) -> SavedState | None:
        """File of the unfinished pass; None without a scratch directory."""
        return SavedState(self.scratch / FILE, self.save_every_s) if self.scratch else None
