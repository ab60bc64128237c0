"""The training loop. A step depends only on the state before it and on (seed, step), so resuming changes nothing.

The batch of a step, its dropout and its learning rate are computed from the step's number. The state is the weights,
the optimizer's moments and the curves so far; it is saved between two steps and nowhere else.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from torch import Tensor

from minitron_cli import canonical_json, progress, stopping
from minitron_cli.data.batches import Batch, batch, rank_slice, sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.distill import checkpoints
from minitron_cli.distill.config import DistillConfig, MaskRefresh
from minitron_cli.distill.curves import HELD_OUT, CurveRow, training_figures
from minitron_cli.distill.distributed import ProcessGroup, resolve_precision
from minitron_cli.distill.hidden_state_losses import StatePair
from minitron_cli.distill.masking import Masking
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.schedule import learning_rate, step_seed
from minitron_cli.distill.sharding import RowReader
from minitron_cli.distill.targets import Targets, targets
from minitron_cli.distill.teacher_signals import TeacherSignals
from minitron_cli.distill.throughput import TrainingThroughput, peak_flops, step_flops
from minitron_cli.distill.validation import NOTHING, evaluate
from minitron_cli.errors import DataError, Interrupted, RecipeError, RunFailed
from minitron_cli.figures import Figure
from minitron_cli.signals.read_ahead import ReadAhead
from minitron_cli.signals.rows import SignalRows
from minitron_cli.signals.shards import Visit
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
            run.start(resume)
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
        self.config, self.scratch, self.group = config, scratch, group
        self.section = config.section
        self.log = log if group.rank == 0 else lambda row: None
        self.train_blocks, self.validation_blocks = train_blocks, validation_blocks
        self.total_steps = self.last_step = config.total_steps(train_blocks.sequence_length)
        self._check(pairs)
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
        self.masking = self._masking(masks) if masks and config.mask != "none" else None
        self.optimizer = Optimizer(self.models.trained(), config, self.masking)
        self.signals, self.ahead = signals, ReadAhead(signals.train) if signals else None
        self.identity = _identity(config, train_blocks, validation_blocks, self.models.pairs, signals)
        length, needed = train_blocks.sequence_length, teacher if config.needs_teacher else None
        step_tokens, peak = config.batch_size * length, peak_flops(group.device, self.models.precision)
        self.throughput = TrainingThroughput(
            step_tokens, step_flops(student, needed, step_tokens, length), peak and peak * group.size
        )
        self.step = 0
        self.saved_step = 0
        self.metrics: list[CurveRow] = []
        self.validation: list[CurveRow] = []

    def _check(self, pairs: Sequence[StatePair]) -> None:
        if not len(self.train_blocks):
            raise DataError("the training data do not fill a block: add text or lower data.sequence_length")
        if self.config.batch_size < self.group.size:
            raise RecipeError(
                f"{self.section}.batch_size {self.config.batch_size} is below the {self.group.size} processes: raise it"
            )
        if self.config.warmup_steps >= self.total_steps:
            progress.warn_once(  # every candidate of a search would repeat it, at every rung
                f"{self.section}.warmup_steps {self.config.warmup_steps} is not below the run's {self.total_steps} "
                "steps: the learning rate only rises"
            )
        if self.validation_blocks is not None and not len(self.validation_blocks):
            progress.warn(
                f"{self.section}: the held-out data do not fill a block, so nothing is evaluated; hold out more text"
            )
        if self.config.hidden is not None and not pairs:
            progress.warn("distill.hidden has no effect: depth was not pruned; name layers in distill.hidden.layers")

    def _masking(self, masks: ParameterMasks) -> Masking:
        refresh = self.config.mask if isinstance(self.config.mask, MaskRefresh) else None
        masking = Masking(self.models.trained(), masks, self.group, refresh)
        if self.config.init == "student":
            masking.check()
        return masking

    def close(self) -> None:
        """End the threads that read signals."""
        if self.ahead:
            self.ahead.close()

    def start(self, resume: bool) -> None:
        """Restore the newest checkpoint, if there is one and `resume` is set."""
        if self.scratch is None:
            return
        step = 0
        if self.group.rank == 0:
            if not resume:
                checkpoints.clear(self.scratch)
            step = checkpoints.newest(self.scratch, self.identity) or 0
            checkpoints.forget_best(self.scratch, step)  # their evaluations will be repeated
        step = self.group.broadcast(step)
        if step:
            saved = checkpoints.load(self.scratch, step)
            self.optimizer.load_(saved, self.group)
            self.metrics, self.validation = saved.record["metrics"], saved.record["validation"]
            self.step = self.saved_step = step
            if not saved.record.get("is_pause"):  # a caller that paused the run expects to continue it
                progress.say(f"{self.section}: continuing after step {step:,} of {self.total_steps:,}")
            if (processes := saved.record["processes"]) != self.group.size:
                progress.say(
                    f"{self.section}: saved by {processes} processes and continued by {self.group.size}: "
                    "same samples in the same order, but sums are rounded differently"
                )

    def finish(self, until: int | None = None) -> TrainResult:
        """Run the remaining steps, or those up to `until`."""
        self.last_step = min(until or self.total_steps, self.total_steps)
        started = time.monotonic()
        # Several processes stop where all of them have agreed to: one that left alone would be waited for.
        together = stopping.deferred() if self.group.size > 1 else nullcontext()
        title = "distill" if self.models.teacher or self.signals else "train"
        with together, progress.track(title, self.total_steps, "steps") as advance:
            try:
                self._run_steps(advance)
            except Interrupted:
                self.optimizer.drop_gradients_()
                self._save()
                raise
        exported = self._export_()
        self.models.student.eval()
        throughput = self._throughput(time.monotonic() - started)
        return TrainResult(self.step, self._tokens(self.step), self.metrics, self.validation, throughput, exported)

    def _run_steps(self, advance: progress.Step) -> None:
        _show(advance, self.step)
        self._evaluate_if_due()
        while self.step < self.last_step:
            row = self._optimize()
            _show(advance, 1, loss=row["loss"], **self.throughput.shown())
            self._save_if_due()
            self._evaluate_if_due()

    def _export_(self) -> int:
        """Load the weights to export into the student; the step that they are from."""
        best = self._best_step()
        is_over = self.step == self.total_steps
        if self.config.export == "last" or best is None or self.scratch is None or not is_over:
            return self.step
        is_there = self.group.rank == 0 and checkpoints.has_best(self.scratch, self.identity, best)
        if not self.group.broadcast(is_there):
            progress.warn(
                f"{self.section}: the best weights, of step {best:,}, are missing or damaged; the last step's are used"
            )
            return self.step
        self.optimizer.load_(checkpoints.load(self.scratch, best, "best"), self.group)
        return best

    def _best_step(self) -> int | None:
        """Evaluated step with the lowest held-out loss, the first of equals."""
        best = min(self.validation, key=lambda row: row["loss"], default=None)
        return None if best is None else int(best["step"])

    # One step

    def _optimize(self) -> CurveRow:
        """Run the next step.

        RunFailed if it is not finite, Interrupted if a stop was requested: then weights and moments are unchanged.
        """
        started = time.monotonic()
        ids = self._ids(self.step)
        torch.manual_seed(step_seed(self.config.seed, self.step, self.group.rank))
        self.models.student.train()
        hidden_weight = self._hidden_weight()
        figures_F = self._accumulate_(rank_slice(ids, self.group.rank, self.group.size), hidden_weight)
        row = self._row(figures_F, self.optimizer.clip_(), hidden_weight)
        self._refuse_non_finite(row, training_figures(self.config), f"on samples {_some(ids)}")
        self.optimizer.step_(row["learning_rate"])
        self.step += 1
        self._refresh_masks_if_due()
        self.metrics.append(row)
        self.log(row)
        self.throughput.add(time.monotonic() - started)
        return row

    def _ids(self, step: int) -> list[int]:
        """Blocks of a step, over all processes."""
        size = self.config.batch_size
        return sample_ids(self.config.seed, step * size, size, len(self.train_blocks))

    def _visits(self, step: int) -> list[list[Visit]]:
        """Each micro-batch of this process in a step: its blocks, and which pass over the text it reads them in."""
        first, total, size = step * self.config.batch_size, len(self.train_blocks), self.config.micro_batch_size
        visits = [Visit(block, (first + i) // total) for i, block in enumerate(self._ids(step))]
        mine = visits[self.group.rank :: self.group.size]
        return [mine[i : i + size] for i in range(0, len(mine), size)]

    def _stored_signals(self, parts: Sequence[tuple[Batch, Targets]]) -> Iterator[SignalRows | None]:
        """Signals of each part of the step; those of the next step are read meanwhile."""
        if self.ahead is None:
            yield from [None] * len(parts)
            return
        visits = self._visits(self.step)
        self.ahead.request(visits)
        if self.step + 1 < self.last_step:
            self.ahead.request(self._visits(self.step + 1))
        for i, (_, target) in enumerate(parts):
            rows = self.ahead.rows(visits[i if i < len(visits) else 0])
            # A part without tokens is of a process that takes part because others need its rows.
            yield rows if len(target.labels_N) else rows.part(slice(0))

    def _refresh_masks_if_due(self) -> None:
        """Choose the lost weights again, except after the last step, whose weights are not trained further."""
        refresh = self.masking and self.masking.refresh
        if refresh and self.step % refresh.refresh == 0 and self.step < self.total_steps:
            self.optimizer.refresh_masks_()

    def _accumulate_(self, ids: Sequence[int], hidden_weight: float) -> Tensor:
        """Accumulate the gradient of the mean over the whole step's scored tokens in `.grad`; the step's figures [F].

        Every part is divided by the token count of the whole step over all processes, so that parts of unequal length
        are weighted by their tokens.
        """
        parts = self._micro_batches(ids)
        chosen = self.config.positions.count if self.config.positions else int
        count = int(self.group.sum(sum(chosen(len(target.labels_N)) for _, target in parts)))
        assert count, "every block has a token to predict"
        figures_F = torch.zeros(len(self.models.figures), device=self.group.device)
        signals = self._stored_signals(parts)
        for i in range(self._most_micro_batches):
            self._stop_if_asked()
            if i < len(parts):
                losses = self.models.losses(*parts[i], count, hidden_weight, next(signals))
                losses.total.backward()
                figures_F += losses.figures_F
        self.group.sum_([figures_F, *self.optimizer.gradients])
        return figures_F

    def _micro_batches(self, ids: Sequence[int]) -> list[tuple[Batch, Targets]]:
        size = self.config.micro_batch_size
        batches = [batch(self.train_blocks, ids[i : i + size]) for i in range(0, len(ids), size)]
        parts = [(part, targets(part)) for part in batches]
        if self.models.is_sharded:  # every process must run equally often, because the others need its rows
            parts += [(batches[0], NOTHING)] * (self._most_micro_batches - len(parts))
        return parts

    @property
    def _most_micro_batches(self) -> int:
        """Micro-batches of a step, in the process that has most of them."""
        return math.ceil(math.ceil(self.config.batch_size / self.group.size) / self.config.micro_batch_size)

    def _hidden_weight(self) -> float:
        """alpha, from all tokens of the step before, so that it does not depend on how a batch is divided."""
        if self.config.hidden is None:
            return 0.0
        if self.config.hidden.weight != "dynamic":
            return self.config.hidden.weight
        last = self.metrics[-1] if self.metrics else {}
        return self._on_logits(last) / last["hidden"] if last.get("hidden") else 0.0

    def _on_logits(self, row: CurveRow) -> float:
        return sum(loss.weight * row[loss.kind] for loss in self.config.losses)

    def _row(self, figures_F: Tensor, norm: Tensor, hidden_weight: float) -> CurveRow:
        *values, grad_norm = torch.cat([figures_F, norm.to(figures_F).reshape(1)]).tolist()
        figures = dict(zip(self.models.figures, values, strict=True))
        if "hidden" in figures:
            figures["hidden_weight"] = hidden_weight
        c = self.config
        return {
            "step": self.step + 1,
            "tokens": self._tokens(self.step + 1),
            "loss": self._on_logits(figures) + hidden_weight * figures.get("hidden", 0.0),
            **figures,
            "learning_rate": learning_rate(
                self.step, self.total_steps, c.learning_rate, c.min_learning_rate, c.warmup_steps
            ),
            "grad_norm": grad_norm,
        }

    def _refuse_non_finite(self, row: CurveRow, figures: Mapping[str, Figure], where: str) -> None:
        wrong = next((name for name, value in row.items() if not math.isfinite(value)), None)
        if wrong is None:
            return
        self.optimizer.drop_gradients_()
        kept = f"the state after step {self.saved_step} is kept" if self.saved_step else "no state was saved yet"
        raise RunFailed(
            f"{self.section}: {figures[wrong].title} is {row[wrong]} in step {row['step']}, {where} ({kept}): "
            f"lower {self.section}.learning_rate, or inspect this text"
        )

    def _tokens(self, steps: int) -> int:
        return steps * self.config.batch_size * self.train_blocks.sequence_length

    # Between two steps

    def _save_if_due(self) -> None:
        """Save every `save_every` steps and after the last; when a stop was requested, `finish` saves."""
        self._stop_if_asked()
        if self.step % self.config.save_every == 0 or self.step == self.last_step:
            self._save()

    def _evaluate_if_due(self) -> None:
        """Evaluate every `eval_every` steps and after the last. Comes after saving: a run resumed here repeats it."""
        is_due = self.step % self.config.eval_every == 0 or self.step == self.last_step
        if not self.validation_blocks or not is_due:
            return
        c = self.config
        means = evaluate(
            self.models,
            self.validation_blocks,
            c.eval_blocks,
            c.micro_batch_size,
            self.group,
            self._stop_if_asked,
            self.signals.validation if self.signals else None,
        )
        row = {"step": self.step, "tokens": self._tokens(self.step), **means}
        self._refuse_non_finite(row, HELD_OUT, "on held-out text")
        self.validation.append(row)
        self.log({f"held_out/{name}": value for name, value in row.items()} | {"step": self.step})
        if self.config.export == "best" and self._best_step() == self.step:
            self._save_best()

    def _stop_if_asked(self) -> None:
        """Raise Interrupted in all processes if any was asked to stop. All must call this equally often."""
        if not self.group.any(stopping.stop_requested()):
            return
        if not stopping.stop_requested():
            stopping.request_stop(SIGTERM)
        raise stopping.interrupted()

    def _save(self) -> None:
        if self.scratch is None or self.step in (0, self.saved_step):
            return
        record = {
            "metrics": self.metrics,
            "validation": self.validation,
            "processes": self.group.size,
            "is_pause": self.step == self.last_step < self.total_steps,
        }
        self._write("step", self.optimizer.tensors(), record, self.config.keep_last)
        self.saved_step = self.step

    def _save_best(self) -> None:
        if self.scratch is not None:
            self._write("best", self.optimizer.weights(), {}, 1)

    def _write(self, kind: checkpoints.Kind, tensors: dict[str, Tensor], record: dict[str, Any], keep: int) -> None:
        """Save a checkpoint, also after a stop was requested.

        If sharded, all processes save their rows, else the first process saves everything.
        """
        assert self.scratch is not None
        if self.masking:
            self.masking.check_step(self.step)
        group = self.group if self.models.is_sharded else None
        with stopping.deferred():
            if group or self.group.rank == 0:
                checkpoints.save(self.scratch, self.identity, self.step, tensors, record, keep, kind=kind, group=group)
            self.group.barrier()

    def _throughput(self, seconds: float) -> dict[str, float | str | bool]:
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


def _identity(
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


def _some(ids: Sequence[int], most: int = 16) -> str:
    rest = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + rest
