"""Interface of losses that can be computed for a chunk of the vocabulary at a time, without a whole token's logits."""

# N token, C one chunk of the vocab

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


class TwoPass(Protocol):
    """One loss over some tokens. Their logits come twice, each time all chunks in the same order."""

    def read_(self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int) -> None:
        """First pass: accumulate a chunk that starts at entry `first` of the vocabulary. Overwrites both logits."""

    def values(self) -> "Tensor":
        """Each token's loss, [N], after the first pass."""

    def grad_(
        self, student_NC: "Tensor", teacher_NC: "Tensor | None", labels_N: "Tensor | None", first: int
    ) -> "Tensor":
        """Second pass: gradient with respect to a chunk of the student's logits, [N, C]. Overwrites both logits."""


@runtime_checkable
class TwoPassLoss(Protocol):
    """A loss that supports the low-memory mode."""

    @property
    def kind(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def by_vocab(self, zeros_N1: "Tensor") -> TwoPass:
        """Both passes over N tokens; sums take the dtype and device of `zeros_N1`."""
