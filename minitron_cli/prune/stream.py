"""Write a child's checkpoint from its parent's, one block of one tensor at a time. Knows bytes and rows, no axes."""

import itertools
import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.checkpoint.reader import Checkpoint, blocks
from minitron_cli.checkpoint.writer import MAX_SHARD_BYTES, TensorSpec, blank_like, size_on_disk, specs_around
from minitron_cli.prune.around import changed_around
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.slicing import ScratchBuffers, check_finite, is_finite, prune_rows, prune_tensor
from minitron_cli.prune.tensor_map import TensorMap

BLOCK_BYTES = 2 << 20  # smaller ones leave more of the time to Python, larger ones are twice in memory for each worker
MAX_WORKERS = 4

T = TypeVar("T")


def prune_in_memory(plan: PrunePlan, names: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The child's tensors by their names; `read` returns the parent's, and only those that survive are read."""
    child = {}
    for name, source in plan.sources(names).items():
        tensor_map = TensorMap.of(plan, source)
        whole = (tensor_map.fitted.read if tensor_map.fitted else read)(source)
        child[name] = prune_tensor(tensor_map, [(0, whole)])
    return child


def write_child(
    checkpoint: Checkpoint, plan: PrunePlan, directory: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the child's weights into an empty directory. Memory does not grow with the model.

    Names and shapes follow from the plan, so the headers are written first and every byte has its place before a tensor
    is read. Then a few threads read, prune and write pieces of tensors in any order.
    """
    sources = plan.sources(checkpoint.tensors)
    specs = _specs(checkpoint, plan, sources)
    pieces = (piece for source in sources.values() for piece in _pieces(checkpoint, TensorMap.of(plan, source)))
    total = sum(spec.size_bytes for spec in specs.values())
    with (
        progress.track("prune", total, "bytes") as step,
        blank_like(
            checkpoint, directory, specs, changed=changed_around(checkpoint, plan), max_shard_bytes=max_shard_bytes
        ) as child,
    ):
        scratch = ScratchBuffers()

        def write(piece: Piece) -> int:
            pruned = _pruned(checkpoint, piece, scratch)
            child.write_at(piece.tensor_map.name, piece.offset, pruned)
            return pruned.nbytes

        in_threads(write, pieces, step)


def forecast(checkpoint: Checkpoint, plan: PrunePlan) -> dict[str, Any]:
    """Sizes of the child that a plan would write, from headers alone."""
    sources = plan.sources(checkpoint.tensors)
    return {
        "sizes": dict(plan.child.sizes),
        "parameters": plan.child.parameters(),
        "weights_bytes": size_on_disk(_specs(checkpoint, plan, sources) | specs_around(checkpoint)),
        "tensors": len(sources),
        "tensors_dropped": len(checkpoint.tensors) - len(sources),
    }


def _specs(checkpoint: Checkpoint, plan: PrunePlan, sources: Mapping[str, str]) -> dict[str, TensorSpec]:
    shapes = plan.child.tensors()
    return {name: TensorSpec(shapes[name], checkpoint.tensors[old].torch_dtype) for name, old in sources.items()}


class Piece(NamedTuple):
    """Neighboring rows of one tensor, which are read at once, and where the child's part of them goes."""

    tensor_map: TensorMap
    """Map of these rows: positions count from `start`."""
    start: int
    stop: int
    offset: int = 0
    """Bytes from the beginning of the child's tensor."""


def _pruned(parent: Checkpoint, piece: Piece, scratch: ScratchBuffers) -> Tensor:
    """The child's part of a piece. CheckpointError if the parent's weights are not finite."""
    tensor_map, name = piece.tensor_map, piece.tensor_map.source
    checkpoint = tensor_map.fitted or parent
    if tensor_map.left_DK is not None:
        return prune_tensor(tensor_map, _checked(checkpoint, name))
    block = checkpoint.read_rows(name, piece.start, piece.stop, scratch.take)
    pruned = prune_rows(tensor_map, block, scratch)
    if not is_finite(pruned):
        # Either the parent is damaged or a sum overflowed. The block has been overwritten, so it is read again.
        check_finite(name, checkpoint.read_rows(name, piece.start, piece.stop))
    return pruned


def _checked(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, Tensor]]:
    for start, block in blocks(checkpoint, name, BLOCK_BYTES):
        check_finite(name, block)
        yield start, block


def _pieces(parent: Checkpoint, tensor_map: TensorMap) -> Iterator[Piece]:
    """Pieces of a tensor, each of at most a block, or of one row if that is more.

    Pruned rows before and after the kept ones of a piece are not read. A piece whose rows have others merged into them
    reaches to these: to the end of their group of heads. A tensor whose rows are mixed is one piece.
    """
    info = (tensor_map.fitted or parent).tensors[tensor_map.source]
    if tensor_map.left_DK is not None:
        yield Piece(tensor_map, 0, info.rows)
        return
    row_bytes = info.torch_dtype.itemsize * math.prod(tensor_map.shape[1:])
    step = max(1, BLOCK_BYTES * info.rows // max(1, info.size_bytes))
    rows = tensor_map.indices[0] if info.shape else None
    merged = None if tensor_map.merged is None else tensor_map.merged.other_K
    for span in _spans(rows, merged, info.rows, step):
        yield Piece(tensor_map.of_rows(span.rows, span.merged), span.start, span.stop, span.before * row_bytes)


class Span(NamedTuple):
    """Neighboring rows, some of which survive."""

    start: int
    stop: int
    before: int
    """Number of survivors before these rows."""
    rows: Tensor | None
    """Survivors among these rows, counted from `start`; None if all survive."""
    merged: Tensor | None = None
    """Rows that are merged into the survivors, counted from `start`."""


def _spans(rows: Tensor | None, merged: Tensor | None, count: int, step: int) -> Iterator[Span]:
    """Spans of at most `step` of `count` rows, each from the first row that is needed to the last."""
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
        if merged is None:
            yield Span(start, end + 1, first, rows[first:last] - start)
            continue
        others = merged[first:last]
        start, end = min(start, int(others.min())), max(end, int(others.max()))
        yield Span(start, end + 1, first, rows[first:last] - start, others - start)


def in_threads(work: Callable[[T], int], pieces: Generator[T, None, None], step: progress.Step) -> None:
    """Do the work on all pieces with a few threads, and step by what each returns. An error or a stop ends it."""
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
