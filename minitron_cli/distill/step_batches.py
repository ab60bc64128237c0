"""Blocks and stored signals that each process reads in a step. A function of the step's number and the seed alone."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minitron_cli.data.batches import Batch, batch, rank_slice, training_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.targets import NOTHING, Targets, targets
from minitron_cli.signals.read_ahead import ReadAhead
from minitron_cli.signals.rows import SignalRows
from minitron_cli.signals.shards import Visit


@dataclass(frozen=True)
class StepBatches:
    """Batches of a run, as one of its processes reads them."""

    config: DistillConfig
    blocks: Blocks
    group: ProcessGroup
    is_sharded: bool
    """Whether the models are sharded, so that every process takes part in every micro-batch."""
    ahead: ReadAhead | None = None
    """Reads the signals that stand in for a teacher."""

    def ids(self, step: int) -> list[int]:
        """Blocks of a step, over all processes."""
        size = self.config.batch_size
        return training_ids(self.config.seed, step * size, size, len(self.blocks))

    def micro_batches(self, step: int) -> list[tuple[Batch, Targets]]:
        """This process's parts of a step, and what is to be predicted in each."""
        size, ids = self.config.micro_batch_size, rank_slice(self.ids(step), self.group.rank, self.group.size)
        batches = [batch(self.blocks, ids[i : i + size]) for i in range(0, len(ids), size)]
        parts = [(part, targets(part)) for part in batches]
        if self.is_sharded:  # every process must run equally often, because the others need its rows
            parts += [(batches[0], NOTHING)] * (self.most_micro_batches - len(parts))
        return parts

    @property
    def most_micro_batches(self) -> int:
        """Micro-batches of a step, in the process that has most of them."""
        return math.ceil(math.ceil(self.config.batch_size / self.group.size) / self.config.micro_batch_size)

    def signals(
        self, step: int, parts: Sequence[tuple[Batch, Targets]], *, is_last: bool
    ) -> Iterator[SignalRows | None]:
        """Signals of each part of the step; those of the next step are read meanwhile, unless this is the last."""
        if self.ahead is None:
            yield from [None] * len(parts)
            return
        visits = self._visits(step)
        self.ahead.request(visits)
        if not is_last:
            self.ahead.request(self._visits(step + 1))
        for i, (_, target) in enumerate(parts):
            rows = self.ahead.rows(visits[i if i < len(visits) else 0])
            # A part without tokens is of a process that takes part because others need its rows.
            yield rows if len(target.labels_N) else rows.part(slice(0))

    def _visits(self, step: int) -> list[list[Visit]]:
        """Each micro-batch of this process in a step: its blocks, and which pass over the text it reads them in."""
        first, total, size = step * self.config.batch_size, len(self.blocks), self.config.micro_batch_size
        visits = [Visit(block, (first + i) // total) for i, block in enumerate(self.ids(step))]
        mine = visits[self.group.rank :: self.group.size]
        return [mine[i : i + size] for i in range(0, len(mine), size)]

    def tokens(self, steps: int) -> int:
        """Tokens in the blocks of so many steps."""
        return steps * self.config.batch_size * self.blocks.sequence_length
