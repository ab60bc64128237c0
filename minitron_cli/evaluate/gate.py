"""Measured values against their bounds. Knows no model: plain results in, misses out."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from minitron_cli.errors import GateMissed, RecipeError
from minitron_cli.evaluate.config import Gates

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]  # task -> metric -> {"value": .., "stderr": .., ...}


@dataclass(frozen=True)
class Miss:
    """One value on the wrong side of its bound."""

    name: str
    kind: Literal["minimum", "maximum"]
    bound: float
    value: float | None
    """None where the metric has no finite value; that misses every bound."""

    @property
    def by(self) -> float | None:
        """How far the value is from its bound, always positive."""
        return None if self.value is None else abs(self.value - self.bound)

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} has no value where its {self.kind} is {self.bound:g}"
        return f"{self.name} is {self.value:.6g}, {self.by:.3g} {_SIDE[self.kind]} {self.bound:g}"


_SIDE = {"minimum": "below its minimum", "maximum": "above its maximum"}


def check(gates: Gates, results: Results) -> None:
    """Raise GateMissed, listing the misses, unless every gate is met."""
    if found := misses(gates, results):
        total = len(gates.minimum) + len(gates.maximum)
        raise GateMissed(f"{len(found)} of {total} gates missed: " + "; ".join(map(str, found)))


def misses(gates: Gates, results: Results) -> list[Miss]:
    """The gates not met, minima first. RecipeError for a gate on something that was not measured."""
    values = {f"{task}.{metric}": m["value"] for task, metrics in results.items() for metric, m in metrics.items()}
    return [miss for miss in _all(gates, values) if _is_missed(miss)]


def _all(gates: Gates, values: Mapping[str, float | None]) -> Iterator[Miss]:
    for name, bound in gates.minimum.items():
        yield Miss(name, "minimum", bound, _measured(name, values))
    for name, bound in gates.maximum.items():
        yield Miss(name, "maximum", bound, _measured(name, values))


def _is_missed(miss: Miss) -> bool:
    if miss.value is None:
        return True
    return miss.value < miss.bound if miss.kind == "minimum" else miss.value > miss.bound


def _measured(name: str, values: Mapping[str, float | None]) -> float | None:
    if name in values:
        return values[name]
    if close := difflib.get_close_matches(name, values, n=1):
        hint = f"did you mean {close[0]!r}?"
    else:
        hint = f"gates can name {', '.join(sorted(values))}" if values else "nothing was measured"
    raise RecipeError(f"gate {name!r}: no such value was measured; {hint}")
