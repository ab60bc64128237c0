"""The losses on logits, fused with both LM heads: a chunk of tokens at a time, gradients on the way forward.

At no time are there logits of all tokens. For one chunk of C tokens: both heads' logits [C, V]; then, a few rows at a
time so that they stay in cache, every loss's value and its gradient, which takes the place of the student's logits;
then the chunk's share of the gradients by the student's hidden states and by its head. The losses know nothing of
this (`losses/`), and this knows nothing of any one of them.
"""

# N counted token, C token of one chunk, R row of one block, D hidden, V vocab, L loss

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from minitron_cli.errors import CheckpointError
from minitron_cli.model.nll import Head

if TYPE_CHECKING:
    from minitron_cli.distill.losses import KDLoss

CHUNK_BYTES = 256 << 20  # of logits, both models together
BLOCK_BYTES = 2 << 20  # of one model's logits in fp32: the few blocks in use share a core's cache
SLAB = 1024  # rows of the head's gradient whose low-precision product is still in cache when it is added


class Side(NamedTuple):
    """One model's last hidden states, and its head."""

    hidden_ND: Tensor
    head: Head

    def rows(self, rows_N: Tensor) -> "Side":
        return Side(self.hidden_ND.index_select(0, rows_N), self.head)


class Objective(NamedTuple):
    total: Tensor
    """Scalar, the weighted sum of the losses; has gradients."""
    each_L: Tensor
    """Every loss's own mean, without its weight; detached."""


def check_vocab(
    teacher_config: Any, student_config: Any, teacher_tokenizer_key: str | None, student_tokenizer_key: str | None
) -> None:
    """CheckpointError unless entry i of both distributions is the same token. A key of None is not compared."""
    sizes = teacher_config.get_text_config().vocab_size, student_config.get_text_config().vocab_size
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"the teacher's vocabulary has {sizes[0]:,} entries and the student's {sizes[1]:,}: "
            "distil from the model that the student was cut from"
        )
    keys = teacher_tokenizer_key, student_tokenizer_key
    if None not in keys and keys[0] != keys[1]:
        raise CheckpointError(
            "the teacher's tokenizer is not the student's: distil from the model that the student was cut from"
        )


def fused_objective(
    losses: "Sequence[KDLoss]",
    student: Side,
    teacher: Side | None,
    labels_N: Tensor | None,
    mask_N: Tensor | None = None,
    count: int | None = None,
    chunk_tokens: int | None = None,
) -> Objective:
    """The mean of `losses` over the counted tokens; its backward pass is done by the time it returns.

    Gradients reach the student's hidden states and its head (weight and bias), nothing of the teacher. `mask_N` says
    which tokens count (all). `count` is what to divide the sum by (the tokens counted here); give the whole batch's
    when this is a part of it, then the parts' gradients add up to the batch's. Inside `torch.autocast` the heads'
    products run in its dtype; softmax, losses and sums are in fp32 always (fp64 for fp64 weights).
    """
    if mask_N is not None:
        rows_N = mask_N.nonzero()[:, 0].to(student.hidden_ND.device)
        labels_N = None if labels_N is None else labels_N.index_select(0, rows_N)
        student, teacher = student.rows(rows_N), teacher and teacher.rows(rows_N)
    if not any(loss.needs_teacher for loss in losses):
        teacher = None
    job = _Job(tuple(losses), student.head, teacher, labels_N, count or len(student.hidden_ND), chunk_tokens)
    head, with_gradients = student.head, torch.is_grad_enabled()  # which is off inside forward, always
    return Objective(*_Fused.apply(student.hidden_ND, head.weight_VD, head.bias_V, job, with_gradients))


