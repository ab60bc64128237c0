"""What a child takes up while it serves: its weights and the keys and values of the sequences in flight."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from minitron_cli.search.constraints.base import Between, Counted
from minitron_cli.spec import Bytes

if TYPE_CHECKING:
    from minitron_cli.model.shape import Shape

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "fp8": 8, "int8": 8, "int4": 4}
Stored = Literal["float32", "bfloat16", "float16", "fp8", "int8", "int4"]


class Memory(Between, Counted):
    """Bytes of weights and KV cache. What a server needs besides (activations, fragments) is not in it."""

    kind: Literal["memory"] = "memory"
    batch: int = Field(1, ge=1)
    """Sequences in flight."""
    length: int = Field(8192, ge=1)
    """Tokens of each."""
    weights: Stored = "bfloat16"
    """How weights are stored."""
    cache: Stored = "bfloat16"
    """How keys and values are stored."""
    at_least: Bytes | None = None
    """No less than this; of use to leave out what is too small."""
    at_most: Bytes | None = None
    """No more than this, such as 16GiB, or 60% of the parent's."""

    def cost(self, shape: "Shape") -> float:
        weights = shape.parameters() * BITS[self.weights] / 8
        return weights + shape.kv_cache_bytes(self.batch, self.length, dtype_bytes=1) * BITS[self.cache] / 8

    @property
    def title(self) -> str:
        return f"memory at {self.batch} x {self.length:,} tokens"

    def format(self, value: float) -> str:
        return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.2f} MiB"
