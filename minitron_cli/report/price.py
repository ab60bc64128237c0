"""Price of a stage as tables: its parts, and memory and disk. What it took stands beside what was expected."""

from collections.abc import Mapping

from minitron_cli.figures import Figure
from minitron_cli.report.view import Table
from minitron_cli.results.price import Price

TOKENS = Figure("tokens read", style="short")
FLOPS = Figure("FLOPs", style="power")
TIME = Figure("time", style="duration")
BYTES = Figure("bytes", style="bytes")
MEMORY = Figure("memory of a process", style="bytes")
DISK = Figure("disk", style="bytes")


def tables(price: Price) -> list[Table]:
    """Work by part, and bytes of memory and disk."""
    work = [(part.name, part.tokens or None, part.flops or None, part.seconds) for part in price.parts]
    total = ("total", price.tokens or None, price.flops or None, price.seconds)
    kinds = {"memory": price.memory, "disk": price.disk}
    sizes = [(kind, part, size) for kind, parts in kinds.items() for part, size in parts.items() if size]
    return [
        Table(f"Price: {price.what}", (Figure("work"), TOKENS, FLOPS, TIME), [*work, total], [len(work)]),
        Table("Memory of a process, and disk", (Figure("where"), Figure("part"), BYTES), sizes),
    ]


def summary(prices: Mapping[str, Price]) -> Table:
    """Totals of several stages, and of all of them."""
    some = list(prices.values())
    rows = [(stage, p.tokens, p.flops or None, p.seconds, p.memory_bytes, p.disk_bytes) for stage, p in prices.items()]
    seconds = [price.seconds for price in some if price.seconds is not None]
    totals = sum(p.tokens for p in some), sum(p.flops for p in some), sum(seconds) if seconds else None
    peak, disk = max((p.memory_bytes for p in some), default=0), sum(p.disk_bytes for p in some)
    columns = (Figure("stage"), TOKENS, FLOPS, TIME, MEMORY, DISK)
    return Table("Price", columns, [*rows, ("total", *totals, peak, disk)], [len(rows)])


def expected(seconds: Mapping[str, tuple[float, float]]) -> Table:
    """Time that work was expected to take, beside the time that it took, interrupted runs included."""
    columns = (Figure("result"), Figure("expected", style="duration"), Figure("taken", style="duration"))
    return Table("Expected time", columns, [(name, *both) for name, both in seconds.items()])