@dataclass(frozen=True)
class _Job:
    """All that is not differentiated."""

    losses: "tuple[KDLoss, ...]"
    student_head: Head
    teacher: Side | None
    labels_N: Tensor | None
    count: int
    chunk_tokens: int | None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, job: _Job, with_gradients: bool
    ) -> tuple[Tensor, Tensor]:
        student = _Logits(hidden_ND, Head(weight_VD, bias_V))
        teacher = job.teacher and _Logits(*job.teacher)
        wanted = [with_gradients and needed for needed in ctx.needs_input_grad[:3]]
        gradients = _Gradients(student, job.student_head.scale / job.count, wanted)
        with torch.autocast(weight_VD.device.type, enabled=False):  # every cast below is written out
            values_LN = _run(job, student, teacher, gradients)
            each_L = values_LN.sum(1) / job.count
            total = (each_L * each_L.new_tensor([loss.weight for loss in job.losses])).sum()
        ctx.gradients = gradients.take()
        ctx.mark_non_differentiable(each_L)
        return total, each_L

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # Handed over, not kept: autograd then takes the buffers as they are instead of copying [V, D].
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the fused objective gives its gradients away: call backward once")
        if grad_outputs[0] != 1:
            gradients = [None if g is None else g.mul_(grad_outputs[0]) for g in gradients]
        return (*gradients, None, None)


def _run(job: _Job, student: "_Logits", teacher: "_Logits | None", gradients: "_Gradients") -> Tensor:
    """Every token's losses, [L, N]; the gradients are added up on the way."""
    count = len(student.hidden_ND)
    values_LN = student.weight_VD.new_empty((len(job.losses), count), dtype=student.acc_dtype)
    row_bytes = student.row_bytes + (teacher.row_bytes if teacher else 0)
    for chunk in _slices(count, job.chunk_tokens or max(1, CHUNK_BYTES // row_bytes)):
        student_CV = student.chunk(chunk)
        teacher_CV = teacher.chunk(chunk) if teacher else None
        labels_C = None if job.labels_N is None else job.labels_N[chunk]
        for block in _slices(len(student_CV), _block_rows(student)):
            values_LN[:, chunk][:, block] = _to_gradient_(
                job,
                student_CV[block],
                None if teacher_CV is None else teacher_CV[block],
                None if labels_C is None else labels_C[block],
            )
        gradients.add_(chunk, student_CV)
    return values_LN


def _slices(stop: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, stop)) for start in range(0, stop, size))


