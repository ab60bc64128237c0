"""Price of a stage: what it was expected to take before its first batch."""

from collections.abc import Mapping

from minitron_cli.spec import Spec


class Part(Spec):
    """One kind of work of a stage."""

    name: str
    tokens: int = 0
    """Tokens that models read for it; 0 for work that reads none."""
    flops: int = 0
    """Floating-point operations; 0 for work that memory or the disk bounds."""
    seconds: float | None = None
    """Expected time on this device; None if no time was measured."""


class Price(Spec):
    """Expected cost of a stage, part by part."""

    what: str
    """Steps, batches or samples of the work."""
    parts: tuple[Part, ...]
    memory: Mapping[str, int] = {}
    """Part of the peak memory of one process -> bytes."""
    disk: Mapping[str, int] = {}
    """Part of the disk space -> bytes."""
    left_out: tuple[str, ...] = ()
    """Work whose cost is not included, because it is not known before it is done."""

    @property
    def flops(self) -> int:
        """Floating-point operations of all parts."""
        return sum(part.flops for part in self.parts)

    @property
    def tokens(self) -> int:
        """Tokens of all parts; a text that two models read counts twice."""
        return sum(part.tokens for part in self.parts)

    @property
    def seconds(self) -> float | None:
        """Expected time of all parts; None if that of any is unknown."""
        known = [part.seconds for part in self.parts if part.seconds is not None]
        return sum(known) if len(known) == len(self.parts) else None

    @property
    def memory_bytes(self) -> int:
        """Peak memory of one process."""
        return sum(self.memory.values())

    @property
    def disk_bytes(self) -> int:
        """Disk space of the result and of what is kept while it is made."""
        return sum(self.disk.values())
