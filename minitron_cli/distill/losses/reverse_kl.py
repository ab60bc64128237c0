"""Reverse KL: the student learns to avoid tokens that the teacher rules out; it may ignore some that it allows."""

# N token, V vocab, C one chunk of it

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.distill.losses.base import TeacherLoss
from minitron_cli.figures import Figure
from minitron_cli.model.softmax import OnlineSoftmax

if TYPE_CHECKING:
    from torch import Tensor


class ReverseKL(TeacherLoss):
    """KL(student || teacher) in nats per token, times temperature squared (Gu et al. 2024, eq. 1).

    It seeks the teacher's mode, whereas forward KL covers the whole distribution. It came second to forward KL on both
    of the paper's models (Muralidharan et al. 2024, sec. 3 and table 16).
    """

    kind: Literal["reverse_kl"] = "reverse_kl"
    figure: ClassVar[Figure] = Figure("reverse KL to the teacher", "nats/token", better="lower")

    def value_and_grad(
        self, student_NV: "Tensor", teacher_NV: "Tensor | None", labels_N: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Each token's loss [N] and its gradient with respect to the student's logits [N, V]. Overwrites both logits.

        The gradient is temperature * p_student * (log(p_student / p_teacher) - KL).
        """
        assert teacher_NV is not None
        self.soften_(student_NV, teacher_NV)
        # With each row's maximum subtracted, KL = sum(p_s (s - t)) - log z_s + log z_t: no term is much larger than KL,
        # so fp32 loses no digits to cancellation.
        student_NV.sub_(student_NV.amax(-1, keepdim=True))
        z_teacher_N1 = teacher_NV.sub_(teacher_NV.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)
        apart_NV = teacher_NV.neg_().add_(student_NV)
        p_NV = student_NV.exp_()
        z_student_N1 = p_NV.sum(-1, keepdim=True)
        mean_N1 = (p_NV * apart_NV).sum(-1, keepdim=True) / z_student_N1
        kl_N1 = mean_N1 + (z_teacher_N1 / z_student_N1).log_()
        grad_NV = p_NV.mul_(self.temperature / z_student_N1).mul_(apart_NV.sub_(mean_N1))
        return kl_N1[:, 0] * self.temperature**2, grad_NV

    def by_vocab(self, zeros_N1: "Tensor") -> "ReverseKLPasses":
        return ReverseKLPasses(self, zeros_N1)


class ReverseKLPasses:
    """KL = E_student[s - t] - log z_s + log z_t, of logits divided by the temperature."""

    def __init__(self, loss: ReverseKL, zeros_N1: "Tensor") -> None:
        self.loss = loss
        self.student, self.teacher = OnlineSoftmax(zeros_N1), OnlineSoftmax(zeros_N1)

    def read_(self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int) -> None:
        assert teacher_NC is not None
        self.loss.soften_(student_NC, teacher_NC)
        apart_NC = student_NC - teacher_NC
        self.student.read_(student_NC, apart_NC)
        self.teacher.read_(teacher_NC)

    def values(self) -> "Tensor":
        kl_N1 = self.student.mean_N1 - self.student.log_z_N1 + self.teacher.log_z_N1
        return kl_N1[:, 0] * self.loss.temperature**2

    def grad_(
        self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int
    ) -> "Tensor":
        assert teacher_NC is not None
        self.loss.soften_(student_NC, teacher_NC)
        apart_NC = teacher_NC.neg_().add_(student_NC).sub_(self.student.mean_N1)
        p_NC = student_NC.sub_(self.student.log_z_N1).exp_()
        return p_NC.mul_(apart_NC if self.loss.temperature == 1 else apart_NC.mul_(self.loss.temperature))
