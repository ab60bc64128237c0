"""Cross-entropy with the text's next token: conventional training, the control for distillation."""

# N token, V vocab, C one chunk of it

from typing import TYPE_CHECKING, ClassVar, Literal

from minitron_cli.distill.losses.base import Loss
from minitron_cli.figures import Figure
from minitron_cli.model.softmax import OnlineSoftmax

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Loss):
    """-log p_student(next token) in nats per token."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    figure: ClassVar[Figure] = Figure("cross-entropy", "nats/token", better="lower")

    def value_and_grad(
        self, student_NV: "Tensor", teacher_NV: "Tensor | None", labels_N: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Each token's loss [N] and its gradient with respect to the student's logits [N, V], which it overwrites.

        The gradient is p_student - onehot(label).
        """
        assert labels_N is not None
        labels_N1 = labels_N[:, None]
        student_NV.sub_(student_NV.amax(-1, keepdim=True))
        own_N1 = student_NV.gather(1, labels_N1)
        z_N1 = student_NV.exp_().sum(-1, keepdim=True)
        grad_NV = student_NV.div_(z_N1)
        grad_NV.scatter_add_(1, labels_N1, own_N1.new_full(own_N1.shape, -1.0))
        return (z_N1.log() - own_N1)[:, 0], grad_NV

    def by_vocab(self, zeros_N1: "Tensor") -> "CrossEntropyPasses":
        return CrossEntropyPasses(zeros_N1)


class CrossEntropyPasses:
    def __init__(self, zeros_N1: "Tensor") -> None:
        self.student, self.own_N1 = OnlineSoftmax(zeros_N1), zeros_N1.clone()

    def read_(self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int) -> None:
        at_N1, inside_N1 = self._own(student_NC, labels_N, first)
        self.own_N1 += student_NC.gather(1, at_N1) * inside_N1
        self.student.read_(student_NC)

    def values(self) -> "Tensor":
        return (self.student.log_z_N1 - self.own_N1)[:, 0]

    def grad_(
        self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int
    ) -> "Tensor":
        at_N1, inside_N1 = self._own(student_NC, labels_N, first)
        return student_NC.sub_(self.student.log_z_N1).exp_().scatter_add_(1, at_N1, -inside_N1.to(student_NC.dtype))

    def _own(self, student_NC: "Tensor", labels_N: "Tensor | None", first: int) -> "tuple[Tensor, Tensor]":
        """Index of each token's label in the chunk, [N, 1], clamped, and whether the label is in the chunk."""
        assert labels_N is not None
        at_N1, last = labels_N[:, None] - first, student_NC.shape[1] - 1
        return at_N1.clamp(0, last), (at_N1 >= 0) & (at_N1 <= last)
