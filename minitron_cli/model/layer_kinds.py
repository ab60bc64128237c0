"""Kinds of decoder layers, which differ in the tensors that they hold, and the config fields that state them.

    mixer: attention, a short convolution, a state space, ...
    MLP: dense, or experts

Each is one rule of a family, and a layer has one kind by every rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cache
from typing import Any, Protocol

Layer = tuple[str, ...]
"""Kinds of one layer, one by each rule of its family."""


class KindRule(Protocol):
    """How a config states which layers are of which kind."""

    def read(self, config: Any) -> tuple[str, ...]:
        """Kind of every layer of a `PretrainedConfig`."""
        ...

    def write(self, kinds: Sequence[str]) -> dict[str, Any] | None:
        """Config fields of a model whose layers have these kinds; None if no value of the fields says so."""
        ...


@dataclass(frozen=True)
class Listed:
    """A list with the kind of every layer."""

    field: str
    places: Mapping[str, str] = dataclass_field(default_factory=dict)
    """Config list -> kind; it holds the numbers of the layers of that kind."""
    is_stored: bool = True
    """Whether the list is stored; else transformers makes it of the places."""

    def read(self, config: Any) -> tuple[str, ...]:
        return tuple(getattr(config, self.field))

    def write(self, kinds: Sequence[str]) -> dict[str, Any]:
        places = {name: [i for i, k in enumerate(kinds) if k == kind] for name, kind in self.places.items()}
        return places | ({self.field: list(kinds)} if self.is_stored else {})


@dataclass(frozen=True)
class DenseBelow:
    """The number of layers at the bottom that are dense; those above hold experts."""

    mark: str

    def read(self, config: Any) -> tuple[str, ...]:
        count = getattr(config, self.mark)
        return tuple("dense" if i < count else "sparse" for i in range(config.num_hidden_layers))

    def write(self, kinds: Sequence[str]) -> dict[str, Any] | None:
        count = kinds.count("dense")
        return None if "dense" in kinds[count:] else {self.mark: count}


@dataclass(frozen=True)
class DenseListed:
    """The numbers of the layers that are dense; of the others every `step`-th holds experts."""

    field: str = "mlp_only_layers"
    step: str = "decoder_sparse_step"

    def read(self, config: Any) -> tuple[str, ...]:
        dense, step = getattr(config, self.field) or (), getattr(config, self.step)
        layers = range(config.num_hidden_layers)
        return tuple("dense" if i in dense or (i + 1) % step else "sparse" for i in layers)

    def write(self, kinds: Sequence[str]) -> dict[str, Any]:
        return {self.field: [i for i, kind in enumerate(kinds) if kind == "dense"], self.step: 1}


@dataclass(frozen=True)
class SparseListed:
    """The numbers of the layers with experts; all others are dense."""

    field: str

    def read(self, config: Any) -> tuple[str, ...]:
        sparse = getattr(config, self.field)
        return tuple("sparse" if i in sparse else "dense" for i in range(config.num_hidden_layers))

    def write(self, kinds: Sequence[str]) -> dict[str, Any]:
        return {self.field: [i for i, kind in enumerate(kinds) if kind == "sparse"]}


@dataclass(frozen=True)
class Marked:
    """A list with 0 or 1 for every layer."""

    field: str
    kinds: tuple[str, str]
    """What 0 and 1 mean."""

    def read(self, config: Any) -> tuple[str, ...]:
        return tuple(self.kinds[int(mark)] for mark in getattr(config, self.field))

    def write(self, kinds: Sequence[str]) -> dict[str, Any]:
        return {self.field: [int(kind == self.kinds[1]) for kind in kinds]}


@dataclass(frozen=True)
class SparseBetween:
    """The first and the last layer with experts, and the distance between two of them; all others are dense."""

    first: str
    last: str
    step: str

    def read(self, config: Any) -> tuple[str, ...]:
        first, last, step = (getattr(config, name) for name in (self.first, self.last, self.step))
        layers = range(config.num_hidden_layers)
        return tuple("sparse" if first <= i <= last and (i + 1) % step == 0 else "dense" for i in layers)

    def write(self, kinds: Sequence[str]) -> dict[str, Any] | None:
        sparse = [i for i, kind in enumerate(kinds) if kind == "sparse"]
        if not sparse:
            return {self.first: len(kinds), self.last: len(kinds), self.step: 1}
        steps = (step for step in range(1, sparse[0] + 2) if sparse == _every(step, sparse[0], sparse[-1]))
        step = next(steps, None)
        return None if step is None else {self.first: sparse[0], self.last: sparse[-1], self.step: step}


@dataclass(frozen=True)
class Periodic:
    """A period of layers, and the place in it of the one layer that is of another kind."""

    period: str
    offset: str
    kinds: tuple[str, str]
    """The kind of that layer, and of the others."""

    def read(self, config: Any) -> tuple[str, ...]:
        period, offset = getattr(config, self.period), getattr(config, self.offset)
        return self._repeated(period, offset, config.num_hidden_layers)

    def write(self, kinds: Sequence[str]) -> dict[str, Any] | None:
        places = [i for i, kind in enumerate(kinds) if kind == self.kinds[0]]
        if not places:
            return {self.period: len(kinds) + 1, self.offset: len(kinds)}
        first, *others = places
        period = others[0] - first if others else max(first + 1, len(kinds) - first)
        is_said = first < period and tuple(kinds) == self._repeated(period, first, len(kinds))
        return {self.period: period, self.offset: first} if is_said else None

    def _repeated(self, period: int, offset: int, count: int) -> tuple[str, ...]:
        return tuple(self.kinds[i % period != offset] for i in range(count))


def _every(step: int, first: int, last: int) -> list[int]:
    return [i for i in range(first, last + 1) if (i + 1) % step == 0]


@cache
def apportioned(layers: tuple[Layer, ...], count: int) -> tuple[Layer, ...]:
    """Layers of a model of `count` layers in which every kind keeps its share: the first of each kind.

    Every kind gets one layer, then the others go one by one to the kind with the largest n / (2 k + 1), where n is its
    number in the parent and k what it has (Sainte-Lague). So a model with fewer layers never has more of one kind.
    """
    places = {kind: [i for i, layer in enumerate(layers) if layer == kind] for kind in dict.fromkeys(layers)}
    given = dict.fromkeys(places, 0)
    for _ in range(count):
        quotients = {kind: len(places[kind]) / (2 * given[kind] + 1) if given[kind] else float("inf") for kind in given}
        given[max(quotients, key=quotients.__getitem__)] += 1
    kept = sorted(i for kind, number in given.items() for i in places[kind][:number])
    more = [kind for kind, number in given.items() for _ in range(number - len(places[kind]))]
    return (*(layers[i] for i in kept), *more)
