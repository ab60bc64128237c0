"""Forward KL: the student learns to give every token the probability that the teacher gives it."""

# N token, V vocab, C one chunk of it

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.distill.losses.base import TeacherLoss
from minitron_cli.distill.losses.from_signals import SignalPasses, kl_and_grad
from minitron_cli.figures import Figure
from minitron_cli.model.softmax import OnlineSoftmax

if TYPE_CHECKING:
    from torch import Tensor

    from minitron_cli.signals.rows import SignalRows


class ForwardKL(TeacherLoss):
    """KL(teacher || student) in nats per token, times temperature squared (Hinton et al. 2015, sec. 2).

    Alone it beat every mixture with cross-entropy and every other loss on logits (Muralidharan et al. 2024, table 16).
    """

    kind: Literal["forward_kl"] = "forward_kl"
    figure: ClassVar[Figure] = Figure("forward KL to the teacher", "nats/token", better="lower")

    def value_and_grad(
        self, student_NV: "Tensor", teacher_NV: "Tensor | None", labels_N: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Each token's loss [N] and its gradient with respect to the student's logits [N, V]. Overwrites both logits.

        The gradient is temperature * (p_student - p_teacher).
        """
        assert teacher_NV is not None
        self.soften_(student_NV, teacher_NV)
        # With each row's maximum subtracted, KL = sum(p_t (t - s)) - log z_t + log z_s: no term is much larger than KL,
        # so fp32 loses no digits to cancellation.
        p_NV = teacher_NV.sub_(teacher_NV.amax(-1, keepdim=True)).exp()
        z_teacher_N1 = p_NV.sum(-1, keepdim=True)
        student_NV.sub_(student_NV.amax(-1, keepdim=True))
        cross_N = teacher_NV.sub_(student_NV).mul_(p_NV).sum(-1) / z_teacher_N1[:, 0]
        z_student_N1 = student_NV.exp_().sum(-1, keepdim=True)
        kl_N = cross_N + (z_student_N1 / z_teacher_N1).log_()[:, 0]
        grad_NV = student_NV.mul_(self.temperature / z_student_N1).addcmul_(p_NV, -self.temperature / z_teacher_N1)
        return kl_N * self.temperature**2, grad_NV

    def by_vocab(self, zeros_N1: "Tensor") -> "ForwardKLPasses":
        return ForwardKLPasses(self, zeros_N1)

    def value_and_grad_of_signals(self, student_NV: "Tensor", signals: "SignalRows") -> "tuple[Tensor, Tensor]":
        """The same of the teacher's stored signals."""
        self.soften_(student_NV)
        kl_N, grad_NV = kl_and_grad(student_NV, signals)
        return kl_N * self.temperature**2, grad_NV if self.temperature == 1 else grad_NV.mul_(self.temperature)

    def signals_by_vocab(self, zeros_N1: "Tensor", signals: "SignalRows") -> SignalPasses:
        return SignalPasses(self, zeros_N1, signals)


class ForwardKLPasses:
    """KL = E_teacher[t - s] - log z_t + log z_s, of logits divided by the temperature."""

    def __init__(self, loss: ForwardKL, zeros_N1: "Tensor") -> None:
        self.loss = loss
        self.student, self.teacher = OnlineSoftmax(zeros_N1), OnlineSoftmax(zeros_N1)

    def read_(self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int) -> None:
        assert teacher_NC is not None
        self.loss.soften_(student_NC, teacher_NC)
        self.teacher.read_(teacher_NC, teacher_NC - student_NC)
        self.student.read_(student_NC)

    def values(self) -> "Tensor":
        kl_N1 = self.teacher.mean_N1 - self.teacher.log_z_N1 + self.student.log_z_N1
        return kl_N1[:, 0] * self.loss.temperature**2

    def grad_(
        self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int
    ) -> "Tensor":
        assert teacher_NC is not None
        self.loss.soften_(student_NC, teacher_NC)
        p_student_NC = student_NC.sub_(self.student.log_z_N1).exp_()
        grad_NC = p_student_NC.sub_(teacher_NC.sub_(self.teacher.log_z_N1).exp_())
        return grad_NC if self.loss.temperature == 1 else grad_NC.mul_(self.loss.temperature)
