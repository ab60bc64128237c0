"""Losses on logits for a chunk of the vocabulary at a time, in two passes: the low-memory mode.

The first pass accumulates each token's sums over the vocabulary. The second recomputes the same logits and, from them
and the sums, the gradient. Besides the gradients only a few blocks of logits are held, which fit in a cache whatever
the vocabulary and the batch are. The cost is each model's product with its head a second time.
"""

# N token, B token of one block, C one chunk of the vocab, V vocab, L loss

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minitron_cli.distill.fused.combine import to_overwrite, weighted_sum_
from minitron_cli.distill.fused.head_matmul import Gradients, Logits, parts, through_head_
from minitron_cli.distill.losses.from_signals import SignalLoss
from minitron_cli.distill.losses.two_pass import TwoPass, TwoPassLoss
from minitron_cli.model.softmax import chunk_entries
from minitron_cli.signals.rows import SignalRows

TOKENS = {"cpu": 512, "accelerator": 2048}
VOCAB = {where: chunk_entries(where) for where in TOKENS}
"""Sizes of a block of logits: it fits a CPU core's cache, or fills an accelerator."""


class _Chunk(NamedTuple):
    """Logits of one block of tokens for one chunk of the vocabulary."""

    vocab: slice
    product_BC: Tensor
    """The student's product with its head; its logits may share this memory."""
    student_BC: Tensor
    slope_BC: Tensor | None
    teacher_BC: Tensor | None


def run(
    losses: Sequence[TwoPassLoss],
    student: Logits,
    teacher: Logits | None,
    labels_N: Tensor | None,
    gradients: Gradients,
    chunk_tokens: int | None,
    signals: SignalRows | None = None,
) -> Tensor:
    """Each token's losses, [L, N]; adds their gradients to `gradients`, in a second pass only if any is wanted.

    `signals` stand for the teacher.
    """
    where, count = "cpu" if student.hidden_ND.device.type == "cpu" else "accelerator", len(student.hidden_ND)
    values_LN = student.hidden_ND.new_empty((len(losses), count), dtype=student.acc_dtype)
    for tokens in parts(count, chunk_tokens or TOKENS[where]):
        values_LN[:, tokens] = _Block(losses, student, teacher, labels_N, signals, tokens, VOCAB[where]).run(gradients)
    return values_LN


def _passes(loss: TwoPassLoss, zeros_B1: Tensor, signals_B: SignalRows | None) -> TwoPass:
    if signals_B is not None and isinstance(loss, SignalLoss):
        return loss.signals_by_vocab(zeros_B1, signals_B)
    return loss.by_vocab(zeros_B1)


class _Block:
    def __init__(
        self,
        losses: Sequence[TwoPassLoss],
        student: Logits,
        teacher: Logits | None,
        labels_N: Tensor | None,
        signals: SignalRows | None,
        tokens: slice,
        chunk_vocab: int,
    ) -> None:
        self.student, self.teacher, self.tokens, self.chunk_vocab = student, teacher, tokens, chunk_vocab
        self.labels_B = None if labels_N is None else labels_N[tokens]
        zeros_B1 = student.hidden_ND.new_zeros((tokens.stop - tokens.start, 1), dtype=student.acc_dtype)
        self.weights = [loss.weight for loss in losses]
        signals_B = None if signals is None else signals.part(tokens)
        self.losses = [_passes(loss, zeros_B1, signals_B) for loss in losses]

    def run(self, gradients: Gradients) -> Tensor:
        for chunk in self._chunks():
            for loss, student_BC, teacher_BC in to_overwrite(self.losses, chunk.student_BC, chunk.teacher_BC):
                loss.read_(student_BC, teacher_BC, self.labels_B, chunk.vocab.start)
        if gradients.wanted:
            self._add_(gradients)
        return torch.stack([loss.values() for loss in self.losses])

    def _add_(self, gradients: Gradients) -> None:
        for chunk in self._chunks():
            through_head_(chunk.product_BC, weighted_sum_(self._gradients(chunk)), chunk.slope_BC)
            gradients.add_(self.tokens, chunk.vocab, chunk.product_BC)

    def _gradients(self, chunk: _Chunk) -> Iterator[tuple[float, Tensor]]:
        weighted = list(zip(self.weights, self.losses, strict=True))
        for (weight, loss), student_BC, teacher_BC in to_overwrite(weighted, chunk.student_BC, chunk.teacher_BC):
            yield weight, loss.grad_(student_BC, teacher_BC, self.labels_B, chunk.vocab.start)

    def _chunks(self) -> Iterator[_Chunk]:
        for vocab in parts(self.student.vocab, self.chunk_vocab):
            product_BC = self.student.product_PQ(self.tokens, vocab)
            student_BC, slope_BC = self.student.finish_(product_BC)
            teacher_BC = None
            if self.teacher is not None:
                teacher_BC, _ = self.teacher.finish_(self.teacher.product_PQ(self.tokens, vocab))
            yield _Chunk(vocab, product_BC, student_BC, slope_BC, teacher_BC)