def _block_rows(student: "_Logits") -> int:
    if student.weight_VD.device.type != "cpu":
        return len(student.hidden_ND)  # an accelerator gains nothing from its caches here, and loses to launches
    return max(1, BLOCK_BYTES // (len(student.weight_VD) * student.acc_dtype.itemsize))


def _to_gradient_(job: _Job, student_RV: Tensor, teacher_RV: Tensor | None, labels_R: Tensor | None) -> Tensor:
    """The losses of a few tokens, [L, R]. Writes the gradient of their weighted sum over the student's raw logits."""
    acc_dtype = torch.promote_types(student_RV.dtype, torch.float32)
    logits_RV, slope_RV = _finish_(student_RV.to(acc_dtype), job.student_head)  # the same memory, if fp32 already
    if teacher_RV is not None and job.teacher is not None:
        teacher_RV, _ = _finish_(teacher_RV.to(acc_dtype), job.teacher.head)
    values_LR, grad_RV = _weighted_sum_(job.losses, logits_RV, teacher_RV, labels_R)
    if slope_RV is not None:
        grad_RV.mul_(slope_RV)
    if grad_RV.data_ptr() != student_RV.data_ptr():
        student_RV.copy_(grad_RV)
    return values_LR


def _finish_(raw_RV: Tensor, head: Head) -> tuple[Tensor, Tensor | None]:
    """The logits in the place of the head's bare product, and d logits / d (scale * product) where that is not 1."""
    if head.softcap is None:
        return raw_RV if head.scale == 1 else raw_RV.mul_(head.scale), None
    raw_RV.mul_(head.scale / head.softcap).tanh_()
    slope_RV = raw_RV.square().neg_().add_(1)
    return raw_RV.mul_(head.softcap), slope_RV


def _weighted_sum_(
    losses: "Sequence[KDLoss]", student_RV: Tensor, teacher_RV: Tensor | None, labels_R: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Every loss's values [L, R] and the gradient of their weighted sum [R, V]. Overwrites the logits."""
    values, sum_RV = [], None
    for left, loss in zip(reversed(range(len(losses))), losses, strict=True):
        own_RV = student_RV.clone() if left else student_RV  # a loss overwrites what it is given
        its_teacher_RV = teacher_RV.clone() if left and teacher_RV is not None else teacher_RV
        value_R, grad_RV = loss.value_and_grad(own_RV, its_teacher_RV, labels_R)
        if loss.weight != 1:
            grad_RV.mul_(loss.weight)
        sum_RV = grad_RV if sum_RV is None else grad_RV.add_(sum_RV)
        values.append(value_R)
    assert sum_RV is not None
    return torch.stack(values), sum_RV


class _Logits:
    """One model's bare products hidden @ weight.T + bias, one chunk of tokens at a time, always in the same buffer."""

    def __init__(self, hidden_ND: Tensor, head: Head) -> None:
        device = head.weight_VD.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else head.weight_VD.dtype
        self.acc_dtype = torch.promote_types(self.dtype, torch.float32)
        self.hidden_ND = hidden_ND.detach()
        self.weight_VD = head.weight_VD.detach().to(self.dtype)
        self.bias_V = None if head.bias_V is None else head.bias_V.detach().to(self.dtype)
        self.row_bytes = len(self.weight_VD) * self.dtype.itemsize
        self._buffer_CV = self.weight_VD.new_empty(0, len(self.weight_VD))

    def chunk(self, chunk: slice) -> Tensor:
        """[C, V], valid until the next call."""
        hidden_CD = self.hidden_ND[chunk].to(self.dtype)
        if len(self._buffer_CV) < len(hidden_CD):
            self._buffer_CV = self.weight_VD.new_empty(len(hidden_CD), len(self.weight_VD))
        out_CV = self._buffer_CV[: len(hidden_CD)]
        if self.bias_V is None:
            return torch.mm(hidden_CD, self.weight_VD.T, out=out_CV)
        return torch.addmm(self.bias_V, hidden_CD, self.weight_VD.T, out=out_CV)


class _Gradients:
    """Sums over the chunks of the gradients by the hidden states, the head's weight and its bias: those wanted."""

    def __init__(self, student: _Logits, factor: float, wanted: Sequence[bool]) -> None:
        self.student, self.factor = student, factor
        hidden, weight, bias = wanted
        vocab, acc = len(student.weight_VD), student.acc_dtype
        self.hidden_ND = torch.empty_like(student.hidden_ND) if hidden else None
        self.weight_VD = torch.zeros_like(student.weight_VD, dtype=acc) if weight else None
        self.bias_V = student.weight_VD.new_zeros(vocab, dtype=acc) if bias else None

    def add_(self, chunk: slice, grad_CV: Tensor) -> None:
        """Take in one chunk's gradient by the bare products, before the constant factor."""
        if self.hidden_ND is not None:
            self.hidden_ND[chunk] = grad_CV @ self.student.weight_VD
        if self.weight_VD is not None:
            hidden_CD = self.student.hidden_ND[chunk].to(self.student.dtype)
            _add_product_(self.weight_VD, grad_CV.T, hidden_CD, self.factor)
        if self.bias_V is not None:
            self.bias_V.add_(grad_CV.sum(0, dtype=self.bias_V.dtype), alpha=self.factor)

    def take(self) -> list[Tensor | None]:
        """In the order of the function's inputs."""
        if self.hidden_ND is not None:
            self.hidden_ND.mul_(self.factor)
        return [self.hidden_ND, self.weight_VD, self.bias_V]


def _add_product_(sum_VD: Tensor, grad_VC: Tensor, hidden_CD: Tensor, factor: float) -> None:
    if grad_VC.dtype == sum_VD.dtype:
        sum_VD.addmm_(grad_VC, hidden_CD, alpha=factor)
        return
    # A bf16 product, added up in fp32: 16 chunks added in bf16 would keep few of its 8 bits.
    size = SLAB if sum_VD.device.type == "cpu" else len(sum_VD)
    for slab in _slices(len(sum_VD), size):
        sum_VD[slab].add_(grad_VC[slab] @ hidden_CD, alpha=factor)
