"""Losses on logits for a chunk of tokens at a time: the fast mode.

For each chunk: both heads' logits over the whole vocabulary; then, for a few rows at a time so that they stay in cache,
every loss's value and its gradient, which overwrites the student's logits; then the chunk's part of the gradients of
the student's hidden states and its head.
"""

# N token, C token of one chunk, R row of one block, V vocab, L loss

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minitron_cli.distill.fused.combine import to_overwrite, weighted_sum_
from minitron_cli.distill.fused.head_matmul import Gradients, Logits, parts, through_head_
from minitron_cli.distill.losses.from_signals import SignalLoss

if TYPE_CHECKING:
    from minitron_cli.distill.losses import KDLoss
    from minitron_cli.signals.rows import SignalRows

CHUNK_BYTES = 256 << 20  # of logits, both models together
BLOCK_BYTES = 2 << 20  # of one model's logits in fp32: the few blocks in use share a core's cache


def run(
    losses: "Sequence[KDLoss]",
    student: Logits,
    teacher: Logits | None,
    labels_N: Tensor | None,
    gradients: Gradients,
    chunk_tokens: int | None,
    signals: "SignalRows | None" = None,
) -> Tensor:
    """Each token's losses, [L, N]; adds their gradients to `gradients`. `signals` stand for the teacher."""
    count, vocab = len(student.hidden_ND), slice(0, student.vocab)
    values_LN = student.hidden_ND.new_empty((len(losses), count), dtype=student.acc_dtype)
    for chunk in parts(count, chunk_tokens or _chunk_tokens(student, teacher)):
        student_CV = student.product_PQ(chunk, vocab)
        teacher_CV = teacher.product_PQ(chunk, vocab) if teacher else None
        labels_C = None if labels_N is None else labels_N[chunk]
        signals_C = None if signals is None else signals.part(chunk)
        for block in parts(len(student_CV), _block_rows(student)):
            values_LN[:, chunk][:, block] = _to_gradient_(
                losses,
                (student, student_CV[block]),
                None if teacher is None or teacher_CV is None else (teacher, teacher_CV[block]),
                None if labels_C is None else labels_C[block],
                None if signals_C is None else signals_C.part(block),
            )
        gradients.add_(chunk, vocab, student_CV)
    return values_LN


def _chunk_tokens(student: Logits, teacher: Logits | None) -> int:
    return max(1, CHUNK_BYTES // sum(side.vocab * side.dtype.itemsize for side in (student, teacher) if side))


def _block_rows(student: Logits) -> int:
    if student.hidden_ND.device.type != "cpu":
        return len(student.hidden_ND)  # smaller blocks gain nothing in an accelerator's caches and cost kernel launches
    return max(1, BLOCK_BYTES // (student.vocab * student.acc_dtype.itemsize))


def _to_gradient_(
    losses: "Sequence[KDLoss]",
    student: tuple[Logits, Tensor],
    teacher: tuple[Logits, Tensor] | None,
    labels_R: Tensor | None,
    signals_R: "SignalRows | None",
) -> Tensor:
    """Losses of a few tokens, [L, R]. Overwrites the student's products with the gradient of their weighted sum."""
    head, product_RV = student
    student_RV, slope_RV = head.finish_(product_RV)
    teacher_RV = None if teacher is None else teacher[0].finish_(teacher[1])[0]
    values = []

    def gradients() -> Iterator[tuple[float, Tensor]]:
        for loss, own_RV, its_teacher_RV in to_overwrite(losses, student_RV, teacher_RV):
            if signals_R is not None and isinstance(loss, SignalLoss):
                value_R, grad_RV = loss.value_and_grad_of_signals(own_RV, signals_R)
            else:
                value_R, grad_RV = loss.value_and_grad(own_RV, its_teacher_RV, labels_R)
            values.append(value_R)
            yield loss.weight, grad_RV

    through_head_(product_RV, weighted_sum_(gradients()), slope_RV)
    return torch.stack(values)
