"""Mean and variance of streams, merged piece by piece without cancellation. Knows no model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minitron_cli.scores.metric import Aggregation

NAMES = ("mean", "squares")


@dataclass(frozen=True)
class Moments:
    """Moments of `count` values that determine their mean, L2 norm and variance.

    Sums of squares would lose the variance of values far from zero; squared deviations do not, and they give the
    L2 norm as well, by additions of positive numbers only: sum x^2 = sum (x - mean)^2 + count * mean^2.
    """

    count: int | Tensor
    """Number of values; a tensor that broadcasts to the entries where they differ in it."""
    mean: Tensor
    squares: Tensor
    """Sum of (x - mean)^2."""

    @classmethod
    def of(cls, values: Tensor, dim: int, weights: Tensor | None = None) -> "Moments":
        """Moments along one dim. Plain sums: on CPU, `var` and `norm` over an inner dim are 20 times slower.

        `weights` are 0 or 1 and broadcast to the values; values of weight 0 are left out.
        """
        if weights is None:
            count: int | Tensor = values.shape[dim]
            mean = values.sum(dim) / count
            deviations = values - mean.unsqueeze(dim)
        else:
            count = weights.sum(dim)
            mean = (values * weights).sum(dim) / _some(count)
            deviations = (values - mean.unsqueeze(dim)) * weights
        return cls(count, mean, deviations.square_().sum(dim))

    def merge(self, other: "Moments") -> "Moments":
        """Moments of the values of both (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        share, shift = other.count / _some(count), other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * share,
            self.squares + other.squares + shift.square() * (self.count * share),
        )

    def __getitem__(self, i: int) -> "Moments":
        count = self.count[i] if isinstance(self.count, Tensor) else self.count
        return Moments(count, self.mean[i], self.squares[i])

    def pooled(self) -> "Moments":
        """Moments of the values of all entries of dim 0 together, fp64."""
        rows, mean, squares = self.mean.shape[0], self.mean.double(), self.squares.double()
        counts = self.count.double() if isinstance(self.count, Tensor) else torch.full_like(mean[:, :1], self.count)
        total = counts.sum(0)
        center = (counts * mean).sum(0) / _some(total)
        count = total if isinstance(self.count, Tensor) else rows * self.count
        return Moments(count, center, (squares + counts * (mean - center).square()).sum(0))

    def scaled(self, factor: Tensor) -> "Moments":
        """Moments of the values times a factor for each entry."""
        return Moments(self.count, self.mean * factor, self.squares * factor.square())

    @classmethod
    def stack(cls, parts: Sequence["Moments"]) -> "Moments":
        """Moments stacked along a new dim 0; over equally many values unless their counts are tensors."""
        moved = [part.to(parts[0].mean.device) for part in parts]
        means, squares = (torch.stack([getattr(part, name) for part in moved]) for name in NAMES)
        counts = [part.count for part in moved if isinstance(part.count, Tensor)]
        assert counts or len({part.count for part in parts}) == 1
        return cls(torch.stack(counts) if counts else parts[0].count, means, squares)

    def aggregate(self, how: Aggregation) -> Tensor:
        """Mean, L2 norm sqrt(sum x^2), or variance (1/n) sum (x - mean)^2."""
        match how:
            case "mean":
                return self.mean
            case "l2":
                return (self.squares + self.count * self.mean.square()).sqrt()
            case "var":
                return self.squares / _some(self.count)

    def to(self, device: torch.device) -> "Moments":
        count = self.count.to(device) if isinstance(self.count, Tensor) else self.count
        return Moments(count, self.mean.to(device), self.squares.to(device))

    def tensors(self) -> dict[str, Tensor]:
        return {"count": torch.as_tensor(self.count), "mean": self.mean, "squares": self.squares}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Moments":
        count = tensors["count"]
        return cls(count if count.ndim else int(count), tensors["mean"], tensors["squares"])


class NamedMoments:
    """Running moments by name: all that an observer accumulates that adds each module's values when it runs."""

    def __init__(self) -> None:
        self._by_name: dict[str, Moments] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __getitem__(self, name: str) -> Moments:
        return self._by_name[name]

    def add(self, name: str, batch: Moments) -> None:
        """Merge the moments of a batch into those of that name."""
        before = self._by_name.get(name)
        self._by_name[name] = batch if before is None else before.to(batch.mean.device).merge(batch)

    def join(self, other: "NamedMoments") -> None:
        """Take over the moments of other names."""
        self._by_name |= other._by_name

    def state(self) -> dict[str, Tensor]:
        """Everything accumulated so far, by name."""
        return {f"{name}.{part}": t for name, moments in self._by_name.items() for part, t in moments.tensors().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Replace what was accumulated."""
        names = {name.rpartition(".")[0] for name in state}
        self._by_name = {
            name: Moments.from_tensors({part: state[f"{name}.{part}"] for part in ("count", *NAMES)}) for name in names
        }

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the state of another process."""
        before = self._by_name
        self.restore(state)
        for name, moments in before.items():
            self._by_name[name] = moments.merge(self._by_name[name].to(moments.mean.device))


def _some(count: int | Tensor) -> int | Tensor:
    """Count to divide by, at least 1: entries without values have mean 0."""
    return count.clamp_min(1) if isinstance(count, Tensor) else count
