"""Price of a stage as tables: its parts, and memory and disk. What it took stands beside what was expected."""

from collections.abc import Mapping

from minitron_cli.figures import Figure
from minitron_cli.report.view import Cell, Table
from minitron_cli.results.price import Price

TOKENS = Figure("tokens", style="short")
FLOPS = Figure("FLOPs", style="power")
TIME = Figure("time", style="duration")
BYTES = Figure("bytes", style="bytes")
MEMORY = Figure("memory of a process", style="bytes")
DISK = Figure("disk", style="bytes")


def tables(price: Price) -> list[Table]:
    """Work by part, and bytes of memory and disk."""
    return [_work(price), _bytes(price)]


def summary(prices: Mapping[str, Price]) -> Table:
    """Totals of several stages, and of all of them."""
    some = list(prices.values())
    seconds = [price.seconds for price in some if price.seconds is not None]
    rows: list[tuple[Cell, ...]] = [
        (stage, p.tokens, p.flops or None, p.seconds, p.memory_bytes, p.disk_bytes) for stage, p in prices.items()
    ]
    totals = sum(p.tokens for p in some), sum(p.flops for p in some), sum(seconds) if seconds else None
    peak, disk = max((p.memory_bytes for p in some), default=0), sum(p.disk_bytes for p in some)
    columns = (Figure("stage"), TOKENS, FLOPS, TIME, MEMORY, DISK)
    return Table("Price", columns, (*rows, ("total", *totals, peak, disk)), [len(rows)])


def expected(seconds: Mapping[str, tuple[float, float]]) -> Table:
    """Time that work was expected to take, beside the time that it took, interrupted runs included."""
    columns = (Figure("result"), Figure("expected", style="duration"), Figure("taken", style="duration"))
    return Table("Expected time", columns, tuple((name, *both) for name, both in seconds.items()))


def _work(price: Price) -> Table:
    parts = list(price.parts)
    rows: list[tuple[Cell, ...]] = [(p.name, p.tokens or None, p.flops or None, p.seconds) for p in parts]
    rows.append(("total", price.tokens or None, price.flops or None, price.seconds))
    return Table(f"Price: {price.what}", (Figure("work"), TOKENS, FLOPS, TIME), tuple(rows), [len(parts)])


def _bytes(price: Price) -> Table:
    kinds = {"memory": price.memory, "disk": price.disk}
    rows = [(kind, part, size) for kind, parts in kinds.items() for part, size in parts.items() if size]
    return Table("Memory of a process, and disk", (Figure("where"), Figure("part"), BYTES), tuple(rows))
