"""Result of the sparsify stage; the masks are in `sparsity.masks`."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from minitron_cli.results.base import ModelSize, Result
from minitron_cli.results.prune import HeldOut, ServingFinding
from minitron_cli.results.search import CalibrationUse
from minitron_cli.spec import Spec


class SparseMatrix(Spec):
    """One matrix and its zeros."""

    zeros: int
    """Weights that are pruned."""
    weights: int
    metric: str
    """Score by which weights were kept: another than the run's where too few tokens came to an expert."""
    tokens: int = 0
    """Calibration tokens that it read."""
    error_before: float | None = None
    """Norm of the change of its outputs on held-out tokens, relative to their norm, before the repair; None if nothing
    was held out."""
    error_after: float | None = None
    """The same of the matrix that was written."""
    is_repaired: bool = False


class SparsityEffect(Spec):
    """The sparse model on held-out text that nothing was fitted on."""

    parent_loss: float
    """Nats per token."""
    before: HeldOut
    """The model with the metric's own weights, before the repair."""
    after: HeldOut
    """The model that was written."""
    kl_difference_stderr: float | None = None
    """Standard error of the KL after less the KL before; None without a repair."""
    tokens: int
    """Held-out tokens that each figure is a mean of."""
    read: int
    """Held-out tokens that each model read."""


class SparsifyResult(Result):
    """The sparse model and how it was made."""

    schema_name: ClassVar[str] = "sparsify/1"
    verb: ClassVar[str] = "minitron sparsify"

    model: ModelSize
    """The parent, whose shape the sparse model has."""
    pattern: str
    metric: str
    scope: tuple[str, ...]
    """Templates of the matrices that have zeros."""
    sparsity: float
    """Share of zeros among the weights of these matrices."""
    layer_sparsity: tuple[float, ...]
    """The same for each layer."""
    amounts: Literal["uniform", "list", "owl"] = "uniform"
    """How the layers' amounts were chosen."""
    layer_patterns: tuple[str, ...] = ()
    """Pattern of each layer."""
    layer_outliers: tuple[float, ...] = ()
    """Share of outliers of each layer of the parent; empty unless amounts were chosen by them."""
    outliers_are_given: bool = False
    """Whether the first of several rounds has measured them, of its parent."""
    matrices: Mapping[str, SparseMatrix]
    """Stored name of each matrix -> what became of it."""
    repair: str = "none"
    calibration: CalibrationUse | None = None
    """Text that inputs were collected on; None if none was needed."""
    checks: tuple[str, ...] = ()
    """Export checks that the checkpoint passed."""
    serving: tuple[ServingFinding, ...] = ()
    effect: SparsityEffect | None = None
    """None if no text was needed, or parent and child did not fit into memory together."""

    @property
    def zeros(self) -> int:
        """Weights that are pruned."""
        return sum(matrix.zeros for matrix in self.matrices.values())

    @property
    def is_repaired(self) -> bool:
        """Whether any matrix was repaired."""
        return any(matrix.is_repaired for matrix in self.matrices.values())
