"""Result of distillation, teacher correction and the training of a teacher from scratch, and its curves."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

from minitron_cli.results.base import ModelSize, Result
from minitron_cli.spec import Spec

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"
MAX_RISE = 0.1
"""Largest rise from the lowest evaluation to the exported weights, as a share of the lowest, of a sound training."""


class ValidationPoint(Spec):
    """One evaluation of the student on held-out text."""

    step: int
    tokens: int
    """Training tokens so far."""
    loss: float
    """Nats per token."""
    kl: float | None = None
    """KL from the teacher to the student in nats per token; None without a teacher."""

    @classmethod
    def of(cls, row: Mapping[str, float]) -> Self:
        """Point from a row of the validation curve, which may have further columns."""
        return cls.model_validate({name: value for name, value in row.items() if name in cls.model_fields})


Measure = Literal["kl", "loss"]
Equal = Literal["tokens", "total_tokens", "flops"]
"""What a control that is longer or shorter than the student has in common with it."""


class Worsening(Spec):
    """A training that made its own objective worse on held-out text."""

    measure: Measure
    """The objective: KL from the teacher, or the loss of a training without one; in nats per token."""
    before: float
    """Value of the initial weights."""
    lowest: float
    """Lowest value of all evaluations."""
    after: float
    """Value of the exported weights."""

    @property
    def is_above_start(self) -> bool:
        """Whether the exported weights are worse than the initial ones, rather than than a later evaluation."""
        return self.after > self.before

    @classmethod
    def of(
        cls, points: Sequence[ValidationPoint], after: ValidationPoint, measure: Literal["kl", "loss"]
    ) -> Self | None:
        """Worsening from the first evaluation, or by more than MAX_RISE from the lowest; None if there is none."""
        values = [value for point in points if (value := getattr(point, measure)) is not None]
        end = getattr(after, measure)
        if end is None or not values or (end <= values[0] and end <= min(values) + MAX_RISE * abs(min(values))):
            return None
        return cls(measure=measure, before=values[0], lowest=min(values), after=end)

    def __str__(self) -> str:
        name = {"kl": "held-out KL to the teacher", "loss": "held-out loss"}[self.measure]
        start = f"{self.before:.4g} before" if self.is_above_start else f"{self.lowest:.4g} on the way"
        return f"{name} ended at {self.after:.4g} nats per token, from {start}"


class MaskResult(Spec):
    """Zeros of a sparse model that its training has kept."""

    kind: Literal["frozen", "refreshed"]
    """Whether the zeros are where they were, or were chosen again during the training."""
    patterns: tuple[str, ...]
    """Patterns of the masked tensors, such as `2:4`."""
    tensors: int
    """Masked tensors."""
    sparsity: float
    """Share of zeros among their weights."""

    def __str__(self) -> str:
        patterns = ", ".join(self.patterns) if len(self.patterns) < 4 else f"{len(self.patterns)} patterns,"
        return f"{patterns} mask {self.kind} ({self.sparsity:.1%} zeros in {self.tensors:,} tensors)"


class TrainingResult(Result):
    """One training run, from first to last step."""

    schema_name: ClassVar[str] = "training/1"
    verb: ClassVar[str] = "minitron distill"

    student: ModelSize
    teacher: ModelSize | None = None
    """The teacher that was loaded, or whose signals were read; None for training on the text alone without one."""
    uses_teacher: bool
    """Whether a loss needs the teacher's predictions; otherwise it only takes part in evaluations."""
    steps: int
    tokens: int
    """Training tokens."""
    weights_of_step: int
    """Step whose weights were exported: the last, or the best on held-out text."""
    before: ValidationPoint | None = None
    """Held-out figures of the initial weights."""
    after: ValidationPoint | None = None
    """Held-out figures of the exported weights."""
    sequence_length: int
    """Tokens per training block."""
    validations: int
    """Number of evaluations."""
    validation_tokens: int
    """Held-out tokens of each evaluation."""
    mask: MaskResult | None = None
    """None if the model is dense."""
    signals: str | None = None
    """What was read of the teacher's stored signals, such as `50 draws`; None if the teacher ran."""
    worse: Worsening | None = None
    """None if the training made its objective better on held-out text, or nothing was held out."""


class CorrectionResult(TrainingResult):
    """Training of the teacher on the text that it will teach on."""

    schema_name: ClassVar[str] = "correction/1"
    verb: ClassVar[str] = "minitron correct"


class TeacherResult(TrainingResult):
    """Training of a small teacher from random weights."""

    schema_name: ClassVar[str] = "teacher/1"
    verb: ClassVar[str] = "python scripts/bench_teacher.py"


class TrainingStep(Spec, extra="allow"):
    """One optimizer step; further columns are the losses by kind."""

    step: int
    tokens: int
    loss: float
    """Weighted sum of all losses."""
    learning_rate: float


def read_curves(directory: Path) -> tuple[list[TrainingStep], list[ValidationPoint]]:
    """Training steps and evaluations stored beside a training result."""
    steps, points = (_lines(directory / name) for name in (METRICS, VALIDATION))
    return [TrainingStep.model_validate(row) for row in steps], [ValidationPoint.of(row) for row in points]


def _lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
