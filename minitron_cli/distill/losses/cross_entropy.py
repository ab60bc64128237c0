"""Cross-entropy with the text's next token: conventional training, the control that distillation has to beat."""

# N token, V vocab

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from minitron_cli.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Spec):
    """-log p_student(next token) in nats per token."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    weight: float = Field(1.0, gt=0)
    """Factor of this loss in the sum."""

    needs_teacher: ClassVar[bool] = False

    def value_and_grad(
        self, student_NV: "Tensor", teacher_NV: "Tensor | None", labels_N: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Each token's loss [N], and its gradient by the student's logits [N, V]. Overwrites the student's logits."""
        assert labels_N is not None
        labels_N1 = labels_N[:, None]
        student_NV.sub_(student_NV.amax(-1, keepdim=True))
        own_N1 = student_NV.gather(1, labels_N1)
        z_N1 = student_NV.exp_().sum(-1, keepdim=True)
        grad_NV = student_NV.div_(z_N1)
        grad_NV.scatter_add_(1, labels_N1, own_N1.new_full(own_N1.shape, -1.0))
        return (z_N1.log() - own_N1)[:, 0], grad_NV
