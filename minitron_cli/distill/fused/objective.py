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
from minitron_cli.errors import CheckpointError
from minitron_cli.model.lm_head import Head

if TYPE_CHECKING:
    from minitron_cli.distill.losses import KDLoss

__all__ = ["HeadInput", "Objective", "check_vocab", "fused_objective"]


class Objective(NamedTuple):
    """Means over the scored tokens."""

    total: Tensor
    """Weighted sum of the losses, a scalar with gradients."""
    each_L: Tensor
    """Each loss without its weight; detached."""


def check_vocab(
    teacher_config: Any, student_config: Any, teacher_tokenizer_key: str | None, student_tokenizer_key: str | None
) -> None:
    """CheckpointError unless entry i of both distributions is the same token. Keys hash the tokenizers; None skips."""
    sizes = teacher_config.get_text_config().vocab_size, student_config.get_text_config().vocab_size
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"the teacher's vocabulary has {sizes[0]:,} entries and the student's {sizes[1]:,}: "
            "distill from the model that the student was pruned from"
        )
    keys = teacher_tokenizer_key, student_tokenizer_key
    if None not in keys and keys[0] != keys[1]:
        raise CheckpointError(
            "the teacher's tokenizer is not the student's: distill from the model that the student was pruned from"
        )


def fused_objective(
    losses: "Sequence[KDLoss]",
    student: HeadInput,
    teacher: HeadInput | None,
    labels_N: Tensor | None,
    mask_N: Tensor | None = None,
    count: int | None = None,
    chunk_tokens: int | None = None,
    *,
    low_memory: bool = False,
) -> Objective:
    """Means of `losses` over the scored tokens. Gradients are already computed; the backward pass hands them over.

    Gradients reach the student's hidden states and its head (weight and bias), and nothing of the teacher. `mask_N`
    selects the scored tokens (default: all). The sum is divided by `count` (default: the tokens scored here); give the
    whole batch's count for a part of a batch, so that the parts' gradients add up to the batch's. Inside
    `torch.autocast` the heads' products run in its dtype; softmax, losses and sums always run in fp32 (fp64 for fp64
    weights). `low_memory` holds a part of the vocabulary at a time and computes the logits twice; every loss must be a
    `TwoPassLoss`.
    """
    if mask_N is not None:
        rows_N = mask_N.nonzero()[:, 0].to(student.hidden_ND.device)
        labels_N = None if labels_N is None else labels_N.index_select(0, rows_N)
        student, teacher = student.rows(rows_N), teacher and teacher.rows(rows_N)
    if not any(loss.needs_teacher for loss in losses):
        teacher = None
    count = count or len(student.hidden_ND)
    job = _Job(tuple(losses), student.head, teacher, labels_N, count, chunk_tokens, low_memory)
    head, with_gradients = student.head, torch.is_grad_enabled()  # inside forward it is always off
    return Objective(*_Fused.apply(student.hidden_ND, head.weight_VD, head.bias_V, job, with_gradients))


@dataclass(frozen=True)
class _Job:
    """Arguments that are not differentiated."""

    losses: "tuple[KDLoss, ...]"
    student_head: Head
    teacher: HeadInput | None
    labels_N: Tensor | None
    count: int
    chunk_tokens: int | None
    low_memory: bool

    def run(self, student: Logits, teacher: Logits | None, gradients: Gradients) -> Tensor:
        """Each token's losses, [L, N]; adds their gradients."""
        if not self.low_memory:
            return token_chunks.run(self.losses, student, teacher, self.labels_N, gradients, self.chunk_tokens)
        losses = [loss for loss in self.losses if isinstance(loss, TwoPassLoss)]
        assert len(losses) == len(self.losses)
        return vocab_chunks.run(losses, student, teacher, self.labels_N, gradients, self.chunk_tokens)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job, with_gradients: bool
    ) -> tuple[Tensor, Tensor]:
        student = Logits(HeadInput(hidden_ND, job.student_head._replace(weight_VD=weight_VD, bias_V=bias_V)))
        teacher = job.teacher and Logits(job.teacher)
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        gradients = Gradients(student, job.count, wanted)
        with torch.autocast(weight_VD.device.type, enabled=False):  # all casts here are explicit
            each_L = job.run(student, teacher, gradients).sum(1) / job.count
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
