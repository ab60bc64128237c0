"""Tables of a sparse model: its zeros by kind of matrix, the errors that they make, and loss and KL."""

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from minitron_cli.evaluate.metrics import KL, LOSS
from minitron_cli.evaluate.statistics import interval
from minitron_cli.figures import Estimate, Figure
from minitron_cli.model.family import Family, pattern
from minitron_cli.report.shapes import serving_table
from minitron_cli.report.view import Cell, Section, Table
from minitron_cli.results.prune import HeldOut
from minitron_cli.results.sparsify import SparseMatrix, SparsifyResult
from minitron_cli.sparse.mask_file import MaskFile, MaskSpec

SHARE = Figure("zeros", style="share")
ERROR = Figure("relative error", better="lower")
MANY = 4  # patterns, which are no longer listed


TEXT = (
    "Weights of decoder blocks that are exactly zero, as `sparsity.masks` beside the checkpoint records. An error is "
    "the median change of a matrix's outputs on held-out tokens. Serving programs run the model as fast as a dense one."
)


def section(found: SparsifyResult) -> Section:
    """Section on the zeros of a model."""
    return Section("sparsity", "Sparsity", TEXT, tuple(tables(found)))


def tables(found: SparsifyResult) -> Iterator[Table]:
    """Everything that is shown of a sparse model."""
    yield matrices_table(found)
    if found.amounts != "uniform":
        yield layers_table(found)
    yield from effect_tables(found)
    if remarks := [finding for finding in found.serving if finding.level != "ok"]:
        yield serving_table(remarks)


def matrices_table(found: SparsifyResult) -> Table:
    """Zeros and median errors of the matrices of each template."""
    columns = (Figure("matrices"), Figure("number", style="count"), SHARE, ERROR, Figure("repaired", style="count"))
    after = (replace(ERROR, title="after repair"),) if found.repair != "none" else ()
    rows = tuple(_row(template, some, bool(after)) for template, some in _by_template(found).items())
    how = "by layer," if found.amounts == "list" else found.pattern
    title = f"Sparse: {how} by {found.metric}, {SHARE.cell(found.sparsity)} of the matrices' weights are zero"
    return Table(title, (*columns[:4], *after, *columns[4:] * bool(after)), rows)


def layers_table(found: SparsifyResult) -> Table:
    """Zeros of each layer, and the outliers by which they were chosen."""
    by_outliers = found.amounts == "owl"
    columns = (Figure("layer", style="count"), *[Figure("outliers", style="share")] * by_outliers, SHARE)
    outliers = [(share,) for share in found.layer_outliers] if by_outliers else [()] * len(found.layer_sparsity)
    rows = [(i, *outliers[i], share) for i, share in enumerate(found.layer_sparsity)]
    how = "by their outliers (OWL)" if by_outliers else "as listed"
    return Table(f"Zeros of each layer, {how}", columns, tuple(rows))


def _by_template(found: SparsifyResult) -> dict[str, list[SparseMatrix]]:
    some = defaultdict[str, list[SparseMatrix]](list)
    patterns = {template: pattern(template) for template in found.scope}
    for name, matrix in found.matrices.items():
        some[next(template for template, names in patterns.items() if names.fullmatch(name))].append(matrix)
    return {template: some[template] for template in found.scope if template in some}


def _row(template: str, some: Sequence[SparseMatrix], is_repaired: bool) -> tuple[Cell, ...]:
    share = sum(matrix.zeros for matrix in some) / sum(matrix.weights for matrix in some)
    before, after = (_median([getattr(matrix, name) for matrix in some]) for name in ("error_before", "error_after"))
    repaired = (after, sum(matrix.is_repaired for matrix in some)) if is_repaired else ()
    return (_short(template), len(some), share, before, *repaired)


def _short(template: str) -> str:
    return template.partition("{layer}.")[2].removesuffix(".weight")


def _median(errors: Sequence[float | None]) -> float | None:
    known = [error for error in errors if error is not None]
    return statistics.median(known) if known else None


def masks(file: MaskFile, family: Family) -> dict[str, Any]:
    """What a mask file says of a model's tensors, all together and by template, from its header."""
    kinds = defaultdict[str, list[MaskSpec]](list)
    for name, spec in file.specs.items():
        kinds[family.match(name).template].append(spec)
    return _masked(file.specs.values()) | {"by_kind": {template: _masked(some) for template, some in kinds.items()}}


def _masked(specs: Collection[MaskSpec]) -> dict[str, Any]:
    zeros, weights = sum(spec.zeros for spec in specs), sum(spec.weights for spec in specs)
    patterns = sorted({str(spec.pattern) for spec in specs})
    return {"tensors": len(specs), "patterns": patterns, "zeros": zeros, "weights": weights}


def masks_table(file: MaskFile, family: Family) -> Table:
    """Masked tensors of each template: their number, patterns and share of zeros."""
    columns = (Figure("tensors"), Figure("number", style="count"), Figure("pattern"), SHARE)
    kinds = masks(file, family)["by_kind"]
    rows = [
        (_short(template), found["tensors"], _some(found["patterns"]), found["zeros"] / found["weights"])
        for template, found in kinds.items()
    ]
    return Table("Masked tensors, by sparsity.masks", columns, tuple(rows))


def _some(patterns: Sequence[str]) -> str:
    return ", ".join(patterns) if len(patterns) < MANY else f"{len(patterns)} patterns"


def effect_tables(found: SparsifyResult) -> Iterator[Table]:
    """Loss and KL on held-out text, with 95 % intervals, if they were measured."""
    if effect := found.effect:
        names = ("sparse", "repaired") if found.repair != "none" else ("sparse",)
        models = (effect.before, effect.after)[-len(names) :]
        columns = tuple(map(Figure, ("held out", "parent", *names)))
        losses = [_interval(LOSS, model.loss, model.loss_stderr, model) for model in models]
        divergences = [_interval(KL, model.kl, model.kl_stderr, model) for model in models]
        parent = Estimate(effect.parent_loss, figure=replace(LOSS, style="fixed"))
        rows: tuple[tuple[Cell, ...], ...] = ((LOSS.heading, parent, *losses), (KL.heading, None, *divergences))
        yield Table(f"Effect on {effect.tokens:,} held-out tokens", columns, rows)


def _interval(figure: Figure, value: float, stderr: float | None, model: HeldOut) -> Estimate:
    """Value with its interval; results of earlier versions have no degrees of freedom, and the normal interval."""
    low, high = interval(value, stderr, model.degrees_of_freedom or math.inf) or (None, None)
    return Estimate(value, low, high, figure=replace(figure, style="fixed"))
