"""The training loop. A step depends only on the state before it and on (seed, step), so resuming changes nothing.

The batch of a step, its dropout and its learning rate are computed from the step's number. The state is the weights,
the optimizer's moments and the curves so far; it is saved between two steps and nowhere else.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minitron_cli import progress, stopping
from minitron_cli.data.pack import Blocks
from minitron_cli.distill.config import DistillConfig, MaskRefresh
from minitron_cli.distill.curves import HELD_OUT, CurveRow
from minitron_cli.distill.distributed import ProcessGroup, resolve_precision
from minitron_cli.distill.hidden_state_losses import StatePair
from minitron_cli.distill.masking import Masking
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.run_state import RunState, identity
from minitron_cli.distill.sharding import RowReader
from minitron_cli.distill.step_batches import StepBatches
from minitron_cli.distill.teacher_signals import TeacherSignals
from minitron_cli.distill.throughput import TrainingThroughput, peak_flops, step_flops
from minitron_cli.distill.training_step import TrainingStep
from minitron_cli.distill.validation import evaluate
from minitron_cli.errors import DataError, Interrupted, RecipeError
from minitron_cli.signals.read_ahead import ReadAhead
from minitron_cli.sparse.parameter_masks import ParameterMasks


@dataclass(frozen=True)
class Placement:
    """Placement of a run's models in memory; changes results by rounding only."""

    is_sharded: bool = False
    """Whether the models are sharded over the processes (see `sharding.is_wanted`)."""
    student_rows: RowReader | None = None
    """Reads the student's weights if the model is on the meta device. For sharded runs only."""
    teacher_rows: RowReader | None = None
    """The same for the teacher."""


@dataclass(frozen=True)
class TrainResult:
    """Curves and figures of a run."""

    steps: int
    """Steps of the whole run, resumed parts included."""
    tokens: int
    """Tokens in the blocks of these steps."""
    metrics: list[CurveRow]
    """One row per step: step (from 1), tokens, and the columns of `training_figures`."""
    validation: list[CurveRow]
    """One row per evaluation: step (0 before the first), tokens, and the columns of `HELD_OUT`."""
    throughput: dict[str, float | str | bool]
    """Figures of this process's part of the run: steps, tokens, seconds, tokens_per_second, processes, ..."""
    exported: int
    """Step whose weights the student has: the last, or the best evaluated one."""


def train(
    student: Any,
    teacher: Any | None,
    train_blocks: Blocks,
    validation_blocks: Blocks | None,
    config: DistillConfig,
    scratch: Path | None,
    *,
    resume: bool = True,
    pairs: Sequence[StatePair] = (),
    device: str = "cpu",
    placement: Placement = Placement(),
    masks: ParameterMasks | None = None,
    signals: TeacherSignals | None = None,
    log: Callable[[CurveRow], None] = lambda row: None,
    until: int | None = None,
    alone: bool = False,
) -> TrainResult:
    """Train `student` in place and leave it on the device, in fp32 and evaluation mode, sharded if `placement` says so.

    The teacher is moved to the device too, frozen, and cast to bf16 if that is the precision. A teacher that no loss
    needs is still compared with at every evaluation.

    `scratch`: directory of this run alone for its checkpoints. With `resume` the newest valid one is continued. None
    keeps no checkpoints and exports the last weights.
    `masks`: weights of the student that are zero, which `config.mask` keeps so.
    `signals`: what is read in place of the teacher, which is None then.
    `pairs`: hidden states to compare if `config.hidden` is set (`state_pairs`, `relation_pairs`).
    `log`: called in the first process with every row of the curves.
    `until`: a step to stop after, with the state saved for a later call to continue.
    `alone`: no other process takes part, whatever the launcher says.

    RunFailed if a loss or gradient is not finite, before it reaches the weights. Interrupted after a stop was
    requested, once the state is saved.
    """
    group = ProcessGroup(device, alone=alone)
    with torch.random.fork_rng(devices=[group.device] if group.device.type == "cuda" else []):
        run = _Run(
            student,
            teacher,
            train_blocks,
            validation_blocks,
            config,
            scratch,
            pairs,
            group,
            placement,
            masks,
            signals,
            log,
        )
        try:
            run.state.restore(resume)
            return run.finish(until)
        finally:
            run.close()


