"""The training loop: a step is a function of the state before it and of (seed, step), so a resumed run is the same run.

The batch of a step, its dropout and its learning rate are computed from the step's number. The state is the weights,
the optimizer's moments and the figures so far; it is saved between two steps and nowhere else.
"""

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from signal import SIGTERM
from typing import Any

import torch
from torch import Tensor

from minitron_cli import io, progress
from minitron_cli.data.batches import Batch, batch, rank_slice, sample_ids
from minitron_cli.data.pack import Blocks
from minitron_cli.distill import checkpoints
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.forward import Models
from minitron_cli.distill.held_out import evaluate
from minitron_cli.distill.hidden import StatePair
from minitron_cli.distill.optimizer import Optimizer
from minitron_cli.distill.schedule import learning_rate
from minitron_cli.distill.targets import Targets, targets
from minitron_cli.distill.world import World, resolve_precision
from minitron_cli.errors import DataError, Interrupted, RecipeError, RunFailed

Row = dict[str, float]


@dataclass(frozen=True)
class TrainResult:
    steps: int
    tokens: int
    """Of the whole run, resumed parts included."""
    metrics: list[Row]
    """A row per step: step (from 1), tokens, loss, each loss by its kind, hidden, learning_rate, grad_norm."""
    validation: list[Row]
    """A row per evaluation: step (0 before the first), tokens, loss and, with a teacher, kl; in nats per token."""
    throughput: dict[str, float | str]
    """Of this process's part of the run: steps, tokens, seconds, tokens_per_second, processes, precision."""


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
    until: int | None = None,
    alone: bool = False,
) -> TrainResult:
    """Train `student` in place; it comes back in fp32 and evaluation mode, on the device.

    The teacher is moved there too, frozen, and cast to bf16 if that is the precision.
    `scratch` is a directory of this run alone, for its checkpoints; with `resume`, the newest sound one is continued.
    None keeps none. `pairs` are the hidden states to compare where `config.hidden` is set (`hidden.state_pairs`). A
    teacher that no loss needs is still compared with at every evaluation. RunFailed if a loss or gradient is not
    finite, before it reaches the weights; Interrupted after a stop was requested, once the state is saved.
    `until` is a step to stop after, with the state saved, for a later call to go on from. `alone`: no other process has
    a part in this run.
    """
    world = World(device, alone=alone)
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
        run = _Run(student, teacher, train_blocks, validation_blocks, config, scratch, pairs, world)
        run.start(resume)
        return run.finish(until)


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
        world: World,
    ) -> None:
        self.config, self.scratch, self.world = config, scratch, world
        self.train_blocks, self.validation_blocks = train_blocks, validation_blocks
        self.total_steps = self.last_step = config.total_steps(train_blocks.sequence_length)
        self._check(pairs)
        self.models = Models(
            student, teacher, config, pairs, world.device, resolve_precision(config.precision, world.device)
        )
        self.optimizer = Optimizer(self.models.trained(), config)
        self.identity = _identity(config, train_blocks, validation_blocks, self.models.pairs)
        self.step = 0
        self.saved_step = 0
        self.metrics: list[Row] = []
        self.validation: list[Row] = []

    def _check(self, pairs: Sequence[StatePair]) -> None:
        if not len(self.train_blocks):
            raise DataError("the training data fill no block: give more text, or lower data.sequence_length")
        if self.config.batch_size < self.world.size:
            raise RecipeError(
                f"distill.batch_size {self.config.batch_size} is below the {self.world.size} processes: raise it"
            )
        if self.config.warmup_steps >= self.total_steps:
            progress.warn(
                f"distill.warmup_steps {self.config.warmup_steps} is not below the run's {self.total_steps} steps: "
                "the learning rate only rises"
            )
        if self.validation_blocks is not None and not len(self.validation_blocks):
            progress.warn("distill: the held-out data fill no block, so nothing is evaluated; hold out more text")
        if self.config.hidden is not None and not pairs:
            progress.warn("distill.hidden has no effect: depth was not cut; say which in distill.hidden.layers")

    def start(self, resume: bool) -> None:
        """Take over the state of the newest checkpoint, if there is one and it is wanted."""
        if self.scratch is None:
            return
        step = 0
        if self.world.rank == 0:
            if not resume:
                checkpoints.clear(self.scratch)
            step = checkpoints.newest(self.scratch, self.identity) or 0
        step = self.world.from_first(step)
        if step:
            saved = checkpoints.load(self.scratch, step)
            self.optimizer.load_(saved.tensors)
            self.metrics, self.validation = saved.record["metrics"], saved.record["validation"]
            self.step = self.saved_step = step
            progress.say(f"distill: continues after step {step:,} of {self.total_steps:,}")

    def finish(self, until: int | None = None) -> TrainResult:
        """Do the steps that are left, or those up to `until`."""
        self.last_step = min(until or self.total_steps, self.total_steps)
        first, started = self.step, time.monotonic()
        with progress.track("distill" if self.models.teacher else "train", self.total_steps, "steps") as advance:
            _show(advance, self.step)
            self._evaluate_if_due()
            while self.step < self.last_step:
                row = self._optimize()
                _show(advance, 1, loss=row["loss"])
                self._save_if_due()
                self._evaluate_if_due()
        self.models.student.eval()
        throughput = self._throughput(self.step - first, time.monotonic() - started)
        return TrainResult(self.step, self._tokens(self.step), self.metrics, self.validation, throughput)

    # One step

    def _optimize(self) -> Row:
        """Do the next step. RunFailed, with weights and moments as they were, if it is not finite."""
        size = self.config.batch_size
        ids = sample_ids(self.config.seed, self.step * size, size, len(self.train_blocks))
        torch.manual_seed(_step_seed(self.config.seed, self.step, self.world.rank))
        self.models.student.train()
        hidden_weight = self._hidden_weight()
        figures_F = self._accumulate_(rank_slice(ids, self.world.rank, self.world.size), hidden_weight)
        row = self._row(figures_F, self.optimizer.clip_(), hidden_weight)
        self._refuse_non_finite(row, f"on samples {_some(ids)}")
        self.optimizer.step_(row["learning_rate"])
        self.step += 1
        self.metrics.append(row)
        return row

    def _accumulate_(self, ids: Sequence[int], hidden_weight: float) -> Tensor:
        """Leave the gradient of the mean over all tokens of the step, of all processes, in `.grad`; its figures.

        Every part is divided by the whole step's count, so parts of unequal length weigh by their tokens.
        """
        parts = self._micro_batches(ids)
        count = int(self.world.sum(sum(len(target.labels_N) for _, target in parts)))
        if count == 0:
            raise DataError("no token of a batch follows another of its document: give longer documents or blocks")
        figures_F = torch.zeros(len(self.models.figures), device=self.world.device)
        for part, target in parts:
            losses = self.models.losses(part, target, count, hidden_weight)
            losses.total.backward()
            figures_F += losses.figures_F
        self.world.sum_([figures_F, *self.optimizer.gradients])
        return figures_F

    def _micro_batches(self, ids: Sequence[int]) -> list[tuple[Batch, Targets]]:
        size = self.config.micro_batch_size
        batches = [batch(self.train_blocks, ids[i : i + size]) for i in range(0, len(ids), size)]
        return [(part, targets(part)) for part in batches]

    def _hidden_weight(self) -> float:
        """alpha: from the step before, over all its tokens, so how a batch is divided changes nothing."""
        if self.config.hidden is None:
            return 0.0
        if self.config.hidden.weight != "dynamic":
            return self.config.hidden.weight
        last = self.metrics[-1] if self.metrics else {}
        return self._on_logits(last) / last["hidden"] if last.get("hidden") else 0.0

    def _on_logits(self, row: Row) -> float:
        return sum(loss.weight * row[loss.kind] for loss in self.config.losses)

    def _row(self, figures_F: Tensor, norm: Tensor, hidden_weight: float) -> Row:
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

    def _refuse_non_finite(self, row: Row, where: str) -> None:
        wrong = next((name for name, value in row.items() if not math.isfinite(value)), None)
        if wrong is None:
            return
        self.optimizer.drop_gradients_()
        kept = f"the state after step {self.saved_step} is kept" if self.saved_step else "no state was saved yet"
        raise RunFailed(
            f"distill: {wrong} is {row[wrong]} in step {row['step']}, {where} ({kept}): "
            "lower distill.learning_rate, or look at what both models make of this text"
        )

    def _tokens(self, steps: int) -> int:
        return steps * self.config.batch_size * self.train_blocks.sequence_length

    # Between two steps

    def _save_if_due(self) -> None:
        """Save when it is time, when the run is over, and when it is to stop."""
        is_stopping = self._is_stopping()
        if is_stopping or self.step % self.config.save_every == 0 or self.step == self.last_step:
            self._save()
        if is_stopping:
            progress.raise_if_stopped()

    def _evaluate_if_due(self) -> None:
        """Evaluate if this step calls for it. Comes after saving, so a run that resumes here does it again."""
        is_due = self.step % self.config.eval_every == 0 or self.step == self.last_step
        if not self.validation_blocks or not is_due:
            return
        c = self.config
        means = evaluate(
            self.models, self.validation_blocks, c.eval_blocks, c.micro_batch_size, self.world, self._is_stopping
        )
        if means is None:
            self._save()
            progress.raise_if_stopped()
        else:
            row = {"step": self.step, "tokens": self._tokens(self.step), **means}
            self._refuse_non_finite(row, "on held-out text")
            self.validation.append(row)

    def _is_stopping(self) -> bool:
        """Whether any process was asked to stop; then all of them do."""
        is_stopping = self.world.any(progress.stop_requested())
        if is_stopping and not progress.stop_requested():
            progress.request_stop(SIGTERM)
        return is_stopping

    def _save(self) -> None:
        if self.scratch is None or self.step in (0, self.saved_step):
            return
        if self.world.rank == 0:
            record = {"metrics": self.metrics, "validation": self.validation}
            tensors = self.optimizer.tensors()
            checkpoints.save(self.scratch, self.identity, self.step, tensors, record, self.config.keep_last)
        self.saved_step = self.step
        self.world.wait()

    def _throughput(self, steps: int, seconds: float) -> dict[str, float | str]:
        tokens = self._tokens(steps)
        return {
            "steps": steps,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
            "processes": self.world.size,
            "precision": self.models.precision,
        }


def _show(advance: progress.Step, steps: int, **figures: float) -> None:
    with suppress(Interrupted):  # the run stops by itself, after its state is saved
        advance(steps, **figures)


def _identity(
    config: DistillConfig, train_blocks: Blocks, validation_blocks: Blocks | None, pairs: Sequence[StatePair]
) -> str:
    """A digest of what decides the run's numbers, but for the models: whoever names the directory knows those."""
    numbers = config.model_dump(mode="json", exclude={"save_every", "keep_last"})
    held_out = None if validation_blocks is None else validation_blocks.fingerprint
    return io.digest([numbers, train_blocks.fingerprint, held_out, pairs])


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Hashed, as a sum or an exclusive or of the three would give some steps the same dropout."""
    return int.from_bytes(blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest(), "little")


def _some(ids: Sequence[int], most: int = 16) -> str:
    rest = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + rest
