"""Distance between two models' attention relations: similarities of tokens, not the vectors themselves.

A token's relation in one relation head is the softmax of its scaled products with the tokens up to it in its document.
The loss is KL(teacher || student) of relations, averaged over relation heads (MiniLMv2: Wang et al. 2021, eq. 5 to 7;
there over whole sequences, here over the tokens that a causal model sees). Widths and numbers of heads may differ.
Relations and their gradients are computed for some rows at a time, so those of all tokens are never held at once.
"""

# B sequence, T token, W width, R relation head, D its width, C token of one chunk, N one for each head

from typing import Any

import torch
from torch import Tensor

from minitron_cli.distill.losses.forward_kl import ForwardKL

CHUNK_BYTES = {"cpu": 4 << 20, "accelerator": 256 << 20}  # of one model's relations, all heads
NEVER = -1e30  # a logit of probability 0; finite, so that the difference of two such logits is 0 and not NaN


def relation_loss(
    student_BTW: Tensor, teacher_BTW: Tensor, heads: int, counted_BT: Tensor, document_BT: Tensor
) -> Tensor:
    """Sum over the tokens of `counted_BT`, a scalar; gradients reach the student's vectors."""
    total: Tensor = _Relation.apply(student_BTW, teacher_BTW.detach(), heads, counted_BT, document_BT)
    return total


class _Relation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_BTW: Tensor,
        teacher_BTW: Tensor,
        heads: int,
        counted_BT: Tensor,
        document_BT: Tensor,
    ) -> Tensor:
        acc_dtype = torch.promote_types(student_BTW.dtype, torch.float32)
        total, grad_BTW = student_BTW.new_zeros((), dtype=acc_dtype), student_BTW.new_zeros(student_BTW.shape)
        with torch.autocast(student_BTW.device.type, enabled=False):
            for b in range(len(student_BTW)):
                student_RTD, teacher_RTD = (_split(x_BTW[b], heads) for x_BTW in (student_BTW, teacher_BTW))
                grad_RTD = torch.zeros_like(student_RTD, dtype=acc_dtype)
                total += _add_sequence_(grad_RTD, student_RTD, teacher_RTD, counted_BT[b], document_BT[b])
                grad_BTW[b] = grad_RTD.transpose(0, 1).flatten(1)
        ctx.save_for_backward(grad_BTW)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_BTW,) = ctx.saved_tensors
        return grad_BTW * grad_outputs[0], None, None, None, None


def _split(vectors_TW: Tensor, heads: int) -> Tensor:
    return vectors_TW.unflatten(-1, (heads, -1)).transpose(0, 1).contiguous()


def _add_sequence_(
    grad_RTD: Tensor, student_RTD: Tensor, teacher_RTD: Tensor, counted_T: Tensor, document_T: Tensor
) -> Tensor:
    """Sum over one sequence's tokens; adds its gradient with respect to the student's vectors to `grad_RTD`."""
    heads, count, width = student_RTD.shape
    where = "cpu" if grad_RTD.device.type == "cpu" else "accelerator"
    size = max(1, CHUNK_BYTES[where] // (heads * count * grad_RTD.dtype.itemsize))
    total = grad_RTD.new_zeros(())
    for start in range(0, count, size):
        rows, seen = slice(start, start + size), slice(0, min(start + size, count))
        unseen_CT = _unseen(document_T, rows, seen)
        logits = [
            (x_RTD[:, rows] @ x_RTD[:, seen].mT).to(grad_RTD.dtype).div_(x_RTD.shape[-1] ** 0.5)
            for x_RTD in (student_RTD, teacher_RTD)
        ]
        student_NT, teacher_NT = (x_RCT.masked_fill_(unseen_CT, NEVER).flatten(0, 1) for x_RCT in logits)
        value_N, grad_NT = ForwardKL().value_and_grad(student_NT, teacher_NT, None)
        share_C = counted_T[rows].to(grad_RTD.dtype) / heads
        total += (value_N.view(heads, -1) * share_C).sum()
        grad_RCT = grad_NT.view_as(logits[0]).mul_(share_C[:, None] / width**0.5).to(student_RTD.dtype)
        # The product x x^T depends on the vectors twice: as the row and as the token that is compared with it.
        grad_RTD[:, rows] += grad_RCT @ student_RTD[:, seen]
        grad_RTD[:, seen] += grad_RCT.mT @ student_RTD[:, rows]
    return total


def _unseen(document_T: Tensor, rows: slice, seen: slice) -> Tensor:
    """Whether each of the `seen` tokens comes after a row's token or belongs to another document, [C, T]."""
    at_T = torch.arange(len(document_T), device=document_T.device)
    return (at_T[rows, None] < at_T[None, seen]) | (document_T[rows, None] != document_T[None, seen])
