"""The family whose table fits the tensors of a checkpoint of another model type best."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from minitron_cli.errors import CheckpointError
from minitron_cli.model.family import Family
from minitron_cli.model.shape import Shape
from minitron_cli.stacked_names import stored_shapes

Shapes = Mapping[str, tuple[int, ...]]
"""Name -> shape of every tensor of a checkpoint."""


class Fit(NamedTuple):
    """A family's table beside a checkpoint's tensors."""

    family: str
    fitting: int
    """Number of the checkpoint's tensors that the table has, with the same shape."""
    others: tuple[str, ...]
    """Names of those that it lacks or gives another shape, each number replaced by `{}`, in order of their names."""
    missing: tuple[str, ...]
    """Names of those that it has and the checkpoint lacks, in the same form."""


def nearest(families: Mapping[str, Family], config: Any, tensors: Shapes) -> Fit | None:
    """Fit with the most fitting tensors, the fewest missing names among equals; None if no tensor fits any table."""
    fits = [fit for family in families.values() for fit in _fit(family, config, tensors)]
    best = max(fits, key=lambda fit: (fit.fitting, -len(fit.missing)), default=None)
    return best if best and best.fitting else None


def _fit(family: Family, config: Any, tensors: Shapes) -> Iterator[Fit]:
    """The family's fit, or none where the config lacks sizes that its table needs."""
    try:
        expected = stored_shapes(Shape.of(family, config).tensors())
    except CheckpointError:
        return
    fitting = {name for name, shape in tensors.items() if expected.get(name) == shape}
    yield Fit(
        family.model_type,
        len(fitting),
        _templates(tensors.keys() - fitting),
        _templates(expected.keys() - tensors.keys()),
    )


def _templates(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted({re.sub(r"(?<=\.)\d+(?=\.)", "{}", name) for name in names}))
