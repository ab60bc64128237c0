"""Light retraining of a search's candidates: its settings for the training loop, its text and its rungs.

It stands above the rooms of search and of distillation, which do not know each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from minitron_cli.artifacts.build import Context
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.teacher_signals import Student, TeacherSignals
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.search import halving
from minitron_cli.search.config import Retrain


class RetrainingConfig(DistillConfig):
    """Retraining of a candidate, as a configuration of the training loop."""

    section: ClassVar[str] = Retrain.section

    @classmethod
    def of(cls, retrain: Retrain, seed: int) -> Self:
        """Settings of the training loop, without evaluations on the way."""
        return cls(
            tokens=retrain.tokens,
            batch_size=retrain.batch_size,
            micro_batch_size=retrain.micro_batch_size,
            learning_rate=retrain.learning_rate,
            min_learning_rate=retrain.learning_rate / 10,
            warmup_steps=retrain.warmup_steps,
            eval_every=10**9,
            save_every=retrain.save_every,
            seed=seed,
        )


@dataclass(frozen=True)
class Retraining:
    """Light retraining of the best candidates, and the steps after which they are compared."""

    retrain: Retrain
    config: RetrainingConfig
    blocks: Blocks
    steps: Sequence[int]
    signals: TeacherSignals | None = None
    """What stands in for the teacher."""

    @classmethod
    def of(cls, retrain: Retrain, seed: int, blocks: Blocks) -> Self:
        """Retraining on these blocks, in an order that the seed chooses."""
        config = RetrainingConfig.of(retrain, seed)
        total = retrain.total_steps(blocks.sequence_length)
        return cls(retrain, config, blocks, halving.rung_steps(total, retrain.rungs, retrain.keep))

    def with_signals(self, context: Context, teacher: SourceModel, vocab: int) -> Self:
        """The same on stored signals of the teacher, if there are any that fit."""
        student = Student(self.config, teacher, vocab, self.blocks, None)
        return replace(self, signals=student.signals(context.workspace))

    @property
    def rung_tokens(self) -> tuple[int, ...]:
        """Tokens that a candidate was trained on by each rung."""
        per_step = self.retrain.batch_size * self.blocks.sequence_length
        return tuple(steps * per_step for steps in self.steps)
