"""One step of training: the gradient of the batch, its row of the curve, and the update of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minitron_cli.distill.config import MaskRefresh
from minitron_cli.distill.curves import CurveRow, training_figures
from minitron_cli.distill.model_pair import ModelPair
from minitron_cli.distill.run_state import RunState
from minitron_cli.distill.schedule import learning_rate, step_seed
from minitron_cli.distill.step_batches import StepBatches


@dataclass(frozen=True)
class TrainingStep:
    """The step that follows a run's state."""

    models: ModelPair
    batches: StepBatches
    state: RunState
    refresh: MaskRefresh | None = None
    """How often lost weights are chosen again, if they are."""

    def take(self, *, is_last: bool) -> CurveRow:
        """Row of the step, once the weights are updated. `is_last`: no step follows in this process.

        RunFailed if a figure is not finite, Interrupted if a stop was requested: then weights and moments are
        unchanged.
        """
        config, state, optimizer = self.models.config, self.state, self.state.optimizer
        torch.manual_seed(step_seed(config.seed, state.step, state.group.rank))
        self.models.student.train()
        hidden_weight = self._hidden_weight()
        figures_F = self._accumulate_(hidden_weight, is_last)
        row = self._row(figures_F, optimizer.clip_(), hidden_weight)
        state.refuse_non_finite(row, training_figures(config), f"on samples {_some(self.batches.ids(state.step))}")
        optimizer.step_(row["learning_rate"])
        self._refresh_masks_if_due(state.step + 1)
        return row

    def _refresh_masks_if_due(self, steps: int) -> None:
        """Choose the lost weights again, except after the last step, whose weights are not trained further."""
        if self.refresh and steps % self.refresh.refresh == 0 and steps < self.state.total_steps:
            self.state.optimizer.refresh_masks_()

    def _accumulate_(self, hidden_weight: float, is_last: bool) -> Tensor:
        """Accumulate the gradient of the mean over the whole step's scored tokens in `.grad`; the step's figures [F].

        Every part is divided by the token count of the whole step over all processes, so that parts of unequal length
        are weighted by their tokens.
        """
        group, positions = self.state.group, self.models.config.positions
        parts = self.batches.micro_batches(self.state.step)
        in_blocks = [n for part, target in parts for n in target.in_blocks(part.input_ids_BT.shape[1])]
        count = int(group.sum(sum(positions.counts(in_blocks) if positions else in_blocks)))
        assert count, "every block has a token to predict"
        figures_F = torch.zeros(len(self.models.figures), device=group.device)
        signals = self.batches.signals(self.state.step, parts, is_last=is_last)
        for i in range(self.batches.most_micro_batches):
            group.stop_if_asked()
            if i < len(parts):
                losses = self.models.losses(*parts[i], count, hidden_weight, next(signals))
                losses.total.backward()
                figures_F += losses.figures_F
        group.sum_([figures_F, *self.state.optimizer.gradients])
        return figures_F

    def _hidden_weight(self) -> float:
        """alpha, from all tokens of the step before, so that it does not depend on how a batch is divided."""
        hidden = self.models.config.hidden
        if hidden is None:
            return 0.0
        if hidden.weight != "dynamic":
            return hidden.weight
        last = self.state.metrics[-1] if self.state.metrics else {}
        return self._on_logits(last) / last["hidden"] if last.get("hidden") else 0.0

    def _on_logits(self, row: CurveRow) -> float:
        return sum(loss.weight * row[loss.kind] for loss in self.models.config.losses)

    def _row(self, figures_F: Tensor, norm: Tensor, hidden_weight: float) -> CurveRow:
        *values, grad_norm = torch.cat([figures_F, norm.to(figures_F).reshape(1)]).tolist()
        figures = dict(zip(self.models.figures, values, strict=True))
        if "hidden" in figures:
            figures["hidden_weight"] = hidden_weight
        c, step = self.models.config, self.state.step
        return {
            "step": step + 1,
            "tokens": self.batches.tokens(step + 1),
            "loss": self._on_logits(figures) + hidden_weight * figures.get("hidden", 0.0),
            **figures,
            "learning_rate": learning_rate(
                step, self.state.total_steps, c.learning_rate, c.min_learning_rate, c.warmup_steps
            ),
            "grad_norm": grad_norm,
        }


def _some(ids: Sequence[int], most: int = 16) -> str:
    rest = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(map(str, ids[:most])) + rest
