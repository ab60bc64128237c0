"""Result of distillation, teacher correction and the demo's teacher, and its curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from minitron_cli.results.base import ModelSize, Result
from minitron_cli.spec import Spec

METRICS, VALIDATION = "metrics.jsonl", "validation.jsonl"


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


class TrainingResult(Result):
    """One training run, from first to last step."""

    schema_name: ClassVar[str] = "training/1"
    verb: ClassVar[str] = "minitron distill"

    student: ModelSize
    teacher: ModelSize | None = None
    """The teacher that was loaded; None for training on the text alone without one."""
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


class CorrectionResult(TrainingResult):
    """Training of the teacher on the text that it will teach on."""

    schema_name: ClassVar[str] = "correction/1"
    verb: ClassVar[str] = "minitron correct"


class TeacherResult(TrainingResult):
    """Training of the demo's teacher from random weights."""

    schema_name: ClassVar[str] = "teacher/1"
    verb: ClassVar[str] = "minitron demo"


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
