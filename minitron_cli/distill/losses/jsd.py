"""Generalized Jensen-Shannon divergence: both models against the mixture of their distributions."""

# N token, V vocab

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from minitron_cli.distill.losses.base import TeacherLoss
from minitron_cli.figures import Figure

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_LOG_RATIO = 80.0  # exp of it is within fp32; a student's probability e**80 below the teacher's is 0


class JSD(TeacherLoss):
    """beta KL(teacher || m) + (1 - beta) KL(student || m) in nats, with m = beta teacher + (1 - beta) student.

    Times temperature squared (Agarwal et al. 2024, eq. 1). Bounded, and between the two KLs: divided by beta it becomes
    forward KL as beta goes to 0, and divided by 1 - beta reverse KL as beta goes to 1.
    """

    kind: Literal["jsd"] = "jsd"
    figure: ClassVar[Figure] = Figure("Jensen-Shannon divergence", "nats/token", better="lower")
    beta: float = Field(0.5, gt=0, lt=1)
    """The teacher's share of the mixture."""

    def value_and_grad(
        self, student_NV: "Tensor", teacher_NV: "Tensor | None", labels_N: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Each token's loss [N] and its gradient with respect to the student's logits [N, V]. Overwrites both logits.

        The gradient is temperature * (1 - beta) * p_student * (log(p_student / m) - KL(student || m)).
        """
        assert teacher_NV is not None
        beta = self.beta
        log_student_NV, log_teacher_NV = (self._log_softmax_(logits_NV) for logits_NV in (student_NV, teacher_NV))
        ratio_NV = (log_teacher_NV - log_student_NV).clamp_(max=LARGEST_LOG_RATIO)  # log(teacher / student)
        over_NV = ratio_NV.expm1().mul_(beta).log1p_().neg_()  # log(student / m)
        p_NV = log_student_NV.exp_()
        student_N1 = (p_NV * over_NV).sum(-1, keepdim=True)
        teacher_N1 = ratio_NV.add_(over_NV).mul_(log_teacher_NV.exp_()).sum(-1, keepdim=True)
        value_N1 = beta * teacher_N1 + (1 - beta) * student_N1
        grad_NV = p_NV.mul_(over_NV.sub_(student_N1)).mul_(self.temperature * (1 - beta))
        return value_N1[:, 0] * self.temperature**2, grad_NV

    def _log_softmax_(self, logits_NV: "Tensor") -> "Tensor":
        self.soften_(logits_NV)
        logits_NV.sub_(logits_NV.amax(-1, keepdim=True))
        return logits_NV.sub_(logits_NV.exp().sum(-1, keepdim=True).log_())
