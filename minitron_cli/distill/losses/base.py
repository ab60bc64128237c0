"""What all losses have that compare the student's distribution with the teacher's."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from minitron_cli.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


class TeacherLoss(Spec):
    """A loss between the two distributions of the next token."""

    weight: float = Field(1.0, gt=0)
    """Factor of this loss in the sum."""
    temperature: float = Field(1.0, gt=0)
    """Divides both models' logits; 1.0 was best of 0.1, 0.5, 1.0 and 3.0 (Muralidharan et al. 2024, sec. 3)."""

    needs_teacher: ClassVar[bool] = True

    def soften_(self, *logits: "Tensor") -> None:
        """Divide by the temperature."""
        if self.temperature != 1:
            for one in logits:
                one.div_(self.temperature)
