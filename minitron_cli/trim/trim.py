"""Apply a plan to a checkpoint, one block of one tensor at a time."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from minitron_cli import progress
from minitron_cli.checkpoint.reader import Checkpoint, blocks
from minitron_cli.checkpoint.writer import TensorSpec, write_checkpoint
from minitron_cli.errors import CheckpointError
from minitron_cli.trim.plan import PrunePlan


def surviving(plan: PrunePlan, names: Iterable[str]) -> dict[str, str]:
    """Child's tensor name -> parent's, in the parent's order. Buffers and a stored copy of a tied head go."""
    stored = plan.parent.tensors()
    pairs = ((plan.child_name(name), name) for name in names if name in stored)
    return {child: name for child, name in pairs if child is not None}


def cut_in_memory(plan: PrunePlan, names: Iterable[str], read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The child's tensors; `read` gives the parent's, and only those that survive are read."""
    child = {}
    for new, name in surviving(plan, names).items():
        tensor = read(name)
        for dim, index in enumerate(plan.indices(name)):
            if index is not None:
                tensor = tensor.index_select(dim, index.to(tensor.device))
        child[new] = plan.correct(name, tensor)
    return child


def write_child(checkpoint: Checkpoint, plan: PrunePlan, directory: Path) -> None:
    """Write the child's weights into a fresh directory. Memory does not grow with the model.

    Shapes are computed from the table first, so the headers are written before a tensor is read.
    """
    check_ties(checkpoint, plan)
    origin = surviving(plan, checkpoint.tensors)
    shapes = plan.child.tensors()
    specs = {new: TensorSpec(shapes[new], checkpoint.tensors[old].torch_dtype) for new, old in origin.items()}
    with progress.track("trim", sum(spec.size_bytes for spec in specs.values()), "bytes") as step:

        def content(name: str) -> Iterator[Tensor]:
            for block in _cut_blocks(checkpoint, plan, origin[name]):
                yield block
                step(block.nbytes)

        write_checkpoint(directory, specs, content)


def _cut_blocks(checkpoint: Checkpoint, plan: PrunePlan, name: str) -> Iterator[Tensor]:
    rows, *others = plan.indices(name)
    for start, block in blocks(checkpoint, name):
        _check_finite(name, block)
        if rows is not None:
            inside = rows[(rows >= start) & (rows < start + len(block))] - start
            block = block.index_select(0, inside)
        for dim, index in enumerate(others, start=1):
            if index is not None:
                block = block.index_select(dim, index)
        yield plan.correct(name, block)


def _check_finite(name: str, block: Tensor) -> None:
    if block.is_floating_point() and not torch.isfinite(block.float() if block.element_size() == 1 else block).all():
        raise CheckpointError(f"tensor {name!r} holds NaN or infinity: the checkpoint is damaged; download it again")


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
