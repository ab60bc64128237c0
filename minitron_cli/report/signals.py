"""Table of a teacher's stored signals."""

from minitron_cli.figures import memory_size
from minitron_cli.report.view import Table
from minitron_cli.results.teach import TeachResult


def signals_table(found: TeachResult) -> Table:
    """Positions and size of each split."""
    rows = [
        (name, f"{split.blocks:,}", f"{split.positions:,}", memory_size(split.size_bytes))
        for name, split in (("training", found.train), ("held-out", found.validation))
    ]
    ids = f"{found.ids_per_position:.1f} ids" if found.kind == "sampled" else f"{found.count} ids"
    title = f"Signals: {found.what}, {ids} and {found.position_bytes:.1f} bytes for each position"
    return Table.of_words(title, ("text", "blocks", "positions", "size"), rows)
