"""Price of a stage as tables: its parts, and memory and disk. What it took stands beside what was expected."""

from minitron_cli.figures import Figure
from minitron_cli.report.view import Cell, Table
from minitron_cli.results.price import Price

TOKENS = Figure("tokens", style="short")
FLOPS = Figure("FLOPs", style="power")
TIME = Figure("time", style="duration")
BYTES = Figure("bytes", style="bytes")


def tables(price: Price) -> list[Table]:
    """Work by part, and bytes of memory and disk."""
    return [_work(price), _bytes(price)]


def _work(price: Price) -> Table:
    parts = list(price.parts)
    rows: list[tuple[Cell, ...]] = [(p.name, p.tokens or None, p.flops or None, p.seconds) for p in parts]
    rows.append(("total", price.tokens or None, price.flops or None, price.seconds))
    return Table(f"Price: {price.what}", (Figure("work"), TOKENS, FLOPS, TIME), tuple(rows), [len(parts)])


def _bytes(price: Price) -> Table:
    kinds = {"memory": price.memory, "disk": price.disk}
    rows = [(kind, part, size) for kind, parts in kinds.items() for part, size in parts.items() if size]
    return Table("Memory of a process, and disk", (Figure("where"), Figure("part"), BYTES), tuple(rows))
