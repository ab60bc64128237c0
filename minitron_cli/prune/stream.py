"""Apply a plan to a checkpoint, one block of one tensor at a time."""

import itertools
import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.checkpoint.reader import Checkpoint, blocks
from minitron_cli.checkpoint.writer import MAX_SHARD_BYTES, TensorSpec, blank_checkpoint, size_on_disk
from minitron_cli.errors import CheckpointError
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.scratch_buffers import ScratchBuffers, check_finite, is_finite
from minitron_cli.prune.slicing import DimMap, cut_block, cut_tensor, kept_size, maps, mixes_rows

BLOCK_BYTES = 2 << 20  # smaller ones leave more of the time to Python, larger ones are twice in memory for each worker
MAX_WORKERS = 4


def surviving(plan: PrunePlan, names: Iterable[str]) -> dict[str, str]:
    """Child's tensor name -> parent's, in the parent's order. Buffers and a stored copy of a tied head go."""
    stored = plan.parent.tensors()
    pairs = ((plan.child_name(name), name) for name in names if name in stored)
    return {child: name for child, name in pairs if child is not None}


def prune_in_memory(plan: PrunePlan, names: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The child's tensors; `read` gives the parent's, and only those that survive are read."""
    solved = plan.repair.solved
    reads = {name: solved.read if solved and name in solved.tensors else read for name in names}
    return {new: cut_tensor(plan, name, [(0, reads[name](name))]) for new, name in surviving(plan, names).items()}


def write_child(
    checkpoint: Checkpoint, plan: PrunePlan, directory: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the child's weights into a fresh directory. Memory does not grow with the model.

    Shapes are computed from the table first, so every byte has its place before a tensor is read, and a few threads
    read, cut and write pieces in any order.
    """
    check_ties(checkpoint, plan)
    origin = surviving(plan, checkpoint.tensors)
    specs = _specs(checkpoint, plan, origin)
    pieces = (piece for new, old in origin.items() for piece in _pieces(checkpoint, plan, old, new))
    total = sum(spec.size_bytes for spec in specs.values())
    with (
        progress.track("trim", total, "bytes") as step,
        blank_checkpoint(directory, specs, max_shard_bytes) as child,
    ):
        spare = ScratchBuffers()

        def write(piece: Piece) -> int:
            cut = _cut(_source(checkpoint, plan, piece.name), plan, piece, spare)
            child.write_at(piece.child, piece.offset, cut)
            return cut.nbytes

        _in_threads(write, pieces, step)


def forecast(checkpoint: Checkpoint, plan: PrunePlan) -> dict[str, Any]:
    """What a cut would write, from headers alone."""
    origin = surviving(plan, checkpoint.tensors)
    return {
        "sizes": dict(plan.child.sizes),
        "parameters": plan.child.parameters(),
        "weights_bytes": size_on_disk(_specs(checkpoint, plan, origin)),
        "tensors": len(origin),
        "tensors_dropped": len(checkpoint.tensors) - len(origin),
    }


def _specs(checkpoint: Checkpoint, plan: PrunePlan, origin: Mapping[str, str]) -> dict[str, TensorSpec]:
    shapes = plan.child.tensors()
    return {new: TensorSpec(shapes[new], checkpoint.tensors[old].torch_dtype) for new, old in origin.items()}


def _source(checkpoint: Checkpoint, plan: PrunePlan, name: str) -> Checkpoint:
    """Where a tensor's numbers come from: the parent, or what was solved for."""
    solved = plan.repair.solved
    return solved if solved and name in solved.tensors else checkpoint


def _cut(source: Checkpoint, plan: PrunePlan, piece: "Piece", spare: ScratchBuffers) -> Tensor:
    if mixes_rows(piece.maps):
        return cut_tensor(plan, piece.name, _checked(source, piece.name))
    block = source.read_rows(piece.name, piece.start, piece.stop, spare.take)
    cut = cut_block(plan, piece.name, block, piece.maps, spare, piece.partners)
    if not is_finite(cut):  # is it the parent? The block has been overwritten
        check_finite(piece.name, source.read_rows(piece.name, piece.start, piece.stop))
    return cut


def _checked(source: Checkpoint, name: str) -> Iterator[tuple[int, Tensor]]:
    for start, block in blocks(source, name, BLOCK_BYTES):
        check_finite(name, block)
        yield start, block


class Piece(NamedTuple):
    """Neighbouring rows of one tensor, which are read at once, and where their survivors go."""

    name: str
    child: str
    start: int
    stop: int
    maps: tuple[DimMap, ...]
    """As `cut_block` takes them: positions of rows count from `start`."""
    offset: int
    """Bytes from the beginning of the child's tensor."""
    partners: Tensor | None = None
    """The rows that survivors take from, counted in the same way."""


class Span(NamedTuple):
    """Neighbouring rows, some of which survive."""

    start: int
    stop: int
    before: int
    """How many survivors come earlier."""
    rows: Tensor | None
    """Those among these rows, counted from `start`; None if all survive."""
    partners: Tensor | None = None


def _pieces(checkpoint: Checkpoint, plan: PrunePlan, name: str, child: str) -> Iterator[Piece]:
    """A tensor in pieces of at most a block, or a row if that is more. Rows before, between and after are not read.

    A piece whose rows take from partners reaches to these: to the end of their group of heads. There is one for all of
    the tensor where every row takes from all.
    """
    info = _source(checkpoint, plan, name).tensors[name]
    rows, *others = maps(plan, name)
    if mixes_rows((rows, *others)):
        yield Piece(name, child, 0, info.shape[0], (rows, *others), 0)
        return
    size_bytes = max(1, info.size_bytes)
    kept_bytes = info.torch_dtype.itemsize * math.prod(map(kept_size, others, info.shape[1:]))
    step = max(1, BLOCK_BYTES * info.shape[0] // size_bytes)
    for span in _spans(rows, plan.partner_rows(name), info.shape[0], step):
        places = (span.rows, *others)
        yield Piece(name, child, span.start, span.stop, places, span.before * kept_bytes, span.partners)


def _spans(rows: Tensor | None, partners: Tensor | None, count: int, step: int) -> Iterator[Span]:
    """Of each `step` rows, from the first survivor or partner to the last: nothing else need be read."""
    edges = range(0, count + step, step)
    if rows is None:
        yield from (Span(start, min(start + step, count), start, None) for start in edges[:-1])
        return
    places = rows.tolist()
    before = (bisect_left(places, edge) for edge in edges)
    for first, last in itertools.pairwise(before):
        if first == last:
            continue
        start, end = places[first], places[last - 1]
        if partners is None:
            yield Span(start, end + 1, first, rows[first:last] - start)
            continue
        others = partners[first:last]
        start, end = min(start, int(others.min())), max(end, int(others.max()))
        yield Span(start, end + 1, first, rows[first:last] - start, others - start)


def _in_threads(work: Callable[[Piece], int], pieces: Generator[Piece, None, None], step: progress.Step) -> None:
    """Do the work with a few threads, and step by what each piece returns. The first error, or a stop, ends it."""
    threads = torch.get_num_threads()
    workers = min(threads, MAX_WORKERS)
    one_at_a_time = threading.Lock()

    def work_through() -> None:
        try:
            while True:
                with one_at_a_time:
                    piece = next(pieces, None)
                if piece is None:
                    return
                size_bytes = work(piece)
                with one_at_a_time:
                    step(size_bytes)
        finally:
            leave_the_rest()

    def leave_the_rest() -> None:
        with one_at_a_time:
            pieces.close()

    torch.set_num_threads(1)  # each worker computes alone
    try:
        with ThreadPoolExecutor(workers) as pool:
            try:
                for worker in [pool.submit(work_through) for _ in range(workers)]:
                    worker.result()
            finally:
                leave_the_rest()
    finally:
        torch.set_num_threads(threads)


def check_ties(checkpoint: Checkpoint, plan: PrunePlan) -> None:
    """A tied checkpoint that stores its head as well must store the same numbers. CheckpointError if not."""
    stored = plan.parent.tensors()
    for copy, original in plan.parent.family.tied.items():
        if copy in stored or copy not in checkpoint.tensors:
            continue
        pairs = zip(blocks(checkpoint, copy), blocks(checkpoint, original), strict=True)
        if not all(torch.equal(a, b) for (_, a), (_, b) in pairs):
            raise CheckpointError(
                f"{copy} differs from {original} though config.json ties them: set tie_word_embeddings to false"
            )
