"""Parts of the sparsify stage's result."""

from collections.abc import Collection, Iterator, Sequence

from minitron_cli.model import serving
from minitron_cli.model.shape import Shape
from minitron_cli.results.prune import ServingFinding
from minitron_cli.results.sparsify import SparseMatrix
from minitron_cli.sparse.mask_file import MaskSpec
from minitron_cli.sparse.metrics.base import SparseMetric
from minitron_cli.sparse.metrics.magnitude import Magnitude
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.sparse.store import Figures


def sparse_matrix(spec: MaskSpec, metric: SparseMetric, figures: Figures | None) -> SparseMatrix:
    """One matrix and its zeros; `figures` is None where no text was read."""
    figures = figures or Figures(True, 0, None, None, False)
    return SparseMatrix(
        zeros=spec.zeros,
        weights=spec.weights,
        metric=metric.kind if figures.is_by_metric else Magnitude().kind,
        tokens=figures.tokens,
        error_before=figures.error_before,
        error_after=figures.error_after,
        is_repaired=figures.is_repaired,
    )


def share(matrices: Collection[SparseMatrix]) -> float:
    """Share of zeros among the weights of some matrices."""
    return sum(matrix.zeros for matrix in matrices) / sum(matrix.weights for matrix in matrices)


def serving_findings(shape: Shape, patterns: Sequence[Pattern]) -> Iterator[ServingFinding]:
    """What servers make of the zeros; nothing where no layer has any.

    Of layers that differ, the first counts that torch has no product for, and dense ones do not.
    """
    rows = [serving.zeros(shape, found) for found in dict.fromkeys(str(found) for found in patterns if found.zeros)]
    worst = next((some for some in rows if some[-1].level != "ok"), rows[0] if rows else [])
    for found in worst:
        yield ServingFinding(reader=found.reader, level=found.level, reason=found.reason, nearest=dict(found.nearest))
