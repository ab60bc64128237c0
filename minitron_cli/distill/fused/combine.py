"""Several losses on the same logits, each of which overwrites its arguments."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


def to_overwrite(
    losses: Sequence[T], student: Tensor, teacher: Tensor | None
) -> Iterator[tuple[T, Tensor, Tensor | None]]:
    """Each loss with both models' logits to overwrite: copies, except for the last loss, which gets the originals."""
    for left, loss in zip(reversed(range(len(losses))), losses, strict=True):
        if left:
            yield loss, student.clone(), None if teacher is None else teacher.clone()
        else:
            yield loss, student, teacher


def weighted_sum_(terms: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Sum of weight * gradient, in the last gradient's memory. Overwrites all gradients."""
    total: Tensor | None = None
    for weight, grad in terms:
        if weight != 1:
            grad.mul_(weight)
        total = grad if total is None else grad.add_(total)
    assert total is not None
    return total
