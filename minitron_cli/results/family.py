"""Result of a chain: its original model and what each step made, member by member."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from minitron_cli.results.base import Result, Sizes
from minitron_cli.spec import Spec


class Interval(Spec):
    """A value and its 95 % interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    chance: float | None = Field(None, exclude_if=lambda value: value is None)
    """Value that guessing has, where it is known."""


class FamilyMember(Spec):
    """One model of a chain."""

    label: str
    """Label of the step that made it; `original` for the first."""
    fingerprint: str
    parameters: int
    non_embedding: int
    """Parameters without embeddings and language-model head."""
    active: int
    """Parameters that one token's forward pass reads."""
    sizes: Sizes
    pruned: str = ""
    """What the step pruned, in words: `ffn 12,288 to 9,216`."""
    tokens: int | None = None
    """Training tokens of the step; None for the original."""
    tokens_in_all: int | None = None
    """Training tokens of the step and of those before it."""
    memory_bytes: int
    """Weights in bfloat16, and the KV cache of a sequence of 4,096 tokens."""
    metrics: Mapping[str, Interval] = {}
    """`task.metric` -> value, for the loss and for tasks."""
    from_original: Mapping[str, Interval] = {}
    """`task.metric` -> paired difference from the original on the same items; empty for the original."""
    kl_original: Interval | None = None
    """KL from the original, in nats per token."""
    probability_retained: float | None = None
    """Mean probability of a token of held-out text (geometric), as a share of the original's: exp(-loss difference)."""
    tasks_retained: float | None = None
    """Mean over tasks of a value of which more is better, as a share of the original's."""
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    """Speed, if it was measured."""


class FamilyResult(Result):
    """A chain of several steps."""

    schema_name: ClassVar[str] = "family/1"
    verb: ClassVar[str] = "minitron run"

    members: tuple[FamilyMember, ...]
    """The original, then the product of each step."""
