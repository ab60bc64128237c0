"""Constraint on the memory of a served child: its weights and the KV cache of the sequences in flight."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from minitron_cli.figures import Figure
from minitron_cli.search.constraints.base import Between, Counted
from minitron_cli.spec import Bytes

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "fp8": 8, "int8": 8, "int4": 4}
Stored = Literal["float32", "bfloat16", "float16", "fp8", "int8", "int4"]


class Memory(Between, Counted):
    """Bytes of weights and KV cache, without a server's activations and fragmentation."""

    figure: ClassVar[Figure] = Figure("memory", style="bytes", better="lower")

    kind: Literal["memory"] = "memory"
    batch: int = Field(1, ge=1)
    """Sequences in flight."""
    length: int = Field(8192, ge=1)
    """Tokens of each sequence."""
    weights: Stored = "bfloat16"
    """Storage type of the weights."""
    cache: Stored = "bfloat16"
    """Storage type of keys and values."""
    at_least: Bytes | None = None
    """Lower limit; excludes shapes that are too small."""
    at_most: Bytes | None = None
    """Upper limit, such as 16GiB, or 60% of the parent's."""

    def cost(self, shape: "Shape") -> float:
        weights = shape.parameters() * BITS[self.weights] / 8
        return weights + shape.kv_cache_bytes(self.batch, self.length, dtype_bytes=1) * BITS[self.cache] / 8

    @property
    def quantity(self) -> str:
        stored = {"weights": self.weights, "cache": self.cache}
        other = "".join(f", {what} in {dtype}" for what, dtype in stored.items() if dtype != "bfloat16")
        return f"{self.figure.title} at {self.batch} x {self.length:,} tokens{other}"
