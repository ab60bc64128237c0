"""A table of text, and numbers as it has room for. Knows no artifact."""

from collections.abc import Sequence
from typing import NamedTuple


class Sheet(NamedTuple):
    """One table; the first column is text, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def number(value: float | None) -> str:
    """Four significant digits, as a table has room for."""
    return "-" if value is None else f"{value:.4g}"


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"
