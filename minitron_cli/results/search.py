"""Candidates and their scores, as the search and the prune stage store them."""

from collections.abc import Mapping
from typing import ClassVar

from minitron_cli.figures import Direction
from minitron_cli.results.base import ModelSize, Result, Sizes
from minitron_cli.spec import Spec


class ObjectiveResult(Spec):
    """Quantity that candidates are compared by."""

    name: str = "loss"
    """`loss`, `kl`, or task and metric."""
    better: Direction = "lower"


class CandidateResult(Spec):
    """One candidate shape, in the order of the ranking."""

    target: str = ""
    """Target size it was a candidate for; empty if the search had a single one."""
    shape: Sizes
    """Sizes of the axes that can be pruned."""
    parameters: int
    """Parameters as the budget counts them."""
    error: float | None = None
    """Signed distance from the target as a fraction of it; None without a target."""
    costs: Mapping[str, float] = {}
    """Cost -> value in the constraint's unit, and `log_retained`, the logarithm of the retained importance. A cost is
    named by the kind of its constraint, or by kind and settings (`latency: latency of decode at 8 x 512 tokens`).
    Measured times are not part of a result: `measured` in the run record has them."""
    zero_shot: float
    """Value of the objective before any training."""
    rungs: tuple[float, ...] = ()
    """Value of the objective at each rung of retraining that the candidate reached."""
    model: ModelSize
    repairs: tuple[str, ...] = ()
    """Repairs applied before the candidate was scored zero-shot."""
    retrained_repairs: tuple[str, ...] = ()
    """Repairs applied before the candidate was retrained; empty if it was not."""

    @property
    def retrained(self) -> float | None:
        """Value of the objective at the last rung reached."""
        return self.rungs[-1] if self.rungs else None

    @property
    def at_equal_training(self) -> float:
        """Value after equal training: at the first rung if the candidate was retrained, else zero-shot."""
        return self.rungs[0] if self.rungs else self.zero_shot

    @property
    def key(self) -> str:
        """Name of the shape in the run record."""
        return shape_key(self.shape)


def shape_key(shape: Sizes) -> str:
    """Name of a shape in the run record: its axes in alphabetical order."""
    return ",".join(f"{axis}={size}" for axis, size in sorted(shape.items()))


class StabilityResult(Spec):
    """Agreement of two rankings of the same candidates."""

    before: str
    after: str
    candidates: int
    tau: float
    """Kendall's tau: 1 for the same order, -1 for the reverse."""


class WinnerResult(Spec):
    """Best candidate for one target."""

    sizes: Sizes
    parameters: int
    feasible: int
    """Number of shapes that met every constraint."""
    stability: tuple[StabilityResult, ...] = ()


class CalibrationUse(Spec):
    """Text that a repair was fitted on."""

    samples: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return self.samples * self.sequence_length


class SearchResult(Result):
    """Ranked candidates for every target."""

    schema_name: ClassVar[str] = "search/1"
    verb: ClassVar[str] = "minitron search"

    objective: ObjectiveResult
    rung_tokens: tuple[int, ...] = ()
    """Tokens that a candidate was retrained on by each rung."""
    candidates: tuple[CandidateResult, ...]
    winners: Mapping[str, WinnerResult]
    """Target -> winner, in the order of the targets."""
    parent: ModelSize
    teacher: ModelSize
    score_tokens: int
    """Held-out tokens of one evaluation of a candidate; 0 if the objective is a task."""
    sequence_length: int
    """Tokens per block."""
    repair: CalibrationUse | None = None
    """Text that candidates were repaired on; None if none of them was."""
    signals: str | None = None
    """What retraining read of the teacher's stored signals; None if the teacher ran, or nothing was retrained."""
