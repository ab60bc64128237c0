"""Squared error between the two models' probabilities."""

# N token, V vocab

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.distill.losses.base import TeacherLoss
from minitron_cli.figures import Figure

if TYPE_CHECKING:
    from torch import Tensor


class MSE(TeacherLoss):
    """Sum over the vocabulary of (p_student - p_teacher)**2, times temperature squared.

    On softmax(logits / temperature), not on logits (Muralidharan et al. 2024, sec. 3). A sum and not a mean: for 10^5
    entries the gradient of the mean is below AdamW's epsilon. It came last of the paper's four losses on logits.
    """

    kind: Literal["mse"] = "mse"
    figure: ClassVar[Figure] = Figure("squared error of probabilities", better="lower")

    def value_and_grad(
        self, student_NV: "Tensor", teacher_NV: "Tensor | None", labels_N: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Each token's loss [N] and its gradient with respect to the student's logits [N, V]. Overwrites both logits.

        The gradient is 2 * temperature * p_student * (d - E_student[d]) with d = p_student - p_teacher.
        """
        assert teacher_NV is not None
        p_NV, teacher_NV = self._softmax_(student_NV), self._softmax_(teacher_NV)
        apart_NV = teacher_NV.neg_().add_(p_NV)
        value_N = apart_NV.square().sum(-1)
        apart_NV.sub_((p_NV * apart_NV).sum(-1, keepdim=True))
        grad_NV = p_NV.mul_(apart_NV).mul_(2 * self.temperature)
        return value_N * self.temperature**2, grad_NV

    def _softmax_(self, logits_NV: "Tensor") -> "Tensor":
        self.soften_(logits_NV)
        exp_NV = logits_NV.sub_(logits_NV.amax(-1, keepdim=True)).exp_()
        return exp_NV.div_(exp_NV.sum(-1, keepdim=True))
