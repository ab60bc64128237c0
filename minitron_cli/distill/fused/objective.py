"""Losses on logits, fused with both LM heads: gradients are computed in the forward pass, logits never all at once.

`token_chunks` is the fast mode, `vocab_chunks` the low-memory mode. The losses (`losses/`) know nothing of the modes,
and the modes nothing of a particular loss.
"""

# N scored token, D hidden, V vocab, L loss

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli.distill.fused import token_chunks, vocab_chunks
from minitron_cli.distill.fused.head_matmul import Gradients, HeadInput, Logits
from minitron_cli.distill.losses.two_pass import TwoPassLoss
from minitron_cli.model.lm_head import Head
from minitron_cli.signals.rows import SignalRows

if TYPE_CHECKING:
    from minitron_cli.distill.losses import KDLoss

__all__ = ["HeadInput", "Objective", "fused_objective"]


class Objective(NamedTuple):
    """Means over the scored tokens."""

    total: Tensor
    """Weighted sum of the losses, a scalar with gradients."""
    each_L: Tensor
    """Each loss without its weight; detached."""


def fused_objective(
    losses: "Sequence[KDLoss]",
    student: HeadInput,
    teacher: HeadInput | SignalRows | None,
    labels_N: Tensor | None,
    mask_N: Tensor | None = None,
    count: int | None = None,
    chunk_tokens: int | None = None,
    *,
    low_memory: bool = False,
) -> Objective:
    """Means of `losses` over the scored tokens. Gradients are already computed; the backward pass hands them over.

    The teacher is its hidden states and head, or what was stored of its distributions. Gradients reach the student's
    hidden states and its head (weight and bias), and nothing of the teacher. `mask_N` selects the scored tokens
    (default: all). The sum is divided by `count` (default: the tokens scored here); give the whole batch's count for a
    part of a batch, so that the parts' gradients add up to the batch's. Inside `torch.autocast` the heads' products run
    in its dtype; softmax, losses and sums always run in fp32 (fp64 for fp64 weights). `low_memory` holds a part of the
    vocabulary at a time and computes the logits twice; every loss must be a `TwoPassLoss`. If one head has more
    entries, such as padding, the losses with a teacher compare probabilities over the entries that both have.
    """
    if mask_N is not None:
        rows_N = mask_N.nonzero()[:, 0].to(student.hidden_ND.device)
        labels_N = None if labels_N is None else labels_N.index_select(0, rows_N)
        student, teacher = student.rows(rows_N), None if teacher is None else teacher.rows(rows_N)
    if not any(loss.needs_teacher for loss in losses):
        teacher = None
    settings = _Settings(count or len(student.hidden_ND), chunk_tokens, low_memory)
    if teacher is None:
        return _means(losses, student, None, labels_N, settings)
    common = min(student.vocab, teacher.vocab)
    if common == student.vocab:
        its = teacher if isinstance(teacher, SignalRows) else teacher.first(common)
        return _means(losses, student, its, labels_N, settings)
    return _wider_student(losses, student, teacher, labels_N, settings)


@dataclass(frozen=True)
class _Settings:
    count: int
    """Tokens that sums are divided by."""
    chunk_tokens: int | None
    low_memory: bool


def _wider_student(
    losses: "Sequence[KDLoss]",
    student: HeadInput,
    teacher: HeadInput | SignalRows,
    labels_N: Tensor | None,
    settings: _Settings,
) -> Objective:
    """Means of losses with a teacher over the entries that it has, and of the others over all of the student's."""
    total, each = student.hidden_ND.new_zeros(()), dict[int, Tensor]()
    for needs_teacher in (True, False):
        some = [i for i, loss in enumerate(losses) if loss.needs_teacher is needs_teacher]
        if not some:
            continue
        own, its = (student.first(teacher.vocab), teacher) if needs_teacher else (student, None)
        found = _means([losses[i] for i in some], own, its, labels_N, settings)
        total = total + found.total
        each |= dict(zip(some, found.each_L, strict=True))
    return Objective(total, torch.stack([each[i] for i in range(len(losses))]))


def _means(
    losses: "Sequence[KDLoss]",
    student: HeadInput,
    teacher: HeadInput | SignalRows | None,
    labels_N: Tensor | None,
    settings: _Settings,
) -> Objective:
    job = _Job(tuple(losses), student.head, teacher, labels_N, settings)
    head, with_gradients = student.head, torch.is_grad_enabled()  # inside forward it is always off
    return Objective(*_Fused.apply(student.hidden_ND, head.weight_VD, head.bias_V, job, with_gradients))


@dataclass(frozen=True)
class _Job:
    """Arguments that are not differentiated."""

    losses: "tuple[KDLoss, ...]"
    student_head: Head
    teacher: HeadInput | SignalRows | None
    labels_N: Tensor | None
    settings: _Settings

    def run(self, student: Logits, teacher: Logits | None, gradients: Gradients) -> Tensor:
        """Each token's losses, [L, N]; adds their gradients."""
        size = self.settings.chunk_tokens
        signals = self.teacher if isinstance(self.teacher, SignalRows) else None
        if not self.settings.low_memory:
            return token_chunks.run(self.losses, student, teacher, self.labels_N, gradients, size, signals)
        losses = [loss for loss in self.losses if isinstance(loss, TwoPassLoss)]
        assert len(losses) == len(self.losses)
        return vocab_chunks.run(losses, student, teacher, self.labels_N, gradients, size, signals)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job, with_gradients: bool
    ) -> tuple[Tensor, Tensor]:
        student = Logits(HeadInput(hidden_ND, job.student_head._replace(weight_VD=weight_VD, bias_V=bias_V)))
        teacher = Logits(job.teacher) if isinstance(job.teacher, HeadInput) else None
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        gradients = Gradients(student, job.settings.count, wanted)
        with torch.autocast(weight_VD.device.type, enabled=False):  # all casts here are explicit
            each_L = job.run(student, teacher, gradients).sum(1) / job.settings.count
            total = (each_L * each_L.new_tensor([loss.weight for loss in job.losses])).sum()
        ctx.gradients = gradients.sums
        ctx.mark_non_differentiable(each_L)
        return total, each_L

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # Handed over, not kept: with no other reference, autograd takes the buffers instead of copying [V, D].
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the fused objective hands its gradients over: call backward once")
        if grad_outputs[0] != 1:
            gradients = [None if g is None else g.mul_(grad_outputs[0]) for g in gradients]
        return (*gradients, None, None)
