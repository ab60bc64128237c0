"""Cosine distance between the two models' probabilities."""

# N token, V vocab

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.distill.losses.base import TeacherLoss
from minitron_cli.figures import Figure

if TYPE_CHECKING:
    from torch import Tensor


class Cosine(TeacherLoss):
    """1 - cos(p_student, p_teacher), times temperature squared.

    On softmax(logits / temperature), not on logits. It came second to forward KL (Muralidharan et al. 2024, sec. 3).
    """

    kind: Literal["cosine"] = "cosine"
    figure: ClassVar[Figure] = Figure("cosine distance", better="lower")

    def value_and_grad(
        self, student_NV: "Tensor", teacher_NV: "Tensor | None", labels_N: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Each token's loss [N] and its gradient with respect to the student's logits [N, V]. Overwrites both logits.

        With unit vectors u and v along the student's and the teacher's probabilities, the loss is |u - v|**2 / 2 and
        the gradient temperature * u * (cos * u - v).
        """
        assert teacher_NV is not None
        u_NV, v_NV = self._direction_(student_NV), self._direction_(teacher_NV)
        cos_N1 = (u_NV * v_NV).sum(-1, keepdim=True)
        value_N = (u_NV - v_NV).square_().sum(-1) / 2
        grad_NV = v_NV.neg_().addcmul_(u_NV, cos_N1).mul_(u_NV).mul_(self.temperature)
        return value_N * self.temperature**2, grad_NV

    def _direction_(self, logits_NV: "Tensor") -> "Tensor":
        """Unit vector along softmax(logits / temperature), whose normalizer cancels. Overwrites the logits."""
        self.soften_(logits_NV)
        exp_NV = logits_NV.sub_(logits_NV.amax(-1, keepdim=True)).exp_()
        return exp_NV.div_(exp_NV.square().sum(-1, keepdim=True).sqrt_())
