"""State of a training run between two steps: how far it is, its curves, and its checkpoints."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from minitron_cli import canonical_json, progress, stopping
from minitron_cli.data.pack import Blocks
from minitron_cli.distill import checkpoints
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.curves import CurveRow
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.hidden_state_losses import StatePair
from minitron_cli.distill.masking import Masking
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.teacher_signals import TeacherSignals
from minitron_cli.errors import RunFailed
from minitron_cli.figures import Figure


class RunState:
    """Steps taken, curves, and the weights and moments of `optimizer`, which checkpoints in `scratch` keep."""

    def __init__(
        self,
        config: DistillConfig,
        scratch: Path | None,
        identity: str,
        optimizer: Optimizer,
        group: ProcessGroup,
        total_steps: int,
        *,
        is_sharded: bool,
        masking: Masking | None,
    ) -> None:
        """`identity`: digest of the run (see `identity`); a checkpoint of another run is refused."""
        self.config, self.scratch, self.identity = config, scratch, identity
        self.optimizer, self.group, self.total_steps = optimizer, group, total_steps
        self._is_sharded, self._masking = is_sharded, masking
        self.step = self.saved_step = 0
        self.metrics: list[CurveRow] = []
        self.validation: list[CurveRow] = []

    def restore(self, resume: bool) -> None:
        """Continue the newest checkpoint, if there is one and `resume` is set; otherwise remove all."""
        if self.scratch is None:
            return
        step = 0
        if self.group.rank == 0:
            if not resume:
                checkpoints.clear(self.scratch)
            step = checkpoints.newest(self.scratch, self.identity) or 0
            checkpoints.keep_best(self.scratch, lambda best: best < step)  # evaluations of others will be repeated
        step = self.group.broadcast(step)
        if step:
            self._load(checkpoints.load(self.scratch, step))

    def _load(self, saved: checkpoints.Saved) -> None:
        self.optimizer.load_(saved, self.group)
        self.metrics, self.validation = saved.record["metrics"], saved.record["validation"]
        self.step = self.saved_step = saved.step
        section = self.config.section
        if not saved.record.get("is_pause"):  # a caller that paused the run expects to continue it
            progress.say(f"{section}: continuing after step {saved.step:,} of {self.total_steps:,}")
        if (processes := saved.record["processes"]) != self.group.size:
            progress.say(
                f"{section}: saved by {processes} processes and continued by {self.group.size}: "
                "same samples in the same order, but sums are rounded differently"
            )

    def add(self, row: CurveRow) -> None:
        """Count a step that was taken, with its row of the curve."""
        self.step += 1
        self.metrics.append(row)

    def refuse_non_finite(self, row: CurveRow, figures: Mapping[str, Figure], where: str) -> None:
        """Raise RunFailed, without gradients left behind, if a figure of the row is not finite."""
        wrong = next((name for name, value in row.items() if not math.isfinite(value)), None)
        if wrong is None:
            return
        self.optimizer.drop_gradients_()
        section = self.config.section
        kept = f"the state after step {self.saved_step} is kept" if self.saved_step else "no state was saved yet"
        raise RunFailed(
            f"{section}: {figures[wrong].title} is {row[wrong]} in step {row['step']}, {where} ({kept}): "
            f"lower {section}.learning_rate, or inspect this text"
        )

    def save(self, *, is_pause: bool) -> None:
        """Save the state, unless it is saved already. `is_pause`: the caller is to continue the run."""
        if self.scratch is None or self.step in (0, self.saved_step):
            return
        record = {
            "metrics": self.metrics,
            "validation": self.validation,
            "processes": self.group.size,
            "is_pause": is_pause,
        }
        self._write("step", self.optimizer.tensors(), record, self.config.keep_last)
        self.saved_step = self.step
        self._keep_best(lambda best: best == self._best_step())

    @property
    def is_evaluated(self) -> bool:
        """Whether the curves hold an evaluation after the last step."""
        return bool(self.validation) and self.validation[-1]["step"] == self.step

    def save_if_best(self) -> None:
        """Save the weights that are to be exported if no evaluation was better than the one of this step.

        Those of the best evaluation that the newest checkpoint knows stay: a run that continues from it may find
        this step worse than they are.
        """
        if self.config.export == "best" and self._best_step() == self.step and self.scratch is not None:
            self._write("best", self.optimizer.weights(), {}, None)
            self._keep_best(lambda best: best <= self.saved_step or best == self.step)

    def _keep_best(self, wanted: Callable[[int], bool]) -> None:
        if self.scratch is not None and self.group.rank == 0:
            checkpoints.keep_best(self.scratch, wanted)

    def export_(self) -> int:
        """Load the weights to export into the student; the step that they are from."""
        best = self._best_step()
        is_over = self.step == self.total_steps
        if self.config.export == "last" or best is None or self.scratch is None or not is_over:
            return self.step
        is_there = self.group.rank == 0 and checkpoints.has_best(self.scratch, self.identity, best)
        if not self.group.broadcast(is_there):
            progress.warn(
                f"{self.config.section}: the best weights, of step {best:,}, are missing or damaged; "
                "the last step's are used"
            )
            return self.step
        self.optimizer.load_(checkpoints.load(self.scratch, best, "best"), self.group)
        return best

    def _best_step(self) -> int | None:
        """Evaluated step with the lowest held-out loss, the first of equals."""
        best = min(self.validation, key=lambda row: row["loss"], default=None)
        return None if best is None else int(best["step"])

    def _write(
        self, kind: checkpoints.Kind, tensors: dict[str, Tensor], record: dict[str, Any], keep: int | None
    ) -> None:
        """Save a checkpoint, also after a stop was requested.

        If sharded, all processes save their rows, else the first process saves everything.
        """
        assert self.scratch is not None
        if self._masking:
            self._masking.check_step(self.step)
        group = self.group if self._is_sharded else None
        with stopping.deferred():
            if group or self.group.rank == 0:
                checkpoints.save(self.scratch, self.identity, self.step, tensors, record, keep, kind=kind, group=group)
            self.group.barrier()


def identity(
    config: DistillConfig,
    train_blocks: Blocks,
    validation_blocks: Blocks | None,
    pairs: Sequence[StatePair],
    signals: TeacherSignals | None,
) -> str:
    """Digest of everything that decides the run's numbers except the models, which decide the scratch directory."""
    numbers = config.model_dump(mode="json", exclude={"save_every", "keep_last"})
    held_out = None if validation_blocks is None else validation_blocks.fingerprint
    stored = [signals.fingerprint] if signals else []
    return canonical_json.digest([numbers, train_blocks.fingerprint, held_out, pairs, *stored])
