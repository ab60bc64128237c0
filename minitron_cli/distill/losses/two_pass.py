"""What a loss does that can work with a chunk of the vocabulary at a time, and so needs no logits of a whole token."""

# N token, C one chunk of the vocab

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class TwoPass(Protocol):
    """One loss over some tokens, whose logits come twice, both times all chunks in the same order."""

    def read_(self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int) -> None:
        """The first time: take in a chunk, which starts at entry `first` of the vocabulary. Overwrites both logits."""

    def values(self) -> "Tensor":
        """Between the two: each token's loss, [N]."""

    def grad_(
        self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int
    ) -> "Tensor":
        """The second time: the gradient by a chunk of the student's logits, [N, C]. Overwrites both logits."""


@runtime_checkable
class TwoPassLoss(Protocol):
    """A loss that has the low-memory mode."""

    @property
    def kind(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def by_vocab(self, zeros_N1: "Tensor") -> TwoPass:
        """A start for as many tokens as there are zeros, which are of the dtype and device to add up in."""
