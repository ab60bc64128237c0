"""One batch through student and teacher: its losses with gradients, or its figures on held-out text.

Knows models as transformers has them; not the optimizer, the schedule or the order of the data.
"""

# B sequence, T token, N counted token, D hidden, F figure

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minitron_cli.data.batches import Batch
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.hidden import StatePair, capture, hidden_loss, projection
from minitron_cli.distill.losses import ForwardKL
from minitron_cli.distill.objective import Side, check_vocab, fused_objective
from minitron_cli.distill.targets import Targets, documents
from minitron_cli.distill.world import Precision
from minitron_cli.errors import CheckpointError
from minitron_cli.model.nll import head_of

HELD_OUT = ("loss", "kl")
"""What `evaluate` adds up: cross-entropy with the text, and KL(teacher || student) where there is a teacher; nats."""


class Losses(NamedTuple):
    total: Tensor
    """Scalar with gradients."""
    figures_F: Tensor
    """In the order of `Models.figures`, detached."""


class Models:
    """Student and teacher on one device, the student with fp32 weights, the teacher frozen in what is computed in."""

    def __init__(
        self,
        student: Any,
        teacher: Any | None,
        config: DistillConfig,
        pairs: Sequence[StatePair],
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.config, self.device, self.precision = config, device, precision
        self.student, self.teacher = student.to(device), teacher
        self.pairs = tuple(pairs) if config.hidden is not None else ()
        _refuse_non_finite(student, "student")
        _cast_(student, torch.float32)
        self.student_head = head_of(student.eval())
        self.project: nn.Module = nn.Identity()
        if teacher is not None:
            check_vocab(teacher.config, student.config, None, None)
            _refuse_non_finite(teacher, "teacher")
            _cast_(teacher.to(device).eval().requires_grad_(False), _dtype(precision))
            self.teacher_head = head_of(teacher)
            widths = self.student_head.weight_VD.shape[1], self.teacher_head.weight_VD.shape[1]
            self.project = projection(*widths, config.seed).to(device) if self.pairs else nn.Identity()

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what a training batch is measured by: each loss on logits, then all on hidden states together."""
        return (*(loss.kind for loss in self.config.losses), *(["hidden"] if self.pairs else []))

    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that is learned, by a name that is unique; tied ones once."""
        student = {f"student.{name}": p for name, p in self.student.named_parameters()}
        return student | {f"projection.{name}": p for name, p in self.project.named_parameters()}

    def losses(self, batch: Batch, targets: Targets, count: int, hidden_weight: float) -> Losses:
        """The sums over this batch's counted tokens, divided by `count`."""
        rows_N, labels_N = (tensor.to(self.device) for tensor in targets)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            student_BTD, student_states = self._decode(self.student, batch, [pair.student for pair in self.pairs])
            teacher_side, teacher_states = None, dict[str, Tensor]()
            if self.teacher is not None and self.config.needs_teacher:
                with torch.no_grad():
                    teacher_BTD, teacher_states = self._decode(self.teacher, batch, [p.teacher for p in self.pairs])
                teacher_side = Side(teacher_BTD.flatten(0, 1), self.teacher_head).rows(rows_N)
            student_side = Side(student_BTD.flatten(0, 1), self.student_head).rows(rows_N)
            objective = fused_objective(
                self.config.losses, student_side, teacher_side, labels_N, count=count, low_memory=self.config.low_memory
            )
            if not self.pairs or self.config.hidden is None:
                return Losses(*objective)
            hidden = hidden_loss(
                self.pairs,
                student_states,
                teacher_states,
                self.project,
                self.config.hidden.distance,
                rows_N,
                count,
                documents(batch).to(self.device),
            )
        return Losses(
            objective.total + hidden_weight * hidden, torch.cat([objective.each_L, hidden.detach().reshape(1)])
        )

    @torch.no_grad()
    def evaluate(self, batch: Batch, targets: Targets) -> Tensor:
        """The sums of `HELD_OUT` over the batch's counted tokens, [2] in fp64."""
        rows_N, labels_N = (tensor.to(self.device) for tensor in targets)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            student = Side(self._decode(self.student, batch)[0].flatten(0, 1), self.student_head).rows(rows_N)
            nll = self.student_head.nll(student.hidden_ND, labels_N).sum(dtype=torch.float64)
            kl = torch.zeros_like(nll)
            if self.teacher is not None:
                teacher = Side(self._decode(self.teacher, batch)[0].flatten(0, 1), self.teacher_head).rows(rows_N)
                kl += fused_objective([ForwardKL()], student, teacher, None, count=1, low_memory=True).total
        return torch.stack([nll, kl])

    def _decode(self, model: Any, batch: Batch, modules: Iterable[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """The last hidden states, and the outputs of the named modules."""
        with capture(model, modules) as states:
            output = model.get_decoder()(
                input_ids=batch.input_ids_BT.to(self.device),
                position_ids=batch.position_ids_BT.to(self.device),
                use_cache=False,
            )
        return output.last_hidden_state, states


def _refuse_non_finite(model: nn.Module, role: str) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise CheckpointError(f"the {role}'s {name} holds NaN or infinity: take an undamaged checkpoint")


def _dtype(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters only: rotary frequencies are buffers, and wrong in bf16."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
