"""Loss of the student, and KL to the teacher, on held-out text."""

import math
from collections.abc import Callable

import torch

from minitron_cli.data.batches import batch, evenly_spaced, rank_slice
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.curves import HELD_OUT
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.targets import NOTHING, targets
from minitron_cli.signals.shards import StoredSignals, Visit


def evaluate(
    models: ModelPair,
    blocks: Blocks,
    count: int | None,
    batch_size: int,
    group: ProcessGroup,
    stop_if_asked: Callable[[], None],
    signals: StoredSignals | None = None,
) -> dict[str, float]:
    """Columns of `HELD_OUT`: means over the scored tokens of `count` blocks (None: all).

    `stop_if_asked` is called before each batch. `signals` of the blocks stand for the teacher.
    """
    models.student.eval()
    try:
        return _evaluate(models, blocks, count, batch_size, group, stop_if_asked, signals)
    finally:
        models.release()


def _evaluate(
    models: ModelPair,
    blocks: Blocks,
    count: int | None,
    batch_size: int,
    group: ProcessGroup,
    stop_if_asked: Callable[[], None],
    signals: StoredSignals | None,
) -> dict[str, float]:
    ids = evenly_spaced(len(blocks), count)
    mine = rank_slice(ids, group.rank, group.size)
    sums = torch.zeros(len(HELD_OUT) + 1, dtype=torch.float64, device=group.device)
    for first in range(0, math.ceil(len(ids) / group.size), batch_size):  # equally often in all, as FSDP requires
        stop_if_asked()
        own = mine[first : first + batch_size]
        if own or models.is_sharded:
            held_out = batch(blocks, own or ids[:1])
            target = targets(held_out) if own else NOTHING
            rows = None
            if signals is not None:
                visits = [Visit(i, 0) for i in held_out.sample_ids]
                rows = signals.rows(visits) if own else signals.rows(visits).part(slice(0))
            sums += torch.cat([models.evaluate(held_out, target, rows), sums.new_tensor([len(target.labels_N)])])
    group.sum_([sums])
    *values, tokens = sums.tolist()
    assert tokens, "every block has a token to predict"
    names = list(HELD_OUT) if models.teacher is not None or signals is not None else ["loss"]
    return {name: value / tokens for name, value in zip(names, values, strict=False)}
