"""A figure's title, unit, format and direction, owned by whatever is measured. Knows no measurement and no page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

NOTHING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
Style = Literal["significant", "count", "short", "bytes", "share"]


@dataclass(frozen=True)
class Figure:
    """How one measured quantity is presented, in a terminal, a page, a card and a summary alike."""

    title: str
    """Name of the quantity, as in running text: `latency`."""
    unit: str = ""
    """Unit of the values as they are written: `ms`. Empty for counts, shares and bytes, which carry their own."""
    style: Style = "significant"
    """How a value is written."""
    better: Literal["lower", "higher"] | None = None
    """Which direction is an improvement; None where neither is."""

    @property
    def heading(self) -> str:
        """Title of a column of plain values: `latency (ms)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def cell(self, value: float | None) -> str:
        """Value as a cell under `heading`; a dash for None."""
        return NOTHING if value is None else _STYLES[self.style](value).replace("-", MINUS)

    def text(self, value: float | None) -> str:
        """Value with its unit, for running text: `12.5 ms`."""
        written = self.cell(value)
        return f"{written} {self.unit}" if self.unit and value is not None else written

    def change(self, value: float) -> str:
        """Difference of two values, with its sign: `+0.25`."""
        written = self.cell(abs(value))
        return written if value == 0 else f"{'+' if value > 0 else MINUS}{written}"


def significant(value: float) -> str:
    """Four significant digits with thousands separators: `1,234`, `0.9876`."""
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def count(value: float) -> str:
    """Whole number with thousands separators: `8,030,261,248`."""
    return f"{round(value):,}"


def short(value: float) -> str:
    """Three significant digits with k, M, B or T: `4.51 B`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:g}" if value == int(value) else _three_digits(value)


def memory_size(size_bytes: float) -> str:
    """Bytes in the largest binary unit that is not below one: `896 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:,.4g} GiB"


def share(value: float) -> str:
    """Fraction as a percentage with one decimal: `97.3 %`."""
    return f"{100 * value:.1f} %"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0}f}"


_STYLES: dict[Style, Callable[[float], str]] = {
    "significant": significant,
    "count": count,
    "short": short,
    "bytes": memory_size,
    "share": share,
}