class _Run:
    def __init__(
        self,
        student: Any,
        teacher: Any | None,
        train_blocks: Blocks,
        validation_blocks: Blocks | None,
        config: DistillConfig,
        scratch: Path | None,
        pairs: Sequence[StatePair],
        group: ProcessGroup,
        placement: Placement,
        masks: ParameterMasks | None,
        signals: TeacherSignals | None,
        log: Callable[[CurveRow], None],
    ) -> None:
        self.config, self.group, self.signals = config, group, signals
        self.log = log if group.rank == 0 else lambda row: None
        self.validation_blocks = validation_blocks
        self.total_steps = self.last_step = config.total_steps(train_blocks.sequence_length)
        self._check(train_blocks, pairs)
        self.models = ModelPair(
            student,
            teacher,
            config,
            pairs,
            group,
            resolve_precision(config.precision, group.device),
            is_sharded=placement.is_sharded,
            student_rows=placement.student_rows,
            teacher_rows=placement.teacher_rows,
        )
        masking = self._masking(masks) if masks and config.mask != "none" else None
        self.state = RunState(
            config,
            scratch,
            identity(config, train_blocks, validation_blocks, self.models.pairs, signals),
            Optimizer(self.models.trained(), config, masking, self.models.decayed()),
            group,
            self.total_steps,
            is_sharded=self.models.is_sharded,
            masking=masking,
        )
        self.ahead = ReadAhead(signals.train) if signals else None
        self.batches = StepBatches(config, train_blocks, group, self.models.is_sharded, self.ahead)
        self.training_step = TrainingStep(self.models, self.batches, self.state, masking.refresh if masking else None)
        self.throughput = self._measured_throughput(student, teacher, train_blocks.sequence_length)

    def _check(self, train_blocks: Blocks, pairs: Sequence[StatePair]) -> None:
        section = self.config.section
        if not len(train_blocks):
            raise DataError("the training data do not fill a block: add text or lower data.sequence_length")
        if self.config.batch_size < self.group.size:
            raise RecipeError(
                f"{section}.batch_size {self.config.batch_size} is below the {self.group.size} processes: raise it"
            )
        if self.config.warmup_steps >= self.total_steps:
            progress.warn_once(  # every candidate of a search would repeat it, at every rung
                f"{section}.warmup_steps {self.config.warmup_steps} is not below the run's {self.total_steps} "
                "steps: the learning rate only rises"
            )
        if self.validation_blocks is not None and not len(self.validation_blocks):
            progress.warn(
                f"{section}: the held-out data do not fill a block, so nothing is evaluated; hold out more text"
            )
        if self.config.hidden is not None and not pairs:
            progress.warn("distill.hidden has no effect: depth was not pruned; name layers in distill.hidden.layers")

    def _masking(self, masks: ParameterMasks) -> Masking:
        refresh = self.config.mask if isinstance(self.config.mask, MaskRefresh) else None
        masking = Masking(self.models.trained(), masks, self.group, refresh)
        if self.config.init == "student":
            masking.check()
        return masking

    def _measured_throughput(self, student: Any, teacher: Any | None, length: int) -> TrainingThroughput:
        needed, step_tokens = teacher if self.config.needs_teacher else None, self.batches.tokens(1)
        peak = peak_flops(self.group.device, self.models.precision)
        flops = step_flops(student, needed, step_tokens, length)
        return TrainingThroughput(step_tokens, flops, peak and peak * self.group.size)

    def close(self) -> None:
        """End the threads that read signals."""
        if self.ahead:
            self.ahead.close()

    def finish(self, until: int | None = None) -> TrainResult:
        """Run the remaining steps, or those up to `until`."""
        state = self.state
        self.last_step = min(until or self.total_steps, self.total_steps)
        started = time.monotonic()
        # Several processes stop where all of them have agreed to: one that left alone would be waited for.
        together = stopping.deferred() if self.group.size > 1 else nullcontext()
        title = "distill" if self.models.teacher or self.signals else "train"
        with together, progress.track(title, self.total_steps, "steps") as advance:
            try:
                self._run_steps(advance)
            except Interrupted:
                state.optimizer.drop_gradients_()
                self._save()
                raise
        exported = state.export_()
        self.models.student.eval()
        figures = self._figures(time.monotonic() - started)
        return TrainResult(
            state.step, self.batches.tokens(state.step), state.metrics, state.validation, figures, exported
        )

    def _run_steps(self, advance: progress.Step) -> None:
        _show(advance, self.state.step)
        self._evaluate_if_due()
        while self.state.step < self.last_step:
            row = self._optimize()
            _show(advance, 1, loss=row["loss"], **self.throughput.shown())
            self._save_if_due()
            self._evaluate_if_due()

    def _optimize(self) -> CurveRow:
        started = time.monotonic()
        row = self.training_step.take(is_last=self.state.step + 1 == self.last_step)
        self.state.add(row)
        self.log(row)
        self.throughput.add(time.monotonic() - started)
        return row

    def _is_due(self, every: int) -> bool:
        """Whether what is done every so many steps, and after the last, is to be done now."""
        return self.state.step % every == 0 or self.state.step == self.last_step

    def _save_if_due(self) -> None:
        """Save every `save_every` steps and after the last; when a stop was requested, `finish` saves."""
        self.group.stop_if_asked()
        if self._is_due(self.config.save_every):
            self._save()

    def _save(self) -> None:
        self.state.save(is_pause=self.state.step == self.last_step < self.total_steps)

    def _evaluate_if_due(self) -> None:
        """Evaluate every `eval_every` steps and after the last. Comes after saving: a run resumed here repeats it,
        unless a stop in the step after it has saved its row as well."""
        if not self.validation_blocks or not self._is_due(self.config.eval_every):
            return
        if self.state.is_evaluated:
            self.state.save_if_best()  # again: weights of evaluations that may be repeated are forgotten
            return
        means = evaluate(
            self.models,
            self.validation_blocks,
            self.config.eval_blocks,
            self.config.micro_batch_size,
            self.group,
            self.group.stop_if_asked,
            self.signals.validation if self.signals else None,
        )
        step = self.state.step
        row = {"step": step, "tokens": self.batches.tokens(step), **means}
        self.state.refuse_non_finite(row, HELD_OUT, "on held-out text")
        self.state.validation.append(row)
        self.log({f"held_out/{name}": value for name, value in row.items()} | {"step": step})
        self.state.save_if_best()

    def _figures(self, seconds: float) -> dict[str, float | str | bool]:
        """Figures of this process's part of the run; `seconds` include evaluations and checkpoints."""
        return {
            "seconds": round(seconds, 3),
            **self.throughput.summary(),
            "processes": self.group.size,
            "precision": self.models.precision,
            "sharded": self.models.is_sharded,
        }


def _show(advance: progress.Step, steps: int, **figures: float | str) -> None:
    with suppress(Interrupted):  # the run stops by itself once its state is saved
        advance(steps, **figures)
