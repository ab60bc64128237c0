"""Interface of losses that need no more of the teacher than its stored signals, and the KL to them.

Signals are weights w of some ids. Drawn ids: KL = log z - sum(w s) - H, whose gradient softmax(s) - w is that of the
KL to the teacher on average. Most probable ids: KL over these and, as one event more, all others together.
"""

# N token, K stored id, V vocab, C one chunk of it

import math
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from minitron_cli.model.softmax import OnlineSoftmax

if TYPE_CHECKING:
    from torch import Tensor

    from minitron_cli.distill.losses.base import TeacherLoss
    from minitron_cli.distill.losses.two_pass import TwoPass
    from minitron_cli.signals.rows import SignalRows

NEVER = -1e30  # a logit of probability 0; finite, so that differences of two are no NaN


@runtime_checkable
class SignalLoss(Protocol):
    """A loss that can be computed from signals."""

    @property
    def kind(self) -> str: ...

    @property
    def weight(self) -> float: ...

    @property
    def temperature(self) -> float: ...

    def value_and_grad_of_signals(self, student_NV: "Tensor", signals: "SignalRows") -> "tuple[Tensor, Tensor]":
        """Each token's loss [N] and its gradient with respect to the student's logits, which it overwrites."""

    def signals_by_vocab(self, zeros_N1: "Tensor", signals: "SignalRows") -> "TwoPass":
        """Both passes of the low-memory mode over N tokens."""


def kl_and_grad(student_NV: "Tensor", signals: "SignalRows") -> "tuple[Tensor, Tensor]":
    """KL to the signals [N] and its gradient with respect to the logits [N, V], which are overwritten."""
    ids_NK, weights_NK = signals.ids_NK, signals.weights_NK.to(student_NV.dtype)
    student_NV.sub_(student_NV.amax(-1, keepdim=True))
    own_NK = student_NV.gather(1, ids_NK)
    if not signals.has_rest:
        z_N1 = student_NV.exp_().sum(-1, keepdim=True)
        grad_NV = student_NV.div_(z_N1).scatter_add_(1, ids_NK, -weights_NK)
        return _drawn(z_N1.log(), own_NK, signals), grad_NV
    exp_NV = student_NV.scatter_(1, ids_NK, NEVER).exp_()  # without the ids, whose sum would cancel the others
    rest_N1, own_exp_NK = exp_NV.sum(-1, keepdim=True), own_NK.exp()
    z_N1 = rest_N1 + own_exp_NK.sum(-1, keepdim=True)
    left_N1 = _left(weights_NK, signals)
    share_N1 = left_N1 / _positive(rest_N1)
    grad_NV = exp_NV.mul_(1 / z_N1 - share_N1).scatter_(1, ids_NK, own_exp_NK / z_N1 - weights_NK)
    return _with_rest(z_N1.log(), own_NK, rest_N1.log(), weights_NK, left_N1), grad_NV


def _positive(sum_N1: "Tensor") -> "Tensor":
    import torch

    return sum_N1.clamp(min=torch.finfo(sum_N1.dtype).tiny)


def _left(weights_NK: "Tensor", signals: "SignalRows") -> "Tensor":
    """Probability of all ids that are not stored, [N, 1]."""
    left_N1 = (1 - weights_NK.sum(-1, keepdim=True)).clamp_(min=0)
    return left_N1 if weights_NK.shape[1] < signals.vocab else left_N1.zero_()


def _drawn(log_z_N1: "Tensor", own_NK: "Tensor", signals: "SignalRows") -> "Tensor":
    """KL to drawn ids from the student's normalizer and its logits of the ids, [N]."""
    assert signals.entropy_N is not None
    cross_N = (signals.weights_NK.to(own_NK.dtype) * own_NK).sum(-1)
    return log_z_N1[:, 0] - cross_N - signals.entropy_N.to(own_NK.dtype)


def _with_rest(
    log_z_N1: "Tensor", own_NK: "Tensor", log_rest_N1: "Tensor", weights_NK: "Tensor", left_N1: "Tensor"
) -> "Tensor":
    """KL over the stored ids and all others as one event, whose logit is `log_rest_N1`, [N]."""
    import torch

    p_NE = torch.cat([weights_NK, left_N1], -1)
    least = math.log(torch.finfo(p_NE.dtype).tiny)  # so that an underflow is no infinite loss
    own_NE = torch.cat([own_NK - log_z_N1, (log_rest_N1 - log_z_N1).clamp(min=least)], -1)
    return (torch.xlogy(p_NE, p_NE) - p_NE * own_NE).sum(-1)


class SignalPasses:
    """KL to signals, of logits divided by the temperature that come one chunk of the vocabulary at a time."""

    def __init__(self, loss: "TeacherLoss", zeros_N1: "Tensor", signals: "SignalRows") -> None:
        import torch

        self.loss, self.signals, self.weights_NK = loss, signals, signals.weights_NK.to(zeros_N1.dtype)
        self.others = OnlineSoftmax(zeros_N1)  # of all ids, or of those that are not stored
        self.own_NK, self.left_N1 = torch.zeros_like(self.weights_NK), _left(self.weights_NK, signals)

    def read_(self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int) -> None:
        self.loss.soften_(student_NC)
        at_NK, inside_NK = self._own(student_NC, first)
        found_NK = student_NC.gather(1, at_NK)
        self.own_NK += found_NK * inside_NK
        if self.signals.has_rest:
            student_NC.scatter_reduce_(1, at_NK, found_NK.masked_fill(inside_NK, NEVER), "amin")
        self.others.read_(student_NC)

    def values(self) -> "Tensor":
        log_z_N1, others_N1 = self._log_z_N1(), self.others.log_z_N1
        has_rest = self.signals.has_rest
        kl_N = (
            _with_rest(log_z_N1, self.own_NK, others_N1, self.weights_NK, self.left_N1)
            if has_rest
            else _drawn(log_z_N1, self.own_NK, self.signals)
        )
        return kl_N * self.loss.temperature**2

    def _log_z_N1(self) -> "Tensor":
        """Log of the normalizer of all ids."""
        log_z_N1 = self.others.log_z_N1
        return log_z_N1.logaddexp(self.own_NK.logsumexp(-1, keepdim=True)) if self.signals.has_rest else log_z_N1

    def grad_(
        self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int
    ) -> "Tensor":
        self.loss.soften_(student_NC)
        at_NK, inside_NK = self._own(student_NC, first)
        own_NK, log_z_N1 = self.weights_NK, self._log_z_N1()
        if self.signals.has_rest:
            p_NC = (student_NC - log_z_N1).exp_()
            # Each other id's share of what is left; 1 - sum(w) of it belongs to the teacher.
            rest_NC = student_NC.sub_(self.others.log_z_N1).clamp_(max=0).exp_().mul_(self.left_N1)
            own_NK = own_NK - rest_NC.gather(1, at_NK)
            p_NC.sub_(rest_NC)
        else:
            p_NC = student_NC.sub_(log_z_N1).exp_()
        grad_NC = p_NC.scatter_add_(1, at_NK, -own_NK * inside_NK)
        return grad_NC if self.loss.temperature == 1 else grad_NC.mul_(self.loss.temperature)

    def _own(self, student_NC: "Tensor", first: int) -> "tuple[Tensor, Tensor]":
        """Place of each id in the chunk, [N, K], clamped, and whether the id is in the chunk."""
        at_NK, last = self.signals.ids_NK - first, student_NC.shape[1] - 1
        return at_NK.clamp(0, last), (at_NK >= 0) & (at_NK <= last)
