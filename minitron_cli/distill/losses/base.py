"""Base classes of the losses on the next token's distribution."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from minitron_cli.figures import Figure
from minitron_cli.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


class Loss(Spec):
    """A loss of the student's distribution of the next token. Each subclass has a `kind` and a `figure` of its own."""

    weight: float = Field(1.0, gt=0)
    """Factor of this loss in the sum."""

    needs_teacher: ClassVar[bool] = False
    figure: ClassVar[Figure]
    """Title, unit and direction of the mean over tokens."""

    @abstractmethod
    def value_and_grad(
        self, student_NV: "Tensor", teacher_NV: "Tensor | None", labels_N: "Tensor | None"
    ) -> "tuple[Tensor, Tensor]":
        """Each token's loss [N] and its gradient with respect to the student's logits [N, V].

        Logits are raw, in fp32 or fp64, and may be overwritten. `teacher_NV` is None for a loss that needs no teacher.
        """


class TeacherLoss(Loss):
    """A loss between the student's and the teacher's distribution of the next token."""

    temperature: float = Field(1.0, gt=0)
    """Divides both models' logits; 1.0 was best of 0.1, 0.5, 1.0 and 3.0 (Muralidharan et al. 2024, sec. 3)."""

    needs_teacher: ClassVar[bool] = True

    def soften_(self, *logits: "Tensor") -> None:
        """Divide logits by the temperature, in place."""
        if self.temperature != 1:
            for one in logits:
                one.div_(self.temperature)
