"""One tensor of the child, from one of the parent: the one place where the numbers of a child are made.

A dim is left whole, selected from by indices, or multiplied by a matrix [size, kept] whose columns are directions; an
index is a column with a single 1. Products are taken in fp32 and stored in the tensor's dtype.
"""

# R row of the parent's tensor, K kept row

from collections.abc import Iterable, Sequence

from torch import Tensor

from minitron_cli.model.residual_stream import HIDDEN, norm_of
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.scratch_buffers import ScratchBuffers, select

DimMap = Tensor | None  # indices, a matrix, or None where the dim is whole
Blocks = Iterable[tuple[int, Tensor]]  # (first row, rows)


def maps(plan: PrunePlan, name: str) -> tuple[DimMap, ...]:
    """What each dim of a tensor goes through. What was solved for has gone through it."""
    match, repair = plan.parent.family.match(name), plan.repair
    found: list[DimMap] = list(plan.indices(name))
    if repair.has_solved(name):
        return (None,) * len(found)
    if HIDDEN in match.layout.dims and not _is_norm(plan, name):
        dim, norm = match.layout.dims.index(HIDDEN), norm_of(plan.parent.family).get(match.template)
        directions = repair.reading(norm.format(**match.at)) if norm else repair.basis_DK
        found[dim] = found[dim] if directions is None else directions
    return tuple(found)


def mixes_rows(maps: Sequence[DimMap]) -> bool:
    """Whether every row of the child takes from all rows of the parent."""
    return _is_matrix(maps[0])


def kept_size(kept: DimMap, size: int) -> int:
    """What is left of a dim."""
    return size if kept is None else kept.shape[-1]


def cut_tensor(plan: PrunePlan, name: str, blocks: Blocks) -> Tensor:
    """The child's tensor from all blocks of the parent's; no more than one block and, in fp32, the result are held."""
    kept = maps(plan, name)
    if not mixes_rows(kept):
        ((_, whole),) = blocks
        return cut_block(plan, name, whole, kept, partners=plan.partner_rows(name))
    directions_RK, *others = kept
    assert directions_RK is not None
    total = dtype = None
    for start, block in blocks:
        inner = _multiplied(select(block, (None, *_positions(others))), others)
        part = directions_RK[start : start + len(block)].to(block.device).T @ inner.float()
        total, dtype = part if total is None else total.add_(part), block.dtype
    assert total is not None
    return plan.correct(name, total.to(dtype))


def cut_block(
    plan: PrunePlan,
    name: str,
    block: Tensor,
    maps: Sequence[DimMap],
    spare: ScratchBuffers | None = None,
    partners: Tensor | None = None,
) -> Tensor:
    """What the child has of some rows of a tensor.

    `maps` gives positions within the block, per dim, directions, or None where all of it survives; `partners` the rows
    of the block that survivors take from (`PrunePlan.partner_rows`). With `spare` memory the block, if it is in there
    as well, may be overwritten.
    """
    if _is_norm(plan, name):
        return _norm(plan, name, block, maps)
    if partners is None:
        kept = select(block, _positions(maps), spare)
    else:
        own, others = (select(block, (rows, *_positions(maps[1:]))) for rows in (maps[0], partners))
        kept = plan.add_residual(own, others)
    return plan.correct(name, _multiplied(kept, maps[1:]))


def _norm(plan: PrunePlan, name: str, weight_R: Tensor, maps: Sequence[DimMap]) -> Tensor:
    """Selected, or 1 where it is folded into its readers; then set right for a mean over fewer channels.

    In another basis, one that is not folded multiplies each direction by q^T diag(weight) q.
    """
    repair, offset = plan.repair, plan.parent.family.norm_offset
    if name in repair.gain_D:
        weight_R = weight_R.new_full((plan.child.sizes["hidden"],), 1 - offset)
    elif repair.basis_DK is not None and not repair.has_solved(name):
        gain_K = (weight_R.float() + offset) @ repair.basis_DK.to(weight_R.device).square()
        weight_R = (gain_K - offset).to(weight_R.dtype)
    else:
        weight_R = select(weight_R, maps)
    if name in repair.scales:
        weight_R = ((weight_R.float() + offset) * repair.scales[name] - offset).to(weight_R.dtype)
    return plan.correct(name, weight_R)


def _is_norm(plan: PrunePlan, name: str) -> bool:
    """Whether it is a norm whose readers are known."""
    return plan.parent.family.match(name).template in plan.parent.family.links


def _multiplied(block: Tensor, others: Sequence[DimMap]) -> Tensor:
    """A block whose dims after the first have been selected from, turned in those that are multiplied."""
    for dim, kept in enumerate(others, start=1):
        if kept is not None and _is_matrix(kept):
            assert dim == block.ndim - 1, "only the last dim reads directions"
            block = (block.float() @ kept.to(block.device)).to(block.dtype)
    return block


def _positions(maps: Sequence[DimMap]) -> list[Tensor | None]:
    return [None if _is_matrix(kept) else kept for kept in maps]


def _is_matrix(kept: DimMap) -> bool:
    return kept is not None and kept.is_floating_point()
