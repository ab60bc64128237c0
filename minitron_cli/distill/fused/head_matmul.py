"""Matrix products of hidden states with an LM head, forward and backward, for a part of tokens x vocabulary at a time.

Products are computed in the head's precision, or autocast's; sums are accumulated in fp32 (fp64 for fp64 weights).
"""

# N token, D hidden, V vocab, P token of one part, Q entry of the vocab of one part

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minitron_cli import stopping
from minitron_cli.model.lm_head import Head

SLAB = 1024  # rows per product, few enough that the low-precision result is still in cache when it is added


class HeadInput(NamedTuple):
    """One model's last hidden states and its LM head."""

    hidden_ND: Tensor
    head: Head

    @property
    def vocab(self) -> int:
        """Entries of the head."""
        return len(self.head.weight_VD)

    def first(self, count: int) -> "HeadInput":
        """The same hidden states with the first entries of the head."""
        return HeadInput(self.hidden_ND, self.head.first(count))

    def rows(self, rows_N: Tensor) -> "HeadInput":
        """The hidden states at these positions, with the same head."""
        return HeadInput(self.hidden_ND.index_select(0, rows_N), self.head)


def parts(stop: int, size: int) -> Iterator[slice]:
    """Slices of `size` from 0 to `stop`; the last may be shorter."""
    return (slice(start, min(start + size, stop)) for start in range(0, stop, size))


class Logits:
    """One model's logits, a part at a time; all parts share one buffer, so that none is allocated anew."""

    def __init__(self, side: HeadInput) -> None:
        head, device = side.head, side.head.weight_VD.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else head.weight_VD.dtype
        self.acc_dtype = torch.promote_types(self.dtype, torch.float32)
        self.hidden_ND = side.hidden_ND.detach().to(self.dtype)
        self.head = head
        self.vocab = len(head.weight_VD)
        self._buffer = head.weight_VD.new_empty(0, dtype=self.dtype)
        self._at, self._weight_QD = slice(0), head.weight_VD.detach()[:0]

    def weight_QD(self, vocab: slice) -> Tensor:
        """Rows of the head's weight in the dtype of the products, [Q, D]. Cached, so that all tokens share one cast."""
        if vocab != self._at:
            self._at, self._weight_QD = vocab, self.head.weight_VD.detach()[vocab].to(self.dtype)
        return self._weight_QD

    def product_PQ(self, tokens: slice, vocab: slice) -> Tensor:
        """hidden @ weight.T + bias, [P, Q]; valid until the next call, which reuses its memory.

        Interrupted if a stop was requested.
        """
        stopping.raise_if_stopped()
        hidden_PD, weight_QD = self.hidden_ND[tokens], self.weight_QD(vocab)
        size = len(hidden_PD) * len(weight_QD)
        if len(self._buffer) < size:
            self._buffer = self._buffer.new_empty(size)
        out_PQ = self._buffer[:size].view(len(hidden_PD), len(weight_QD))
        if self.head.bias_V is None:
            return torch.mm(hidden_PD, weight_QD.T, out=out_PQ)
        return torch.addmm(self.head.bias_V.detach()[vocab].to(self.dtype), hidden_PD, weight_QD.T, out=out_PQ)

    def finish_(self, product: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of a product, and d logits / d (scale * product); None where that is 1 because there is no soft cap.

        logits = softcap * tanh(scale * product / softcap), whose slope is 1 - tanh**2. Both are in the accumulation
        dtype; the logits take the product's memory if it has that dtype.
        """
        raw, head = product.to(self.acc_dtype), self.head
        if head.softcap is None:
            return raw if head.scale == 1 else raw.mul_(head.scale), None
        raw.mul_(head.scale / head.softcap).tanh_()
        slope = raw.square().neg_().add_(1)
        return raw.mul_(head.softcap), slope


def through_head_(product: Tensor, grad: Tensor, slope: Tensor | None) -> None:
    """Overwrite the product with the gradient with respect to scale * product, given that of the logits."""
    if slope is not None:
        grad.mul_(slope)
    if grad.data_ptr() != product.data_ptr():
        product.copy_(grad)


class Gradients:
    """Gradients of hidden states, head weight and head bias, summed over all parts; only those that are wanted."""

    def __init__(self, student: Logits, count: int, wanted: Sequence[bool]) -> None:
        self.student, self.factor = student, student.head.scale / count
        hidden, weight, bias = wanted
        new = student.head.weight_VD.new_zeros
        self.hidden_ND = new(student.hidden_ND.shape, dtype=student.acc_dtype) if hidden else None
        self.weight_VD = new(student.head.weight_VD.shape, dtype=student.acc_dtype) if weight else None
        self.bias_V = new(student.vocab, dtype=student.acc_dtype) if bias else None

    @property
    def wanted(self) -> bool:
        """Whether any gradient is wanted."""
        return any(gradient is not None for gradient in self.sums)

    @property
    def sums(self) -> list[Tensor | None]:
        """Gradients in the order of `_Fused.forward`'s inputs; None for those not wanted."""
        return [self.hidden_ND, self.weight_VD, self.bias_V]

    def add_(self, tokens: slice, vocab: slice, grad_PQ: Tensor) -> None:
        """Add one part: its gradient with respect to scale * product, in the dtype of the products.

        Interrupted if a stop was requested.
        """
        stopping.raise_if_stopped()
        if self.hidden_ND is not None:
            _add_product_(self.hidden_ND[tokens], grad_PQ, self.student.weight_QD(vocab), self.factor)
        if self.weight_VD is not None:
            _add_product_(self.weight_VD[vocab], grad_PQ.T, self.student.hidden_ND[tokens], self.factor)
        if self.bias_V is not None:
            self.bias_V[vocab].add_(grad_PQ.sum(0, dtype=self.bias_V.dtype), alpha=self.factor)


def _add_product_(sum_XD: Tensor, grad_XY: Tensor, other_YD: Tensor, factor: float) -> None:
    if grad_XY.dtype == sum_XD.dtype:
        sum_XD.addmm_(grad_XY, other_YD, alpha=factor)
        return
    # A bf16 product is added to an fp32 sum: of its 8 bits, few would survive the addition of 16 parts in bf16.
    size = SLAB if sum_XD.device.type == "cpu" else len(sum_XD)
    for slab in parts(len(sum_XD), size):
        sum_XD[slab].add_(grad_XY[slab] @ other_YD, alpha=factor)
